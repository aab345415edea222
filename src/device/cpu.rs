//! The CPU as a device: buffers are 32-bit words, work runs in all of the machine's threads.

use super::{Caps, Ledger, Memory, Words, bf16};
use crate::platform::parallel::current_num_threads;
use crate::{Error, Result};
use std::sync::{Arc, RwLock};

/// The CPU device.
pub struct Cpu {
    pub(crate) caps: Caps,
    pub(crate) ledger: Ledger,
}

impl Default for Cpu {
    fn default() -> Self {
        let bf16 = bf16::supported();
        let unlimited = Caps { max_binding: u64::MAX, max_buffer: u64::MAX, bf16, ..Caps::webgpu() };
        Cpu { caps: unlimited, ledger: Ledger::default() }
    }
}

impl Cpu {
    pub(crate) fn name(&self) -> String {
        match current_num_threads() {
            1 => "CPU (1 thread)".to_owned(),
            threads => format!("CPU ({threads} threads)"),
        }
    }
}

pub(crate) fn alloc(label: &str, bytes: u64) -> Result<Memory> {
    Ok(Memory::Cpu(Arc::new(RwLock::new(Words::zeros(label, (bytes / 4) as usize)?))))
}

pub(crate) fn write(words: &RwLock<Words>, offset: u64, bytes: &[u8]) -> Result<()> {
    let mut words = words.write().map_err(|_| poisoned())?;
    let start = (offset / 4) as usize;
    let target = words.get_mut(start..start + bytes.len() / 4).ok_or_else(|| Error::internal("write past a buffer"))?;
    bytemuck::cast_slice_mut::<u32, u8>(target).copy_from_slice(bytes);
    Ok(())
}

pub(crate) fn read(words: &RwLock<Words>, offset: u64, bytes: u64) -> Result<Vec<u32>> {
    let words = words.read().map_err(|_| poisoned())?;
    let start = (offset / 4) as usize;
    let source = words.get(start..start + (bytes / 4) as usize).ok_or_else(|| Error::internal("read past a buffer"))?;
    Ok(source.to_vec())
}

pub(crate) fn poisoned() -> Error {
    Error::internal("an earlier operation panicked while it held a buffer")
}
