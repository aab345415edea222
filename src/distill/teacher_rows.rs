//! A shard set as a trainer reads it: batch after batch, aligned by global token position.

use super::recipe::MissingProbability;
use crate::data::packing::{Batch, PADDING};
use crate::formats::Tokenizer;
use crate::graph::Store;
use crate::shards::rows::{Records, VALID};
use crate::shards::{Reader, Record, TailMass};
use crate::{Error, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The log-probability of a slot that holds nothing, as the loss kernels expect it.
const EMPTY: f32 = -3.4e38;

/// Teacher records for training at one temperature.
pub struct TeacherRows {
    reader: Reader,
    /// Which of the set's temperatures.
    temperature: usize,
}

/// One batch's records, ready to be written to the device.
#[derive(Default)]
pub struct RowTensors {
    /// Token ids, [N, entries]; `u32::MAX` where a slot is empty.
    pub ids: Vec<u32>,
    /// Their log-probabilities at the temperature.
    pub log_probs: Vec<f32>,
    /// Probability of everything else, [N].
    pub tail: Vec<f32>,
    /// Hidden states by their index, [N, d] each; 0 in padding.
    pub states: Vec<(usize, Vec<f32>)>,
}

impl TeacherRows {
    /// Opens a set and checks that it was captured with this tokenizer on this corpus in contexts of this length, and
    /// that it can give `temperature`.
    pub fn open(
        path: &Path,
        tokenizer: &Tokenizer,
        corpus: &str,
        context: usize,
        temperature: f64,
    ) -> Result<TeacherRows> {
        let reader = Reader::open(path)?;
        let compatible =
            reader.manifest().check_compatible(&tokenizer.digest(), tokenizer.vocab_size() as u32, Some(corpus));
        compatible.map_err(|error| error.inside(path.display()))?;
        let spec = reader.spec();
        if spec.context_length as usize != context {
            return Error::file(path)
                .field("`context_length`")
                .expected(format!("{context}, the recipe's `sequence_length`"))
                .found(spec.context_length)
                .help(format!("set `sequence_length: {}`, or capture again", spec.context_length))
                .err();
        }
        let stored = &spec.temperatures;
        if matches!(spec.record, Record::Hidden { .. }) {
            return Ok(TeacherRows { reader, temperature: 0 });
        }
        let Some(index) = stored.iter().position(|t| (f64::from(*t) - temperature).abs() < 1e-6) else {
            return Error::file(path)
                .field("`temperatures`")
                .expected(format!("{temperature}, the recipe's `temperature`, among them"))
                .found(format!("{stored:?}"))
                .help(format!("capture again with `--temperatures 1,{temperature}`, or train at a stored one"))
                .err();
        };
        Ok(TeacherRows { reader, temperature: index })
    }

    /// Refuses the ghost bucket and the uniform tail for records that do not say how much probability they leave out.
    pub fn check_missing(&self, missing: MissingProbability) -> Result<()> {
        let asks = matches!(missing, MissingProbability::Ghost | MissingProbability::Uniform);
        if !asks || self.reader.spec().tail_mass != TailMass::Unknown {
            return Ok(());
        }
        Error::file(self.reader.dir())
            .field("`tail_mass`")
            .expected("a tail mass for `missing_probability_handling: ghost` (or `symmetric_uniform`) and `uniform`")
            .found("none: the set was made of logits of the recorded tokens alone")
            .help("set `missing_probability_handling` to `zero` or `both_renormalised`, or capture again")
            .err()
    }

    /// Slots a row; none of hidden states.
    pub fn entries(&self) -> usize {
        match self.reader.spec().record {
            Record::TopK { k, .. } => k as usize,
            Record::Sampled { max_unique, .. } => max_unique as usize,
            Record::Hidden { .. } => 0,
        }
    }

    /// Width and indices of recorded hidden states, if the set holds those.
    pub fn states(&self) -> Option<(usize, Vec<usize>)> {
        stored_states(&self.reader.spec().record)
    }

    /// Whether a graph in `store` wants these records under `prefix`.
    pub fn wanted(&self, store: &Store, prefix: &str) -> bool {
        let state = |index: usize| store.contains(&state_name(prefix, index));
        match self.states() {
            Some((_, indices)) => indices.into_iter().any(state),
            None => store.contains(&format!("{prefix}.ids")),
        }
    }

    /// Whether the rows are random draws.
    pub fn sampled(&self) -> bool {
        matches!(self.reader.spec().record, Record::Sampled { .. })
    }

    /// The set.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// The records of a batch's rows. Padding and rows without a record get empty slots and tail mass 1.
    pub fn read(&self, batch: &Batch) -> Result<RowTensors> {
        let entries = self.entries();
        let n = batch.row_id.len();
        let states = self.states().map_or(Vec::new(), |(width, indices)| {
            indices.into_iter().map(|index| (index, vec![0.0; n * width])).collect()
        });
        let (ids, log_probs) = (vec![u32::MAX; n * entries], vec![EMPTY; n * entries]);
        let mut out = RowTensors { ids, log_probs, tail: vec![1.0; n], states };
        for run in runs(batch) {
            self.read_run(batch.row_id[run.start], run.start, &batch.tokens[run], &mut out)?;
        }
        Ok(out)
    }

    /// The files that a batch's rows lie in.
    pub fn files(&self, batch: &Batch) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for run in runs(batch) {
            files.extend(self.reader.files(batch.row_id[run.start], run.len() as u64)?);
        }
        Ok(files)
    }

    /// Decodes rows `first..` of the set into rows `at..` of the batch.
    fn read_run(&self, first: u64, at: usize, tokens: &[u32], out: &mut RowTensors) -> Result<()> {
        let entries = self.entries();
        let rows = self.reader.read_rows(first, tokens.len() as u64)?;
        if rows.tokens != tokens {
            return Error::file(self.reader.dir())
                .field(format!("rows {first}..{}", first + tokens.len() as u64))
                .expected("the dataset's tokens")
                .found("others")
                .help("the shards belong to another dataset: capture again")
                .err();
        }
        if let Records::Hidden { states } = &rows.records {
            let width = states.len() / tokens.len().max(1) / out.states.len().max(1);
            for (row, states) in states.chunks_exact(width * out.states.len()).enumerate() {
                for ((_, all), state) in out.states.iter_mut().zip(states.chunks_exact(width)) {
                    all[(at + row) * width..][..width].copy_from_slice(state);
                }
            }
            return Ok(());
        }
        for row in (0..tokens.len()).filter(|&row| rows.flags[row] & VALID != 0) {
            let slot = (at + row) * entries;
            let (ids, log_probs) = (&mut out.ids[slot..slot + entries], &mut out.log_probs[slot..slot + entries]);
            match &rows.records {
                Records::TopK { .. } => {
                    let found = rows.top_k_at(self.reader.spec(), row, self.temperature);
                    let (found_ids, found_log_probs, tail) =
                        found.ok_or_else(|| Error::internal("a shard row without its record"))?;
                    ids.copy_from_slice(found_ids);
                    log_probs.copy_from_slice(&found_log_probs);
                    out.tail[at + row] = tail;
                }
                Records::Sampled { ids: all, counts } => {
                    let range = row * entries..(row + 1) * entries;
                    let total: u32 = counts[range.clone()].iter().sum();
                    for (i, (&id, &count)) in all[range.clone()].iter().zip(&counts[range]).enumerate() {
                        if count > 0 {
                            ids[i] = id;
                            log_probs[i] = (f64::from(count) / f64::from(total)).ln() as f32;
                        }
                    }
                    out.tail[at + row] = 0.0;
                }
                Records::Hidden { .. } => {}
            }
        }
        Ok(())
    }
}

