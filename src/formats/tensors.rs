//! The tensors of a model by their transformers names, whatever files they lie in.

use super::dtype::Dtype;
use super::files::{Bytes, read_json};
use super::gguf::{GgufHeader, GgufTensor};
use super::{gguf_decoder, safetensors_file};
use crate::digest::sha256;
use crate::platform::fs;
use crate::platform::parallel::*;
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Values below which decoding on one thread is quicker than sharing the work.
const PARALLEL_FROM: usize = 1 << 16;
/// Bytes in a leaf of the digest: enough leaves to keep every core busy on one large embedding.
const LEAF: usize = 1 << 22;

/// Named tensors over one or more mapped files. Opening reads headers only; values are decoded when asked for.
#[derive(Debug)]
pub struct Tensors {
    files: Vec<(PathBuf, Bytes)>,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
    /// Set where the rows of each of so many heads are interleaved (GGUF's q and k) and have to be put back.
    interleaved: Option<usize>,
}

impl Tensors {
    /// Opens the safetensors of a Hugging Face folder: `model.safetensors`, else every shard that
    /// `model.safetensors.index.json` names.
    pub fn open_folder(folder: &Path) -> Result<Self> {
        let single = folder.join("model.safetensors");
        if fs::exists(&single) {
            return Self::open_safetensors(&[single]);
        }
        let index = folder.join("model.safetensors.index.json");
        if !fs::exists(&index) {
            return Error::file(folder)
                .expected("model.safetensors or model.safetensors.index.json")
                .found("neither")
                .help("weights in other forms (.bin, .pt) have to be converted to safetensors first")
                .err();
        }
        Self::open_sharded(folder, &index)
    }

    fn open_sharded(folder: &Path, index: &Path) -> Result<Self> {
        let json = read_json(index)?;
        let map = json["weight_map"].as_object();
        let map = map.ok_or_else(|| Error::file(index).field("`weight_map`").expected("an object").error())?;
        let mut shards = BTreeSet::new();
        for (tensor, shard) in map {
            let plain = shard.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
            let Some(name) = plain else {
                let field = format!("`weight_map`.`{tensor}`");
                return Error::file(index).field(field).expected("a file name").found(shard).err();
            };
            shards.insert(folder.join(name));
        }
        if let Some(absent) = shards.iter().find(|path| !fs::exists(path)) {
            let found = format!("no file {}", absent.display());
            return Error::file(index).expected("every shard it names").found(found).help("fetch it again").err();
        }
        let tensors = Self::open_safetensors(&shards.into_iter().collect::<Vec<_>>())?;
        match map.keys().find(|name| !tensors.entries.contains_key(*name)) {
            Some(name) => {
                let found = "no shard that holds it";
                Error::file(index).field(format!("tensor `{name}`")).expected("a shard").found(found).err()
            }
            None => Ok(tensors),
        }
    }

    /// Opens any list of safetensors files as one set; a name in two of them is an error.
    pub fn open_safetensors(paths: &[PathBuf]) -> Result<Self> {
        let mut files = Vec::new();
        for path in paths {
            files.push((path.clone(), Bytes::map(path)?));
        }
        Self::from_safetensors(files)
    }

    /// The same over bytes that are already there; the paths serve messages.
    pub fn from_safetensors(files: Vec<(PathBuf, Bytes)>) -> Result<Self> {
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        let mut metadata = BTreeMap::new();
        for (file, (path, bytes)) in files.iter().enumerate() {
            let header = safetensors_file::parse(path, bytes)?;
            metadata.extend(header.metadata);
            for t in header.tensors {
                let entry = Entry { file, dtype: t.dtype, shape: t.shape, range: t.range, interleaved: None };
                if let Some(other) = entries.insert(t.name.clone(), entry) {
                    let found = format!("another in {}", files[other.file].0.display());
                    let field = format!("tensor `{}`", t.name);
                    return Error::file(path).field(field).expected("the only one of this name").found(found).err();
                }
            }
        }
        Ok(Tensors { files, entries, metadata })
    }

