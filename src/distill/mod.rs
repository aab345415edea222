//! Distillation runs: what to do ([`recipe`], [`schedule`]), what happened ([`metrics`], [`report`], [`card`]) and how
//! to go on after a stop ([`checkpoint`]).

pub mod card;
pub mod checkpoint;
pub mod metrics;
pub mod recipe;
pub mod report;
pub mod schedule;
mod svg;
