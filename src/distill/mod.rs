//! Distillation: what to do ([`recipe`], [`schedule`]), recording a teacher that runs here ([`capture`]) or is served
//! elsewhere (`endpoint`), training a student ([`setup`], [`step`], [`trainer`], [`run`]), measuring it ([`evaluate`],
//! [`compare`]), what happened ([`metrics`], [`report`], [`card`]) and how to go on after a stop ([`checkpoint`]).

pub mod adapter;
pub mod batch;
#[cfg(not(target_family = "wasm"))]
pub mod capture;
#[cfg(not(target_family = "wasm"))]
mod capture_states;
pub mod card;
pub mod checkpoint;
#[cfg(not(target_family = "wasm"))]
mod codec_settings;
#[cfg(not(target_family = "wasm"))]
pub mod compare;
#[cfg(feature = "parquet")]
pub mod convert;
pub mod corpus;
#[cfg(not(target_family = "wasm"))]
mod distillkit;
#[cfg(feature = "endpoint")]
pub mod endpoint;
pub mod evaluate;
pub mod fidelity;
#[cfg(not(target_family = "wasm"))]
mod folder;
pub mod hidden;
pub mod layer_map;
#[cfg(not(target_family = "wasm"))]
mod lineage;
pub mod memory;
pub mod metrics;
mod rates;
pub mod recipe;
pub mod report;
#[cfg(not(target_family = "wasm"))]
pub mod run;
pub mod samples;
pub mod schedule;
pub mod setup;
pub mod step;
pub mod student;
pub(crate) mod svg;
mod taid;
mod teacher;
pub mod teacher_rows;
pub mod teaching;
pub mod terms;
pub mod trained;
pub mod trainer;

#[cfg(not(target_family = "wasm"))]
pub use capture::{CaptureOptions, Progress, capture};
pub use recipe::Recipe;
#[cfg(not(target_family = "wasm"))]
pub use run::{Event, Outcome, distill};
