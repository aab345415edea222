//! Held-out measurement: how well a student predicts text, and how near it is to its teacher.

use super::batch::{write_batch, write_weights};
use super::metrics::Evaluation;
use super::step::{BEST, provide};
use super::teacher_rows::TeacherRows;
use crate::data::packing::{Cursor, Packer};
use crate::device::Buffer;
use crate::graph::{Graph, Plan, Runner, Store};
use crate::{Error, Result};
use std::ops::Range;

/// A plan and the held-out text it measures on.
pub struct Evaluator {
    runner: Runner,
    packer: Packer,
}

impl Evaluator {
    /// Prepares to run `graph` ([`super::step::StepSpec::evaluation`]) over `text`.
    pub fn new(graph: &Graph, text: Packer, store: &mut Store, scratch: &mut Vec<Buffer>) -> Result<Evaluator> {
        provide(store, graph)?;
        let runner = Runner::new(Plan::new(graph)?, store, scratch)?;
        Ok(Evaluator { runner, packer: text })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.runner.plan()
    }

    /// One pass over the held-out text. `records` are the teacher's, where it is a shard set.
    pub async fn run(&mut self, store: &Store, records: Option<&TeacherRows>) -> Result<Evaluation> {
        let sums = ["nll", "kld", "agreement"].map(|name| format!("eval.sum.{name}"));
        for sum in sums.iter().filter(|sum| store.contains(sum)) {
            store.write(sum, &[0f32])?;
        }
        let mut cursor = Cursor::default();
        let (mut tokens, mut bytes, mut agreed) = (0, Some(0), None);
        while cursor.epoch == 0 {
            let batch = self.packer.next_batch(&mut cursor)?;
            write_batch(store, "eval", &batch)?;
            write_weights(store, "eval", &batch, 1.0)?;
            let rows = match records.filter(|records| records.wanted(store, "eval.teacher")) {
                Some(records) => Some(records.read(&batch)?),
                None => None,
            };
            if let Some(rows) = &rows {
                rows.write(store, "eval.teacher")?;
            }
            self.runner.run()?;
            store.device().catch_up().await?;
            if let Some(rows) = rows.filter(|_| self.runner.plan().outputs.contains_key(BEST)) {
                let best = self.runner.read_u32(BEST).await?;
                *agreed.get_or_insert(0) += rows.agreeing(&best, &batch);
            }
            tokens += batch.valid;
            bytes = bytes.zip(batch.valid_bytes).map(|(sum, more)| sum + more);
        }
        if tokens == 0 {
            let help = "hold out more text, or set `train_on_inputs: true`";
            return Error::at("held-out text").expected("tokens to predict").found("none").help(help).err();
        }
        let mean = async |sum: &String| -> Result<Option<f64>> {
            let used = self.runner.plan().externals.iter().any(|(name, _)| name == sum);
            if !used {
                return Ok(None);
            }
            Ok(Some(f64::from(store.read_f32(sum).await?[0]) / tokens as f64))
        };
        let [nll, kld, agreement] = [mean(&sums[0]).await?, mean(&sums[1]).await?, mean(&sums[2]).await?];
        let top1_agreement = agreement.or(agreed.map(|agreed| agreed as f64 / tokens as f64));
        let nll = nll.ok_or_else(|| Error::internal("an evaluation without NLL"))?;
        let bits = |bytes: u64| nll * tokens as f64 / std::f64::consts::LN_2 / bytes as f64;
        let bits_per_byte = bytes.filter(|bytes| *bytes > 0).map(bits);
        Ok(Evaluation { nll, bits_per_byte, kld, top1_agreement, tokens: tokens as u64 })
    }
}

/// The first `limit` tokens of some ranges of a corpus.
pub fn first_tokens(ranges: &[Range<usize>], limit: usize) -> Vec<Range<usize>> {
    let mut left = limit;
    let mut first = Vec::new();
    for range in ranges {
        let take = range.len().min(left);
        if take > 0 {
            first.push(range.start..range.start + take);
        }
        left -= take;
    }
    first
}
