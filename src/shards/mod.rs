//! Teacher-logit shards: a teacher's next-token distributions on disk, one fixed-size record per token.
//!
//! A **shard set** is a folder: `manifest.json` and `00000.shard`, `00001.shard`, ... Row `r` of the set is the
//! distribution for token `r + 1` of the tokenised corpus, given the tokens of its context up to and including `r`.
//! Records are **top-k** (ids, log-probabilities, tail mass and log-partition per temperature) or **sampled** (ids and
//! counts of random draws: Random Sampling KD, arXiv 2503.16870) or **hidden** (the teacher's states, with whose last
//! its head gives the whole distribution). `docs/shards.md` gives the format byte by byte.
//!
//! In reading order: [`spec`] what a set holds; [`layout`] where each number of a row lies; [`rows`] rows to words and
//! back; [`sample`] exact draws; [`manifest`] the description; [`writer`] capture, with resume; [`reader`] and
//! [`align`] reading and checking; [`foreign`] what DistillKit stored.

pub mod align;
mod disk;
pub mod foreign;
mod journal;
pub mod layout;
pub mod manifest;
pub mod reader;
pub mod rows;
pub mod sample;
pub mod spec;
pub mod writer;

#[cfg(test)]
mod measure;
#[cfg(test)]
mod tests;

pub use align::Alignment;
pub use layout::{RowLayout, ValueType};
pub use manifest::{Manifest, ShardEntry, Span, Statistics};
pub use reader::Reader;
pub use rows::{CONTEXT_START, DOCUMENT_START, Records, RowBatch, VALID};
pub use spec::{LogProbType, Record, SetSpec, Source, StateType, TailMass, Teacher};
pub use writer::Writer;
