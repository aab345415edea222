//! The CPU's buffers: zeroed 32-bit words, on huge pages where the system has some to give.

use crate::{Error, Result};
use std::ops::{Deref, DerefMut};

/// A buffer's memory.
pub(crate) struct Words(Inner);

enum Inner {
    Heap(Vec<u32>),
    #[cfg(target_os = "linux")]
    Mapped(memmap2::MmapMut),
}

impl Words {
    /// `count` zeros. Memory counts once it is used.
    pub fn zeros(label: &str, count: usize) -> Result<Words> {
        #[cfg(target_os = "linux")]
        if let Some(words) = Words::mapped(count) {
            return Ok(words);
        }
        let mut memory: Vec<u32> = Vec::new();
        // `try_reserve` first, so that a refusal by the system is an error and not an abort.
        memory.try_reserve_exact(count).map_err(|_| {
            let bytes = 4 * count;
            Error::device(format!("no memory for `{label}` ({bytes} bytes)"), "use a smaller batch, model or context")
        })?;
        drop(memory);
        Ok(Words(Inner::Heap(vec![0u32; count])))
    }

    /// Large buffers in pages of 2 MiB: a training step walks through gigabytes of them, and looks up 500 times fewer
    /// addresses. `None` where that is not to be had.
    #[cfg(target_os = "linux")]
    fn mapped(count: usize) -> Option<Words> {
        const LARGE: usize = 4 << 20;
        let bytes = count.checked_mul(4).filter(|&bytes| bytes >= LARGE)?;
        let map = memmap2::MmapMut::map_anon(bytes).ok()?;
        // A kernel without huge pages says so; the memory is as good.
        map.advise(memmap2::Advice::HugePage).ok();
        Some(Words(Inner::Mapped(map)))
    }
}

impl Deref for Words {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        match &self.0 {
            Inner::Heap(words) => words,
            #[cfg(target_os = "linux")]
            Inner::Mapped(map) => bytemuck::cast_slice(map),
        }
    }
}

impl DerefMut for Words {
    fn deref_mut(&mut self) -> &mut [u32] {
        match &mut self.0 {
            Inner::Heap(words) => words,
            #[cfg(target_os = "linux")]
            Inner::Mapped(map) => bytemuck::cast_slice_mut(map),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_buffers_are_zeros_that_can_be_written() {
        for count in [0, 1, 1 << 20, (1 << 20) + 1] {
            let mut words = Words::zeros("test", count).unwrap();
            assert!(words.len() == count && words.iter().all(|&word| word == 0));
            words.iter_mut().for_each(|word| *word = 7);
            assert!(words.iter().all(|&word| word == 7));
        }
    }

    #[test]
    fn more_than_there_can_be_is_an_error() {
        let error = Words::zeros("everything", usize::MAX / 8).err().unwrap().to_string();
        assert!(error.contains("`everything`"), "{error}");
    }
}
