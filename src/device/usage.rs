//! What a device was made to do, counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts since a device was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes allocated now.
    pub allocated: u64,
    /// The most bytes that ever were.
    pub peak: u64,
    /// Bytes written from the host.
    pub uploaded: u64,
    /// Bytes read back to it.
    pub read_back: u64,
    /// Kernel launches; 0 on the CPU.
    pub dispatches: u64,
    /// Batches of them handed to the driver.
    pub submissions: u64,
    /// Microseconds the host spent encoding and submitting them, waits left out.
    pub submit_micros: u64,
}

/// The counters behind [`Usage`]; shared by a device and its buffers.
#[derive(Default)]
pub(crate) struct Counters {
    allocated: AtomicU64,
    peak: AtomicU64,
    pub uploaded: AtomicU64,
    pub read_back: AtomicU64,
    pub dispatches: AtomicU64,
    pub submissions: AtomicU64,
    pub submit_micros: AtomicU64,
}

pub(crate) type Ledger = Arc<Counters>;

impl Counters {
    pub fn allocate(&self, bytes: u64) {
        let now = self.allocated.fetch_add(bytes, Relaxed) + bytes;
        self.peak.fetch_max(now, Relaxed);
    }

    pub fn free(&self, bytes: u64) {
        self.allocated.fetch_sub(bytes, Relaxed);
    }

    pub fn usage(&self) -> Usage {
        Usage {
            allocated: self.allocated.load(Relaxed),
            peak: self.peak.load(Relaxed),
            uploaded: self.uploaded.load(Relaxed),
            read_back: self.read_back.load(Relaxed),
            dispatches: self.dispatches.load(Relaxed),
            submissions: self.submissions.load(Relaxed),
            submit_micros: self.submit_micros.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::device::Device;

    #[test]
    fn what_goes_in_and_out_is_counted_and_the_peak_stays() {
        let device = Device::cpu();
        let buffer = device.alloc("a", 1000).unwrap();
        device.write(&buffer.whole(), &[0; 400]).unwrap();
        pollster::block_on(device.read_u32(&buffer.whole())).unwrap();
        drop(buffer);
        let small = device.alloc("b", 8).unwrap();
        let usage = device.usage();
        assert_eq!((usage.allocated, usage.peak, usage.uploaded, usage.read_back), (8, 1000, 400, 1000));
        assert_eq!((usage.dispatches, usage.submissions), (0, 0));
        drop(small);
    }
}
