//! Distillation: what to do ([`recipe`], [`schedule`]), recording a teacher that runs here ([`capture`]) or is served
//! elsewhere (`endpoint`), training a student ([`setup`], [`step`], [`trainer`], [`run`]), measuring it ([`evaluate`],
//! [`compare`]), what happened ([`metrics`], [`report`], [`card`]) and how to go on after a stop ([`checkpoint`]).

mod adapter;
pub mod batch;
pub mod capture;
mod capture_states;
pub mod card;
pub mod checkpoint;
mod codec_settings;
pub mod compare;
#[cfg(feature = "parquet")]
pub mod convert;
pub mod corpus;
mod distillkit;
#[cfg(feature = "endpoint")]
pub mod endpoint;
pub mod evaluate;
pub mod fidelity;
mod folder;
pub mod hidden;
pub mod layer_map;
mod lineage;
pub mod memory;
pub mod metrics;
mod rates;
pub mod recipe;
pub mod report;
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

pub use capture::{CaptureOptions, Progress, capture};
pub use recipe::Recipe;
pub use run::{Event, Outcome, distill};
