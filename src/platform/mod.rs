//! What an operating system and a browser do differently, behind the same names: files, threads, and what a process has used. A
//! browser has no files, so there [`fs`] is a tree in memory, which whoever embeds the crate fills and empties; and one
//! thread, so that `parallel` is plain loops.

#[cfg(not(target_family = "wasm"))]
pub mod cache;
#[cfg_attr(not(target_family = "wasm"), path = "disk.rs")]
#[cfg_attr(target_family = "wasm", path = "browser.rs")]
pub mod fs;
pub(crate) mod parallel;
pub mod process;
#[cfg(target_family = "wasm")]
pub mod stored;
#[cfg(target_family = "wasm")]
mod turn;
#[cfg(target_family = "wasm")]
pub(crate) use turn::{sleep, turn};
