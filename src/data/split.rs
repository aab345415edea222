//! Held-out text: the part of a corpus that is measured on and never learned.
//!
//! Either the last sequences are held out, or whole documents drawn by a hash of their content.
//!
//! - **Last sequences.** The corpus is cut at a multiple of the sequence length, so that both sides are packed into the
//!   very pieces that the whole corpus would be: teacher records of the whole corpus fit either side, context for
//!   context. One document may be cut: no token is on both sides, and the last token before the cut has no label.
//! - **Documents.** A document is held out by SHA-256 over the seed and its ids, so copies of one text fall on the same
//!   side, and adding or reordering documents moves none.

use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::data::tokens::Corpus;
use crate::{Error, Result};

/// What to hold out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Holdout {
    /// Nothing.
    Nothing,
    /// This many sequences from the end, the last of which may be shorter.
    LastSequences(usize),
    /// This fraction of the sequences from the end, rounded to the nearest, at least one.
    LastFraction(f64),
    /// About this fraction of the documents, drawn by hash.
    Documents {
        /// The chance of each document.
        fraction: f64,
        /// Another seed draws other documents.
        seed: u64,
    },
}

/// Ranges of global token positions, ascending and apart. Each is one document, or the part of one on this side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// To learn from.
    pub train: Vec<Range<usize>>,
    /// To measure on.
    pub held_out: Vec<Range<usize>>,
}

/// Parts the corpus. `length` is the sequence length T that it will be packed to.
///
/// Errors if the fraction is not between 0 and 1, or if either side would be empty.
pub fn split(corpus: &Corpus, length: usize, holdout: Holdout) -> Result<Parts> {
    let parts = match holdout {
        Holdout::Nothing => Parts { train: documents(corpus).collect(), held_out: Vec::new() },
        Holdout::LastSequences(count) => last(corpus, length, count),
        Holdout::LastFraction(fraction) => {
            let sequences = corpus.ids().len().div_ceil(length.max(1));
            last(corpus, length, ((sequences as f64 * check(fraction)?).round() as usize).max(1))
        }
        Holdout::Documents { fraction, seed } => by_hash(corpus, check(fraction)?, seed),
    };
    if parts.train.is_empty() || (parts.held_out.is_empty() && holdout != Holdout::Nothing) {
        return Error::at("the dataset")
            .field("held-out split")
            .expected("tokens on both sides")
            .found(format!(
                "{} documents of {} tokens in sequences of {length}, which leaves {} to learn and {} to measure",
                corpus.documents(),
                corpus.ids().len(),
                parts.train.iter().map(Range::len).sum::<usize>(),
                parts.held_out.iter().map(Range::len).sum::<usize>(),
            ))
            .help("add text, hold out another share, or take shorter sequences")
            .err();
    }
    Ok(parts)
}

fn check(fraction: f64) -> Result<f64> {
    if fraction > 0.0 && fraction < 1.0 {
        return Ok(fraction);
    }
    Error::at("held-out split").expected("a fraction between 0 and 1").found(fraction).help("0.05 is usual").err()
}

fn documents(corpus: &Corpus) -> impl Iterator<Item = Range<usize>> + '_ {
    (0..corpus.documents()).map(|index| corpus.range(index))
}

fn last(corpus: &Corpus, length: usize, count: usize) -> Parts {
    let sequences = corpus.ids().len().div_ceil(length.max(1));
    let cut = sequences.saturating_sub(count).saturating_mul(length).min(corpus.ids().len());
    let mut parts = Parts::default();
    for range in documents(corpus) {
        let middle = cut.clamp(range.start, range.end);
        parts.train.extend(Some(range.start..middle).filter(|r| !r.is_empty()));
        parts.held_out.extend(Some(middle..range.end).filter(|r| !r.is_empty()));
    }
    parts
}

fn by_hash(corpus: &Corpus, fraction: f64, seed: u64) -> Parts {
    let (held_out, train) = documents(corpus).partition(|range| {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(corpus.ids()[range.clone()].iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
        let digest = hash.finalize();
        let draw = digest.iter().take(8).fold(0u64, |number, &byte| number << 8 | u64::from(byte));
        (draw as f64) < fraction * (u64::MAX as f64)
    });
    Parts { train, held_out }
}
