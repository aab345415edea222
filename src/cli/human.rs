//! Numbers as people read them.

/// Bytes in decimal units: `532 B`, `98.4 MB`.
pub fn bytes(n: u64) -> String {
    scaled(n, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

pub use crate::distill::memory::binary;

/// A count rounded: `134.5 M`.
pub fn short(n: u64) -> String {
    scaled(n, 1000.0, &["", "k", "M", "B", "T", "P", "E"]).trim_end().to_string()
}

fn scaled(n: u64, step: f64, units: &[&str]) -> String {
    let mut value = n as f64;
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let whole = value.fract() < 1e-9 || value >= 999.5;
    if whole { format!("{value:.0} {}", units[unit]) } else { format!("{value:.1} {}", units[unit]) }
}

/// A count in full: `49,152`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A span of time: `42 s`, `3 min 05 s`, `2 h 10 min`.
pub fn duration(seconds: f64) -> String {
    let whole = if seconds.is_finite() { seconds.max(0.0).round() as u64 } else { 0 };
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A short span of time: `12.3 us`, `4.56 ms`, `1.20 s`.
pub fn brief(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} us", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(["0 B", "999 B", "1 kB", "98.4 MB"], [0, 999, 1000, 98_362_432].map(bytes).each_ref().map(|s| &**s));
        assert_eq!((short(134_515_008), short(12)), ("134.5 M".into(), "12".into()));
        assert_eq!((count(0), count(999), count(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
        assert_eq!(duration(59.4), "59 s");
        assert_eq!(duration(185.0), "3 min 05 s");
        assert_eq!(duration(7_825.0), "2 h 10 min");
        assert_eq!(duration(f64::INFINITY), "0 s");
        assert_eq!((brief(1.23e-5), brief(4.56e-3)), ("12.3 us".into(), "4.56 ms".into()));
        assert!(bytes(u64::MAX).ends_with(" EB"));
    }
}
