//! Whether a run fits, before it allocates anything.

use crate::device::Device;
use crate::{Error, Result};
use std::fmt;

/// Planned bytes of a run by what they are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// The student's weights.
    pub parameters: u64,
    /// Gradients and the optimiser's moments.
    pub optimiser: u64,
    /// A live teacher's weights.
    pub teacher: u64,
    /// Activations and chunks of logits: the plans' scratch.
    pub activations: u64,
    /// Batches, teacher records, outputs.
    pub inputs: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.parameters + self.optimiser + self.teacher + self.activations + self.inputs
    }
}

/// Bytes in binary units, for limits and memory: `128 MiB`, `1.5 GiB`.
pub fn binary(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (bytes.max(1).ilog2() / 10) as usize;
    let value = bytes as f64 / (1u64 << (10 * unit)) as f64;
    if value.fract() == 0.0 { format!("{value:.0} {}", UNITS[unit]) } else { format!("{value:.1} {}", UNITS[unit]) }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (parameters {}", binary(self.total()), binary(self.parameters))?;
        for (name, bytes) in [
            ("optimiser", self.optimiser),
            ("teacher", self.teacher),
            ("activations", self.activations),
            ("inputs and outputs", self.inputs),
        ] {
            if bytes > 0 {
                write!(f, ", {name} {}", binary(bytes))?;
            }
        }
        write!(f, ")")
    }
}

/// Bytes that can be had on a device, where the system says: the CPU's free memory on Linux. A GPU does not tell;
/// there an allocation that fails is an error of its own.
pub fn available(device: &Device) -> Option<u64> {
    if !matches!(device, Device::Cpu(_)) {
        return None;
    }
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Refuses a run of `planned` bytes where `available` are to be had, naming the first of `remedies` (a change of the
/// recipe and the bytes it would then need, computed only when asked for) that fits.
pub fn check(
    planned: Memory,
    available: Option<u64>,
    remedies: impl IntoIterator<Item = (String, Result<Memory>)>,
) -> Result<()> {
    let Some(available) = available.filter(|bytes| *bytes < planned.total()) else { return Ok(()) };
    let fits = |(change, memory): (String, Result<Memory>)| {
        let bytes = memory.ok()?.total();
        (bytes <= available).then(|| format!("`{change}` needs {}", binary(bytes)))
    };
    let help = remedies.into_iter().find_map(fits);
    Error::at("this run")
        .field("memory")
        .expected(format!("at most {}, which is free", binary(available)))
        .found(format!("a plan of {planned}"))
        .help(help.unwrap_or_else(|| "take a smaller student, or free some memory".into()))
        .err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_as_people_write_them() {
        let read = [0, 1023, 16 << 10, 128 << 20, 3 << 29].map(binary);
        assert_eq!(read, ["0 B", "1023 B", "16 KiB", "128 MiB", "1.5 GiB"]);
        assert_eq!(binary(u64::MAX), "16 EiB");
    }

    #[test]
    fn a_plan_that_does_not_fit_is_refused_with_the_first_remedy_that_does() {
        let of = |activations| Memory { activations, ..Memory::default() };
        let remedies = [("a: 1".to_owned(), Ok(of(3 << 30))), ("b: 2".to_owned(), Ok(of(1 << 30)))];
        let error = check(of(4 << 30), Some(2 << 30), remedies).unwrap_err().to_string();
        assert!(error.contains("`b: 2` needs 1 GiB") && error.contains("2 GiB"), "{error}");
        assert!(check(of(1 << 30), Some(2 << 30), []).is_ok());
        assert!(check(of(1 << 40), None, []).is_ok());
    }
}
