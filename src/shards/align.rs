//! Whether distributions and tokens of a set belong together, from its files alone.
//!
//! Each row carries the teacher's negative log-likelihood (NLL) of the true next token. Where the next row's token is
//! among a top-k row's entries, the entry must say the same; where it is not, it can be no more probable than the least
//! entry or the tail. In sampled rows the share of draws that hit the true token must average its probability. Records
//! shifted by one position fail this at almost every row. Hidden states say nothing of tokens without the teacher's
//! head; of them only the rows' borders are checked here.

use super::layout::RowLayout;
use super::manifest::{MANIFEST_FILE, Sums};
use super::reader::Reader;
use super::rows;
use super::spec::{Record, TailMass};
use crate::{Error, Result};

/// What the alignment check found; every number is recomputed from the rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Alignment {
    /// Rows that count in the loss.
    pub valid_rows: u64,
    /// Of those, rows whose record holds the true next token.
    pub in_record: u64,
    /// Mean NLL of the valid rows from their headers; equals the manifest's.
    pub mean_nll: Option<f64>,
    /// Mean NLL from the entries, over the rows counted by `in_record` (top-k).
    pub mean_nll_from_entries: Option<f64>,
    /// Greatest difference between a header's NLL and the entry's (top-k), nats.
    pub worst_difference: f64,
    /// How far the hits of the draws are from their expectation, in standard deviations (sampled at T = 1, else 0).
    pub sigmas: f64,
}

/// Rounding of the capture's own f32 arithmetic: NLL and log-probability come from the same logits.
const TOLERANCE: f32 = 1e-3;
/// A true alignment is refused once in 10^9 sets.
const MOST_SIGMAS: f64 = 6.0;

#[derive(Default)]
struct Tally {
    found: Alignment,
    from_entries: f64,
    excess: f64,
    variance: f64,
    misaligned: u64,
    first_misaligned: Option<u64>,
}

impl Reader {
    /// Checks that the rows' distributions belong to the rows' tokens; an `Err` names the first row that shows the
    /// opposite. Reads the whole set.
    pub fn alignment(&self) -> Result<Alignment> {
        let (layout, mut tally, mut sums) = (*self.layout(), Tally::default(), Sums::default());
        let mut pending: Option<Vec<u32>> = None;
        let mut row_number = 0;
        for shard in &self.manifest().shards {
            let words = self.read_words(shard.first_row, u64::from(shard.rows))?;
            for row in words.chunks_exact(layout.stride_words as usize) {
                sums.add(&layout, row, None);
                if let Some(previous) = pending.replace(row.to_vec()) {
                    tally.add(self, &previous, row, row_number);
                    row_number += 1;
                }
            }
        }
        self.conclude(tally, &sums)
    }

    fn conclude(&self, tally: Tally, sums: &Sums) -> Result<Alignment> {
        let mut found = tally.found;
        let wrong = |field: String, expected: &str, found: String| {
            Error::file(self.manifest_path())
                .field(field)
                .expected(expected)
                .found(found)
                .help("the records do not belong to these tokens: capture again")
                .err()
        };
        if let Some(row) = tally.first_misaligned {
            let field = format!("row {row} (and {} more)", tally.misaligned - 1);
            return wrong(field, "a record that agrees with its token's NLL", "another probability".to_string());
        }
        if found.valid_rows != sums.valid_rows {
            return wrong("valid rows".into(), "each followed by a row of its document", found.valid_rows.to_string());
        }
        // Draws at another temperature hit with a probability that the row does not hold.
        let comparable = tally.variance > 0.0 && self.spec().temperatures == [1.0];
        found.sigmas = if comparable { tally.excess / tally.variance.sqrt() } else { 0.0 };
        if found.sigmas.abs() > MOST_SIGMAS {
            let expected = "draws that hit the true next token as often as its NLL says";
            return wrong("draws".into(), expected, format!("{:.1} standard deviations off", found.sigmas));
        }
        found.mean_nll = (sums.valid_rows > 0).then(|| sums.nll as f64 / sums.valid_rows as f64 * 1e-9);
        let top_k = matches!(self.spec().record, Record::TopK { .. });
        found.mean_nll_from_entries =
            (top_k && found.in_record > 0).then(|| tally.from_entries / found.in_record as f64);
        Ok(found)
    }

    fn manifest_path(&self) -> std::path::PathBuf {
        self.dir().join(MANIFEST_FILE)
    }
}

impl Tally {
    fn add(&mut self, reader: &Reader, row: &[u32], next: &[u32], number: u64) {
        if rows::flags(row) & rows::VALID == 0 || rows::flags(next) & rows::DOCUMENT_START != 0 {
            return;
        }
        self.found.valid_rows += 1;
        let (layout, token, nll) = (reader.layout(), rows::token(next), rows::nll(row));
        let hit = rows::entries(layout, row).find(|e| e.0 == token);
        let agrees = match reader.spec().record {
            Record::TopK { .. } => {
                // What another program's record left over may be filled with entries of no probability, which say
                // nothing of the tokens outside.
                let filled = reader.spec().tail_mass != TailMass::Captured;
                self.add_top_k(layout, row, hit, nll, filled)
            }
            Record::Sampled { draws, .. } => {
                self.add_sampled(hit, nll, draws);
                true
            }
            Record::Hidden { .. } => true,
        };
        if !agrees {
            self.misaligned += 1;
            self.first_misaligned.get_or_insert(number);
        }
    }

    fn add_top_k(&mut self, layout: &RowLayout, row: &[u32], hit: Option<(u32, u32)>, nll: f32, filled: bool) -> bool {
        let Some((_, value)) = hit else {
            let tail = f32::from_bits(row[layout.tail_at(0) as usize]);
            let values = rows::entries(layout, row).map(|e| layout.decode_value(e.1));
            let least = values.filter(|l| !filled || *l > layout.floor).last().unwrap_or(0.0);
            let slack = TOLERANCE + layout.rounding();
            return nll >= -least - slack && (-nll).exp() <= tail * (1.0 + TOLERANCE) + 1e-6;
        };
        let l = layout.decode_value(value);
        self.found.in_record += 1;
        self.from_entries -= f64::from(l);
        if l <= layout.floor {
            return nll >= -l - TOLERANCE;
        }
        let difference = (nll + l).abs();
        self.found.worst_difference = self.found.worst_difference.max(f64::from(difference));
        difference <= TOLERANCE + layout.rounding()
    }

    fn add_sampled(&mut self, hit: Option<(u32, u32)>, nll: f32, draws: u32) {
        let count = hit.map_or(0, |e| e.1);
        self.found.in_record += u64::from(count > 0);
        let difference = f64::from(count) / f64::from(draws) - f64::from(-nll).exp();
        self.excess += difference;
        self.variance += difference * difference;
    }
}