    /// The weights of a GGUF under their transformers names. The order of q and k rows is undone as values
    /// are read.
    pub fn from_gguf(header: &GgufHeader, bytes: Bytes) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for tensor in header.tensors.iter().filter(|t| t.name != gguf_decoder::ROPE_FACTORS) {
            let name = gguf_decoder::hf_name(header, &tensor.name)
                .ok_or_else(|| gguf_decoder::unknown_name(header, tensor))?;
            entries.insert(name, gguf_entry(header, tensor)?);
        }
        let files = vec![(header.path().to_path_buf(), bytes)];
        Ok(Tensors { files, entries, metadata: BTreeMap::new() })
    }

    /// Every tensor's name, in byte order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The shape of a tensor, rows first.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.entry(name)?.shape)
    }

    /// How a tensor is stored.
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        Ok(self.entry(name)?.dtype)
    }

    /// The file a tensor lies in.
    pub fn file(&self, name: &str) -> Result<&Path> {
        Ok(&self.files[self.entry(name)?.file].0)
    }

    /// The text under `key` in the safetensors' `__metadata__`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// Values of all tensors together.
    pub fn parameter_count(&self) -> usize {
        self.entries.values().map(|entry| entry.count()).sum()
    }

    /// Bytes of all tensors together, as stored.
    pub fn stored_bytes(&self) -> usize {
        self.entries.values().map(|entry| entry.range.len()).sum()
    }

    /// Fails, naming file, tensor and both shapes, unless tensor `name` has `shape`.
    pub fn expect_shape(&self, name: &str, shape: &[usize]) -> Result<()> {
        let entry = self.entry(name)?;
        if entry.shape == shape {
            return Ok(());
        }
        let found = format!("{:?}", entry.shape);
        let complaint = self.complaint(entry, name).expected(format!("shape {shape:?}")).found(found);
        complaint.help("config.json and weights do not belong together: take both from one place").err()
    }

    /// A tensor's values as f32, row-major.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.entry(name)?.count()];
        self.read_f32_into(name, &mut values)?;
        Ok(values)
    }

    /// Decodes a tensor's values into `out`, which must have room for exactly them. Large tensors are shared among
    /// threads.
    pub fn read_f32_into(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let entry = self.entry(name)?;
        if out.len() != entry.count() {
            let expected = format!("room for {} values", entry.count());
            return self.complaint(entry, name).expected(expected).found(out.len()).err();
        }
        let Some((values, size)) = entry.dtype.block() else { return self.undecodable(entry, name) };
        let bytes = &self.files[entry.file].1[entry.range.clone()];
        // The unit of decoding: a row where rows move, otherwise whole blocks of whatever rows.
        let unit = match (entry.interleaved, entry.shape[..].split_first()) {
            (Some(_), Some((_, columns))) => columns.iter().product(),
            _ => (1 << 14).min(out.len()),
        };
        if unit == 0 {
            return Ok(());
        }
        let unit_bytes = unit / values * size;
        let decode = |(i, out): (usize, &mut [f32])| {
            let source = entry.interleaved.map_or(i, |heads| interleaved_row(i, entry.shape[0] / heads));
            let begin = source * unit_bytes;
            entry.dtype.decode(&bytes[begin..begin + out.len() / values * size], out);
        };
        match out.len() < PARALLEL_FROM {
            true => out.chunks_mut(unit).enumerate().for_each(decode),
            false => {
                let units = (PARALLEL_FROM / 4).div_ceil(unit);
                out.par_chunks_mut(unit).enumerate().with_min_len(units).for_each(decode)
            }
        }
        Ok(())
    }

    fn undecodable<T>(&self, entry: &Entry, name: &str) -> Result<T> {
        let complaint = self.complaint(entry, name).expected("F32, F16, BF16 or a GGUF quantisation");
        complaint.found(entry.dtype).help("convert the weights to one of these first").err()
    }

    /// Decodes the values of a tensor from position `start` on into all of `out`, on this thread.
    pub fn read_f32_range(&self, name: &str, start: usize, out: &mut [f32]) -> Result<()> {
        let entry = self.entry(name)?;
        if entry.dtype.block().is_none() {
            return self.undecodable(entry, name);
        }
        if start.checked_add(out.len()).is_none_or(|end| end > entry.count()) {
            let expected = format!("a range within {} values", entry.count());
            return self.complaint(entry, name).expected(expected).found(format!("{} from {start}", out.len())).err();
        }
        let bytes = &self.files[entry.file].1[entry.range.clone()];
        let (Some(heads), Some((rows, columns))) = (entry.interleaved, entry.shape.split_first()) else {
            decode_from(entry.dtype, bytes, start, out);
            return Ok(());
        };
        let columns = columns.iter().product::<usize>().max(1);
        let mut position = start;
        let mut rest = out;
        while !rest.is_empty() {
            let (row, column) = (position / columns, position % columns);
            let (part, others) = rest.split_at_mut((columns - column).min(rest.len()));
            decode_from(entry.dtype, bytes, interleaved_row(row, rows / heads) * columns + column, part);
            position += part.len();
            rest = others;
        }
        Ok(())
    }

    /// Lays some rows of a matrix into `out` as they are stored (see `formats/packed.rs`), which must have room for
    /// exactly them.
    pub fn read_packed(&self, name: &str, rows: Range<usize>, out: &mut [u32]) -> Result<()> {
        let entry = self.entry(name)?;
        let (&[height, width], Some((values, size))) = (&entry.shape[..], entry.dtype.block()) else {
            return self.undecodable(entry, name);
        };
        let words = entry.dtype.packed_words(width);
        let fits = entry.dtype.packs(width) && rows.end <= height && rows.len().checked_mul(words) == Some(out.len());
        if !fits {
            let expected = format!("a matrix whose rows {rows:?} are blocks of {} words", out.len());
            return self.complaint(entry, name).expected(expected).found(format!("{:?}", entry.shape)).err();
        }
        let (bytes, row_bytes) = (&self.files[entry.file].1[entry.range.clone()], width / values * size);
        for (row, out) in rows.zip(out.chunks_exact_mut(words)) {
            let source = entry.interleaved.map_or(row, |heads| interleaved_row(row, height / heads));
            entry.dtype.pack(&bytes[source * row_bytes..][..row_bytes], out);
        }
        Ok(())
    }

    /// Tells the system that a tensor will be read soon.
    pub fn prefetch(&self, name: &str) {
        if let Ok(entry) = self.entry(name) {
            self.files[entry.file].1.prefetch(entry.range.clone());
        }
    }

    /// Lets go of the pages of all files that reading has brought into memory; reading again brings them back.
    pub fn release(&self) {
        for (_, bytes) in &self.files {
            bytes.release();
        }
    }

    /// SHA-256 of the weights as stored, in hex. The hashed text is one line a tensor in name order,
    /// `name dtype [d0,d1] l0l1...`, where l_i is the hex SHA-256 of the i-th 4 MiB of its bytes: so all cores share
    /// the work, and how the tensors are spread over files does not matter. The same weights stored in another type
    /// or by GGUF's q/k order hash differently.
    pub fn digest(&self) -> String {
        let lines: Vec<String> = self.entries.par_iter().map(|(name, entry)| self.digest_line(name, entry)).collect();
        sha256(lines.concat())
    }

    fn digest_line(&self, name: &str, entry: &Entry) -> String {
        let bytes = &self.files[entry.file].1[entry.range.clone()];
        let leaves: Vec<String> = bytes.par_chunks(LEAF).map(sha256).collect();
        let shape: Vec<String> = entry.shape.iter().map(usize::to_string).collect();
        format!("{name} {} [{}] {}\n", entry.dtype, shape.join(","), leaves.concat())
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| {
            let first = self.files.first().map_or(Path::new("no file"), |(path, _)| path);
            let others = if self.files.len() > 1 { " (and the other shards)" } else { "" };
            let complaint = Error::at(format!("{}{others}", first.display()));
            let complaint = complaint.field(format!("tensor `{name}`")).expected("a tensor").found("none of this name");
            match Error::nearest(name, self.names()) {
                Some(near) => complaint.help(format!("the nearest name is `{near}`")).error(),
                None => complaint.help("config.json and weights do not belong together").error(),
            }
        })
    }

    fn complaint(&self, entry: &Entry, name: &str) -> crate::error::Complaint {
        Error::file(&self.files[entry.file].0).field(format!("tensor `{name}`"))
    }
}

