//! All integration tests, as one program: each file below is a module of it, so that the crate and its libraries are
//! linked once. `cargo test --release --test suite errors::` runs one of them.

mod common;

mod card;
mod cases;
mod checkpoint;
mod cli;
mod convert;
mod convert_training;
mod data;
mod devices;
mod end_to_end;
mod endpoint;
mod errors;
mod foreign;
mod formats;
mod frozen;
mod hidden;
mod hub;
mod kill;
mod limits;
mod lora;
mod losses;
mod masks;
mod memory;
mod merge;
mod optimisers;
mod packing;
mod parity;
mod plan;
mod recipe;
mod report;
mod smollm2;
mod spectrum;
mod students;
mod teachers;
mod terms;
