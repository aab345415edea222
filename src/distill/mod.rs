//! Distillation: what to do ([`recipe`], [`schedule`]), recording a teacher ([`capture`]), training a student
//! ([`setup`], [`step`], [`trainer`], [`run`]), measuring it ([`evaluate`], [`compare`]), what happened ([`metrics`],
//! [`report`], [`card`]) and how to go on after a stop ([`checkpoint`]).

pub mod batch;
pub mod capture;
pub mod card;
pub mod checkpoint;
pub mod compare;
pub mod corpus;
pub mod evaluate;
mod folder;
mod lineage;
pub mod memory;
pub mod metrics;
pub mod recipe;
pub mod report;
pub mod run;
pub mod samples;
pub mod schedule;
pub mod setup;
pub mod step;
pub mod student;
mod svg;
pub mod teacher_rows;
pub mod terms;
pub mod trainer;

pub use capture::{CaptureOptions, capture};
pub use recipe::Recipe;
pub use run::{Event, Outcome, distill};
