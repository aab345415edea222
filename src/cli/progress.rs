//! How far a long run is: a bar where stderr is a terminal, else a line every ten seconds.

use super::human;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Between changes of a bar.
const BAR_EVERY: Duration = Duration::from_millis(100);

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Writes a line to stderr, above any bar.
pub fn say(line: &str) {
    BARS.suspend(|| {
        // With stderr closed there is nobody to tell.
        let _ = writeln!(io::stderr(), "{line}");
    });
}

/// The progress of one run, in units of its own (tokens, steps, bytes).
pub struct Meter {
    what: String,
    unit: &'static str,
    total: Option<u64>,
    done: u64,
    /// What an earlier run had done: it does not count for the speed.
    begun_at: u64,
    written: u64,
    note: String,
    started: Instant,
    shown: Instant,
    bar: Option<ProgressBar>,
}

impl Meter {
    /// Starts at `done` of `total` units; an unknown total shows no time left. The unit `bytes` prints as sizes.
    pub fn new(what: &str, unit: &'static str, done: u64, total: Option<u64>) -> Meter {
        let bar = io::stderr().is_terminal().then(|| {
            let template = if total.is_some() { "{prefix} [{bar:24}] {msg}" } else { "{prefix} {spinner} {msg}" };
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            bar.set_style(style.progress_chars("=> "));
            bar.set_prefix(what.to_string());
            BARS.add(bar)
        });
        let now = Instant::now();
        Meter {
            what: what.to_string(),
            unit,
            total,
            done,
            begun_at: done,
            written: 0,
            note: String::new(),
            started: now,
            shown: now,
            bar,
        }
    }

    /// Units done, those of an earlier run included.
    pub fn set(&mut self, done: u64) {
        self.done = done;
        let wait = if self.bar.is_some() { BAR_EVERY } else { LINE_EVERY };
        if self.shown.elapsed() >= wait {
            self.show();
        }
    }

    /// Starts the clock anew if no unit is done yet: what comes before the first says nothing about speed.
    pub fn begin(&mut self) {
        if self.done == self.begun_at {
            (self.started, self.shown) = (Instant::now(), Instant::now());
        }
    }

    /// Bytes written so far; shown once there are any.
    pub fn written(&mut self, bytes: u64) {
        self.written = bytes;
    }

    /// What else to show: `loss 3.21`.
    pub fn note(&mut self, note: impl Into<String>) {
        self.note = note.into();
    }

    /// Takes the bar away and leaves a line that sums the run up.
    pub fn finish(mut self) {
        self.remove_bar();
        let seconds = self.started.elapsed().as_secs_f64();
        say(&format!("{}: {} in {}", self.what, self.line(seconds), human::duration(seconds)));
    }

    fn show(&mut self) {
        self.shown = Instant::now();
        let line = self.line(self.started.elapsed().as_secs_f64());
        match &self.bar {
            Some(bar) => {
                bar.set_message(line);
                bar.set_position(self.done);
            }
            None => say(&format!("{}: {line}", self.what)),
        }
    }

    fn amount(&self, n: u64) -> String {
        if self.unit == "bytes" { human::bytes(n) } else { human::count(n) }
    }

    /// `12,288 of 100,000 tokens, 3,211 tokens/s, 27 s left, 1.2 MB written, loss 3.21`.
    fn line(&self, seconds: f64) -> String {
        let unit = if self.unit == "bytes" { String::new() } else { format!(" {}", self.unit) };
        let mut line = match self.total {
            Some(total) if self.done < total => format!("{} of {}{unit}", self.amount(self.done), self.amount(total)),
            _ => format!("{}{unit}", self.amount(self.done)),
        };
        let speed = self.done.saturating_sub(self.begun_at) as f64 / seconds.max(1e-3);
        if speed > 0.0 {
            let rate = if speed < 10.0 { format!("{speed:.1}") } else { self.amount(speed as u64) };
            line.push_str(&format!(", {rate}{unit}/s"));
        }
        if let Some(left) = self.total.and_then(|total| total.checked_sub(self.done)).filter(|left| *left > 0)
            && speed > 0.0
        {
            line.push_str(&format!(", {} left", human::duration(left as f64 / speed)));
        }
        if self.written > 0 {
            line.push_str(&format!(", {} written", human::bytes(self.written)));
        }
        if !self.note.is_empty() {
            line.push_str(&format!(", {}", self.note));
        }
        line
    }

    fn remove_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            BARS.remove(&bar);
        }
    }
}

impl Drop for Meter {
    /// A run that failed leaves no bar behind to write its error over.
    fn drop(&mut self) {
        self.remove_bar();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_speed_and_time_left_without_what_was_done_before() {
        let mut meter = Meter::new("capture", "tokens", 1_000, Some(13_000));
        meter.done = 3_000;
        meter.written(1_500_000);
        meter.note("loss 3.21");
        let speed = "200 tokens/s, 50 s left";
        assert_eq!(meter.line(10.0), format!("3,000 of 13,000 tokens, {speed}, 1.5 MB written, loss 3.21"));
        let mut unknown = Meter::new("fetching", "bytes", 0, None);
        assert_eq!(unknown.line(0.0), "0 B");
        unknown.done = 8_000_000;
        assert_eq!(unknown.line(2.0), "8 MB, 4 MB/s");
    }

    #[test]
    fn the_clock_starts_anew_until_the_first_unit_is_done() {
        let early = Instant::now() - Duration::from_secs(60);
        let mut meter = Meter::new("distill", "steps", 20, Some(100));
        meter.started = early;
        meter.begin();
        assert!(meter.started > early);
        (meter.started, meter.done) = (early, 30);
        meter.begin();
        assert_eq!(meter.started, early);
        assert_eq!(meter.line(10.0), "30 of 100 steps, 1.0 steps/s, 1 min 10 s left");
    }
}
