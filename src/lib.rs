//! potstill distils small language models wherever there is a GPU, a browser or just a CPU.

#![warn(missing_docs)]

#[cfg(feature = "cli")]
pub mod cli;
pub mod data;
pub mod device;
pub mod distill;
pub mod doctor;
pub mod error;
pub mod formats;
pub mod generate;
pub mod graph;
pub mod inspect;
pub mod losses;
pub mod merge;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod random;
pub mod score;
pub mod selftest;
pub mod shards;
mod yaml;

pub use error::{Error, Result};
