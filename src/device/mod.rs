//! Where work runs: a GPU through wgpu, or the CPU. Both offer the same buffers; nothing above this room
//! sees a wgpu type.

#[cfg(any(target_family = "wasm", test))]
pub(crate) mod bare;
mod bf16;
mod caps;
pub mod cpu;
mod fast;
pub mod gemm;
mod gpu;
mod kernel;
pub mod real;
mod select;
mod usage;
mod words;

pub use caps::{Caps, Cooperative, Precision, Tiles};
pub use gpu::{Gpu, Recorded};
pub use kernel::{Bind, Dispatch, Launch, Shader, grid};
pub use real::Real;
pub use select::{AdapterSummary, Choice, adapters};
pub(crate) use usage::Ledger;
pub use usage::Usage;
pub(crate) use words::Words;

use crate::{Error, Result};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, RwLock};

/// A place to run: the CPU or one GPU.
#[derive(Clone)]
pub enum Device {
    /// The ops' Rust twins over all cores.
    Cpu(Arc<cpu::Cpu>),
    /// The ops' WGSL kernels.
    Gpu(Arc<Gpu>),
}

/// One allocation on a device. Cloning shares it; the memory goes back with the last clone.
#[derive(Clone)]
pub struct Buffer {
    pub(crate) memory: Memory,
    bytes: u64,
    _lease: Arc<Lease>,
}

#[derive(Clone)]
pub(crate) enum Memory {
    Cpu(Arc<RwLock<Words>>),
    Gpu(gpu::Raw),
}

/// Takes the allocation out of the ledger when the last clone of a buffer goes.
struct Lease {
    ledger: Ledger,
    bytes: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.ledger.free(self.bytes);
    }
}

/// A range of a [`Buffer`], in bytes.
#[derive(Clone)]
pub struct Slice {
    /// The allocation.
    pub buffer: Buffer,
    /// Where the range starts; a multiple of [`Slice::ALIGN`] inside shared buffers.
    pub offset: u64,
    /// How long it is; a multiple of 4.
    pub bytes: u64,
}

impl Slice {
    /// Offsets of bindings inside a buffer are multiples of this many bytes (WebGPU's default limit).
    pub const ALIGN: u64 = 256;
}

impl Buffer {
    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The whole buffer as a slice.
    pub fn whole(&self) -> Slice {
        Slice { buffer: self.clone(), offset: 0, bytes: self.bytes }
    }
}

impl Device {
    /// The CPU device.
    pub fn cpu() -> Device {
        Device::Cpu(Arc::new(cpu::Cpu::default()))
    }

    /// A name for logs and reports.
    pub fn name(&self) -> String {
        match self {
            Device::Cpu(cpu) => cpu.name(),
            Device::Gpu(gpu) => gpu.name(),
        }
    }

    /// Limits and features that choose kernel variants and splits.
    pub fn caps(&self) -> &Caps {
        match self {
            Device::Cpu(cpu) => &cpu.caps,
            Device::Gpu(gpu) => &gpu.caps,
        }
    }

    /// Refuses a precision that this device has no instructions for. `what` names whoever asks for it.
    pub fn check_precision(&self, precision: Precision, what: &str) -> Result<()> {
        let (fits, expected) = match precision {
            Precision::F32 => (true, ""),
            Precision::Bf16 => (
                self.caps().bf16,
                "a device with bfloat16 products: a CPU with AVX512-BF16 (AMD since Zen 4, Intel since Cooper Lake)",
            ),
            Precision::F16 => (self.caps().f16, "a GPU whose shaders have 16-bit floats (`shader-f16`)"),
        };
        if fits {
            return Ok(());
        }
        let complaint = Error::at(what).expected(expected).found(self.name());
        complaint.help("leave it out: products are then f32").err()
    }

    /// Bytes allocated on this device now.
    pub fn allocated(&self) -> u64 {
        self.usage().allocated
    }

    /// What this device was made to do so far.
    pub fn usage(&self) -> Usage {
        self.ledger().usage()
    }

    /// Whether the device is gone (a driver's crash or reset, a browser's eviction): whoever has state on it opens
    /// another and goes on from what was saved.
    pub fn is_lost(&self) -> bool {
        matches!(self, Device::Gpu(gpu) if gpu.is_lost())
    }

