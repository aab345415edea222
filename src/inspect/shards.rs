//! A shard set, looked at.

use super::Depth;
use crate::Result;
use crate::shards::{Manifest, Reader};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A shard set and what it takes.
#[derive(Clone, Debug, Serialize)]
pub struct ShardsReport {
    /// The folder.
    pub path: PathBuf,
    /// Bytes of a row: what a token costs.
    pub bytes_per_row: u64,
    /// Bytes of all shard files.
    pub bytes: u64,
    /// The set's own description.
    pub manifest: Manifest,
    /// The outcome of the checks, where asked for.
    pub verification: Option<Verification>,
}

/// What checking every byte of a set showed. A set that fails a check is an error instead.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// Rows that count in the loss.
    pub valid_rows: u64,
    /// Of those, rows whose record holds the true next token.
    pub in_record: u64,
    /// Greatest difference between a row's NLL and that of its entry, nats (top-k).
    pub worst_difference: f64,
    /// How far the hits of the draws are from what is expected, in standard deviations (sampled).
    pub sigmas: f64,
}

pub(super) fn set(path: &Path, depth: Depth) -> Result<ShardsReport> {
    let reader = Reader::open(path)?;
    let verification = if depth.verify {
        reader.verify()?;
        let a = reader.alignment()?;
        let (worst_difference, sigmas) = (a.worst_difference, a.sigmas);
        Some(Verification { valid_rows: a.valid_rows, in_record: a.in_record, worst_difference, sigmas })
    } else {
        None
    };
    let manifest = reader.manifest().clone();
    Ok(ShardsReport {
        path: path.to_path_buf(),
        bytes_per_row: manifest.layout.stride_bytes(),
        bytes: manifest.shards.iter().map(|shard| shard.bytes).sum(),
        manifest,
        verification,
    })
}
