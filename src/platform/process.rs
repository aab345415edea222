//! What the system says of this process.

use std::time::Duration;

/// The largest resident size of this process so far, in bytes (Linux; elsewhere `None`).
pub fn peak_resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Processor time of all threads of this process so far, to a hundredth of a second (Linux; elsewhere `None`). It hardly
/// depends on what else the machine does, which wall time does.
pub fn processor_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Fields 14 and 15 (user, system); the second, the program's name, may hold anything but ends with the last `)`.
    let (_, fields) = text.rsplit_once(')')?;
    let mut ticks = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    // Linux tells programs of hundredths of a second, whatever its own clock is.
    Some(Duration::from_millis(10 * (ticks.next()?.ok()? + ticks.next()?.ok()?)))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn work_takes_processor_time() {
        let before = processor_time().unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(30) {
            if processor_time().unwrap() >= before + Duration::from_millis(50) {
                break;
            }
        }
        assert!(processor_time().unwrap() >= before + Duration::from_millis(50), "no progress in 30 s");
        assert!(peak_resident().unwrap() > 1 << 20);
    }
}