    /// Destroys a GPU as a crash of its driver would: how tests see that a run survives it. Nothing on a CPU.
    pub fn lose(&self) {
        if let Device::Gpu(gpu) = self {
            gpu.lose();
        }
    }

    fn ledger(&self) -> &Ledger {
        match self {
            Device::Cpu(cpu) => &cpu.ledger,
            Device::Gpu(gpu) => &gpu.ledger,
        }
    }

    /// Allocates `bytes` (rounded up to 4) of zeros. `label` names the buffer in errors.
    pub fn alloc(&self, label: &str, bytes: u64) -> Result<Buffer> {
        let bytes = bytes.max(4).next_multiple_of(4);
        if bytes > self.caps().max_buffer {
            return Err(Error::device(
                format!("`{label}` needs {bytes} bytes in one buffer, the limit here is {}", self.caps().max_buffer),
                "use a smaller batch or sequence length, or another device",
            ));
        }
        let memory = match self {
            Device::Cpu(_) => cpu::alloc(label, bytes)?,
            Device::Gpu(gpu) => Memory::Gpu(gpu.alloc(label, bytes)?),
        };
        let ledger = self.ledger().clone();
        ledger.allocate(bytes);
        Ok(Buffer { memory, bytes, _lease: Arc::new(Lease { ledger, bytes }) })
    }

    /// Writes bytes at the start of a slice; they are there before any work submitted later.
    pub fn write(&self, slice: &Slice, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > slice.bytes || !bytes.len().is_multiple_of(4) {
            return Err(Error::internal(format!("writing {} bytes into a slice of {}", bytes.len(), slice.bytes)));
        }
        self.ledger().uploaded.fetch_add(bytes.len() as u64, Relaxed);
        match (self, &slice.buffer.memory) {
            (Device::Cpu(_), Memory::Cpu(words)) => cpu::write(words, slice.offset, bytes),
            (Device::Gpu(gpu), Memory::Gpu(raw)) => gpu.write(raw, slice.offset, bytes),
            _ => Err(Error::internal("a buffer of another device")),
        }
    }

    /// Copies `from` to `to`, as long and not touching it, in the order of all work.
    pub fn copy(&self, from: &Slice, to: &Slice) -> Result<()> {
        if from.bytes != to.bytes {
            return Err(Error::internal(format!("copying {} bytes into a slice of {}", from.bytes, to.bytes)));
        }
        match (self, &from.buffer.memory, &to.buffer.memory) {
            (Device::Cpu(_), Memory::Cpu(source), Memory::Cpu(target)) => {
                let words = cpu::read(source, from.offset, from.bytes)?;
                cpu::write(target, to.offset, bytemuck::cast_slice(&words))
            }
            (Device::Gpu(gpu), Memory::Gpu(source), Memory::Gpu(target)) => {
                gpu.copy([source, target], [from.offset, to.offset], from.bytes)
            }
            _ => Err(Error::internal("a buffer of another device")),
        }
    }

    /// Waits until little work is queued. Natively submitting waits by itself; in a browser, whoever submits replay
    /// after replay without reading back must await this between them, or the queue grows without bound.
    pub async fn catch_up(&self) -> Result<()> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Gpu(gpu) => gpu.catch_up().await,
        }
    }

    /// Reads a slice back as words. With [`Device::catch_up`] the asynchronous edge: in a browser
    /// nothing else waits.
    pub async fn read_u32(&self, slice: &Slice) -> Result<Vec<u32>> {
        self.ledger().read_back.fetch_add(slice.bytes, Relaxed);
        match (self, &slice.buffer.memory) {
            (Device::Cpu(_), Memory::Cpu(words)) => cpu::read(words, slice.offset, slice.bytes),
            (Device::Gpu(gpu), Memory::Gpu(raw)) => gpu.read(raw, slice.offset, slice.bytes).await,
            _ => Err(Error::internal("a buffer of another device")),
        }
    }

    /// Reads a slice of f32 values back.
    pub async fn read_f32(&self, slice: &Slice) -> Result<Vec<f32>> {
        // The same memory under another type: a large tensor is not copied twice.
        Ok(bytemuck::cast_vec(self.read_u32(slice).await?))
    }
}