impl Entry {
    /// The number of values; the readers have checked that it is that of the stored bytes, so it cannot overflow.
    fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Decodes values from `start` on, which may lie within a block.
fn decode_from(dtype: Dtype, bytes: &[u8], start: usize, out: &mut [f32]) {
    let Some((values, size)) = dtype.block() else { return };
    let mut block = start / values;
    let skip = start % values;
    let mut whole = [0.0; 256];
    let first = if skip > 0 { (values - skip).min(out.len()) } else { 0 };
    let (part, out) = out.split_at_mut(first);
    if skip > 0 {
        dtype.decode(&bytes[block * size..(block + 1) * size], &mut whole[..values]);
        part.copy_from_slice(&whole[skip..skip + first]);
        block += 1;
    }
    let (body, tail) = out.split_at_mut(out.len() / values * values);
    let end = block + body.len() / values;
    dtype.decode(&bytes[block * size..end * size], body);
    if !tail.is_empty() {
        dtype.decode(&bytes[end * size..(end + 1) * size], &mut whole[..values]);
        tail.copy_from_slice(&whole[..tail.len()]);
    }
}

/// Row `row` in transformers' order is which row of a GGUF's q or k? Within a head, transformers has the first halves
/// of all rotary pairs and then the second halves; llama.cpp has the pairs side by side.
fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
    head * head_dim + 2 * pair + half
}

fn gguf_entry(header: &GgufHeader, tensor: &GgufTensor) -> Result<Entry> {
    let interleaved = gguf_decoder::interleaved_heads(header, &tensor.name)?;
    let complaint = || Error::file(header.path()).field(format!("tensor `{}`", tensor.name));
    if let Some(heads) = interleaved {
        if !heads.checked_mul(2).is_some_and(|rows| tensor.shape[0].is_multiple_of(rows)) {
            let expected = format!("a multiple of 2 x {heads} heads as its rows");
            return complaint().expected(expected).found(format!("{:?}", tensor.shape)).err();
        }
        if tensor.shape.len() == 1 && !matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16) {
            return complaint().expected("an unquantised bias").found(tensor.dtype).err();
        }
    }
    let (dtype, shape, range) = (tensor.dtype, tensor.shape.clone(), tensor.range.clone());
    Ok(Entry { file: 0, dtype, shape, range, interleaved })
}
