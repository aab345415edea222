//! potstill distils small language models wherever there is a GPU, a browser or just a CPU.

#![warn(missing_docs)]

#[cfg(all(feature = "cli", not(target_family = "wasm")))]
pub mod cli;
pub mod data;
pub mod device;
mod digest;
pub mod distill;
#[cfg(not(target_family = "wasm"))]
pub mod doctor;
pub mod error;
pub mod formats;
pub mod generate;
pub mod graph;
#[cfg(not(target_family = "wasm"))]
pub mod inspect;
pub mod losses;
pub mod merge;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod platform;
pub mod random;
#[cfg(not(target_family = "wasm"))]
pub mod score;
#[cfg(any(not(target_family = "wasm"), feature = "oracle"))]
pub mod selftest;
pub mod shards;
#[cfg(feature = "spectrum")]
pub mod spectrum;
#[cfg(not(target_family = "wasm"))]
pub mod tuning;
#[cfg(target_family = "wasm")]
pub mod web;
mod yaml;

pub use error::{Error, Result};