/// The external of a recorded hidden state, f32 [N, d].
pub fn state_name(prefix: &str, index: usize) -> String {
    format!("{prefix}.state.{index}")
}

/// Width and indices of the hidden states that a record holds.
pub fn stored_states(record: &Record) -> Option<(usize, Vec<usize>)> {
    match record {
        Record::Hidden { hidden_size, layers, .. } => {
            Some((*hidden_size as usize, layers.iter().map(|&layer| layer as usize).collect()))
        }
        _ => None,
    }
}

/// The batch's rows that are no padding, in runs of consecutive positions.
fn runs(batch: &Batch) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    let all = std::iter::from_fn(move || {
        let first = *batch.row_id.get(at)?;
        let run = batch.row_id[at..].iter().zip(0u64..).take_while(|(id, i)| **id == first.wrapping_add(*i)).count();
        at += run;
        Some(at - run..at)
    });
    all.filter(|run| batch.row_id[run.start] != PADDING)
}

impl RowTensors {
    /// Each row's likeliest recorded token, `u32::MAX` where there is none.
    pub fn likeliest(&self) -> impl Iterator<Item = u32> {
        let entries = self.ids.len() / self.tail.len().max(1);
        self.ids.chunks(entries.max(1)).map(|ids| ids[0])
    }

    /// Writes the records to the externals `PREFIX.ids`, `.log_probs` and `.tail`, or hidden states to `.state.I`
    /// ([`super::terms::records_prefix`]).
    pub fn write(&self, store: &Store, prefix: &str) -> Result<()> {
        if !self.states.is_empty() {
            // A graph wants the states that its losses read.
            let named = self.states.iter().map(|(index, values)| (state_name(prefix, *index), values));
            let mut wanted = named.filter(|(name, _)| store.contains(name));
            return wanted.try_for_each(|(name, values)| store.write(&name, values));
        }
        store.write(&format!("{prefix}.ids"), &self.ids)?;
        store.write(&format!("{prefix}.log_probs"), &self.log_probs)?;
        // Without a loss that spreads the tail, nothing reads it.
        let tail = format!("{prefix}.tail");
        if store.contains(&tail) { store.write(&tail, &self.tail) } else { Ok(()) }
    }
}
