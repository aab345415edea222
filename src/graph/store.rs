//! Memory that outlives a replay, by name: parameters, gradients, optimiser state, inputs.

use super::{DType, Shape, Tensor};
use crate::device::{Device, Slice};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Where tensors of an arena may start, bytes: at every 256th f32, so that no block of an optimiser's quantised state
/// spans two tensors.
pub const ARENA_ALIGN: u64 = 1024;

/// Named persistent tensors on one device.
pub struct Store {
    device: Device,
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    slice: Slice,
    shape: Shape,
    dtype: DType,
}

impl Store {
    /// An empty store on `device`.
    pub fn new(device: &Device) -> Store {
        Store { device: device.clone(), entries: BTreeMap::new() }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Gives `name` memory of its own, zeroed.
    pub fn add(&mut self, name: &str, shape: impl Into<Shape>, dtype: DType) -> Result<()> {
        let shape = shape.into();
        let buffer = self.device.alloc(name, dtype.bytes(shape))?;
        self.insert(name, buffer.whole(), shape, dtype);
        Ok(())
    }

    /// Lays f32 tensors out one after another in as few buffers ("pages") as the device's limits allow, so that
    /// an optimiser or a norm touches all of them in a few dispatches. Equal lists of shapes give equal layouts.
    /// Page `i` as a whole is named `label/i`; the names of the pages are returned. Every tensor starts at a multiple of
    /// [`ARENA_ALIGN`] bytes.
    pub fn arena(&mut self, label: &str, tensors: &[(String, Shape)]) -> Result<Vec<String>> {
        let limit = self.device.caps().max_binding.min(self.device.caps().max_buffer);
        let mut pages: Vec<(u64, Vec<(usize, u64)>)> = Vec::new();
        for (i, (_, shape)) in tensors.iter().enumerate() {
            let bytes = (shape.numel() as u64 * 4).next_multiple_of(ARENA_ALIGN);
            match pages.last_mut() {
                Some((used, members)) if *used + bytes <= limit => {
                    members.push((i, *used));
                    *used += bytes;
                }
                _ => pages.push((bytes, vec![(i, 0)])),
            }
        }
        let mut names = Vec::new();
        for (number, (bytes, members)) in pages.into_iter().enumerate() {
            let name = format!("{label}/{number}");
            let buffer = self.device.alloc(&name, bytes)?;
            self.insert(&name, buffer.whole(), [(bytes / 4) as usize].into(), DType::F32);
            for (i, offset) in members {
                let (tensor, shape) = &tensors[i];
                let slice = Slice { buffer: buffer.clone(), offset, bytes: shape.numel() as u64 * 4 };
                self.insert(tensor, slice, *shape, DType::F32);
            }
            names.push(name);
        }
        Ok(names)
    }

    /// Makes `name` another name of memory that exists already.
    pub fn insert(&mut self, name: &str, slice: Slice, shape: Shape, dtype: DType) {
        self.entries.insert(name.to_owned(), Entry { slice, shape, dtype });
    }

    /// Another store over the same memory, of the names that `keep` accepts.
    pub fn share(&self, keep: impl Fn(&str) -> bool) -> Store {
        let mut shared = Store::new(&self.device);
        for (name, entry) in self.entries.iter().filter(|(name, _)| keep(name)) {
            shared.insert(name, entry.slice.clone(), entry.shape, entry.dtype);
        }
        shared
    }

    /// Whether `name` has memory.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The memory of `name`, if it fits the tensor of that name in a graph.
    pub(super) fn slice_for(&self, name: &str, tensor: Tensor) -> Result<Slice> {
        let entry = self.entry(name)?;
        if entry.shape.numel() != tensor.shape.numel() || entry.dtype != tensor.dtype {
            let (a, b) = (entry.shape, tensor.shape);
            return Err(Error::internal(format!("`{name}` is {a:?} in the store and {b:?} in the graph")));
        }
        Ok(entry.slice.clone())
    }

    /// Shape of `name`.
    pub fn shape(&self, name: &str) -> Result<Shape> {
        Ok(self.entry(name)?.shape)
    }

    /// Memory of `name`.
    pub fn slice(&self, name: &str) -> Result<Slice> {
        Ok(self.entry(name)?.slice.clone())
    }

    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Writes f32 or u32 values at the start of `name`.
    pub fn write<T: bytemuck::NoUninit>(&self, name: &str, values: &[T]) -> Result<()> {
        self.device.write(&self.entry(name)?.slice, bytemuck::cast_slice(values))
    }

    /// Writes words of `name` from word `first` on.
    pub fn write_words(&self, name: &str, first: usize, words: &[u32]) -> Result<()> {
        let Slice { buffer, offset, bytes } = self.entry(name)?.slice.clone();
        let skipped = first as u64 * 4;
        let left = bytes.checked_sub(skipped).ok_or_else(|| Error::internal(format!("word {first} of `{name}`")))?;
        self.device.write(&Slice { buffer, offset: offset + skipped, bytes: left }, bytemuck::cast_slice(words))
    }

    /// Reads `name` back as f32.
    pub async fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.device.read_f32(&self.entry(name)?.slice).await
    }

    /// Reads `name` back as u32.
    pub async fn read_u32(&self, name: &str) -> Result<Vec<u32>> {
        self.device.read_u32(&self.entry(name)?.slice).await
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| Error::internal(format!("nothing named `{name}` in the store")))
    }
}
