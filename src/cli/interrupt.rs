//! Ctrl-C: the first asks the running library call to stop at the next safe place, the second ends the process.

use super::progress;
use crate::{Error, Result};
use std::ops::ControlFlow;
use std::process;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);
static INSTALLED: Once = Once::new();

/// Listens to Ctrl-C from here on. For commands whose library call asks [`check`]; others are ended by the system.
pub fn listen() {
    INSTALLED.call_once(|| {
        let listening = ctrlc::set_handler(|| {
            if STOP.swap(true, Ordering::Relaxed) {
                process::exit(130);
            }
            progress::say("stopping at the next safe place; Ctrl-C again stops at once");
        });
        if let Err(error) = listening {
            log::warn!("cannot listen to Ctrl-C: {error}");
        }
    });
}

/// `Break` after a Ctrl-C: what a callback returns that answers with a flow.
pub fn flow() -> ControlFlow<()> {
    if STOP.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// [`Error::Cancelled`] after a Ctrl-C: what a progress callback returns.
pub fn check() -> Result<()> {
    if STOP.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
}
