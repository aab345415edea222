//! What goes to the terminal besides progress: results to stdout, the log to stderr.

use super::progress;
use crate::{Error, Result};
use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::Serialize;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicU8, Ordering};

/// Writes text to stdout at once. A reader that has gone away, as `head` does, is no error.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::io("write", "standard output")(error)),
        _ => Ok(()),
    }
}

/// Writes a value to stdout as indented JSON.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::internal(e.to_string()))?;
    print(&format!("{text}\n"))
}

/// Sends the log to stderr. This crate's warnings always show; `verbose` 1 adds its information and other crates'
/// warnings, 2 everything.
pub fn start_log(verbose: u8) {
    static LOGGER: Stderr = Stderr { verbose: AtomicU8::new(0) };
    LOGGER.verbose.store(verbose, Ordering::Relaxed);
    // An embedding program that has its own logger keeps it.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level([LevelFilter::Warn, LevelFilter::Info, LevelFilter::Debug][usize::from(verbose.min(2))]);
    }
}

struct Stderr {
    verbose: AtomicU8,
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let own = metadata.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"));
        // Drivers and loaders are noisy, and what matters of their errors comes back as errors of this crate.
        let most = match (self.verbose.load(Ordering::Relaxed), own) {
            (0, false) => return false,
            (0, true) | (1, false) => Level::Warn,
            (1, true) => Level::Info,
            _ => Level::Debug,
        };
        metadata.level() <= most
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = match record.level() {
                Level::Error => "error",
                Level::Warn => "warning",
                Level::Info => "info",
                Level::Debug | Level::Trace => "debug",
            };
            progress::say(&format!("{level}: {}", record.args()));
        }
    }

    fn flush(&self) {}
}
