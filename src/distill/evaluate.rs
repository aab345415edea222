//! Held-out measurement: how well a student predicts text, and how near it is to its teacher.

use super::batch::{write_batch, write_weights};
use super::metrics::Evaluation;
use super::step::{BEST, provide};
use super::teacher_rows::RowTensors;
use super::teaching::Teaching;
use crate::data::packing::{Batch, Cursor, IGNORE, Packer};
use crate::device::Buffer;
use crate::graph::{Graph, Plan, Runner, Store};
use crate::{Error, Result};
use std::ops::Range;
use std::path::PathBuf;

/// A plan, the held-out text it measures on, and the teachers it measures against.
pub struct Evaluator {
    runner: Runner,
    packer: Packer,
    teaching: Teaching,
}

impl Evaluator {
    /// Prepares to run `graph` ([`super::step::StepSpec::evaluation`]) over `text`. `teaching` holds the teachers' records
    /// at temperature 1, and the shares of those that measure.
    pub fn new(
        graph: &Graph,
        text: Packer,
        teaching: Teaching,
        store: &mut Store,
        scratch: &mut Vec<Buffer>,
    ) -> Result<Evaluator> {
        provide(store, graph)?;
        let runner = Runner::new(Plan::new(graph)?, store, scratch)?;
        Ok(Evaluator { runner, packer: text, teaching })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.runner.plan()
    }

    /// One pass over the held-out text. Divergence and agreement are means over the tokens that a teacher is for.
    /// `ready` is awaited before each batch with the files of shards that it reads.
    pub async fn run<E: From<Error>>(
        &mut self,
        store: &Store,
        mut ready: impl AsyncFnMut(Vec<PathBuf>) -> Result<(), E>,
    ) -> Result<Evaluation, E> {
        let sums = ["nll", "kld", "agreement"].map(|name| format!("eval.sum.{name}"));
        for sum in sums.iter().filter(|sum| store.contains(sum)) {
            store.write(sum, &[0f32])?;
        }
        let mut cursor = Cursor::default();
        let (mut tokens, mut taught, mut bytes, mut agreed) = (0, 0, Some(0), 0.0);
        while cursor.epoch == 0 {
            let batch = self.packer.next_batch(&mut cursor)?;
            ready(self.teaching.files(&batch)?).await?;
            write_batch(store, "eval", &batch)?;
            write_weights(store, "eval", &batch, 1.0)?;
            let records = self.teaching.write(store, "eval", &batch, 1.0)?;
            self.runner.run()?;
            store.device().catch_up().await?;
            agreed += self.agreeing(&records, &batch).await?;
            tokens += batch.valid;
            taught += self.teaching.shares.taught_rows(&batch);
            bytes = bytes.zip(batch.valid_bytes).map(|(sum, more)| sum + more);
        }
        if tokens == 0 {
            let help = "hold out more text, or set `train_on_inputs: true`";
            return Err(Error::at("held-out text")
                .expected("tokens to predict")
                .found("none")
                .help(help)
                .error()
                .into());
        }
        let total = async |sum: &String| -> Result<Option<f64>> {
            let used = self.runner.plan().externals.iter().any(|(name, _)| name == sum);
            if !used {
                return Ok(None);
            }
            Ok(Some(f64::from(store.read_f32(sum).await?[0])))
        };
        let [nll, kld, agreement] = [total(&sums[0]).await?, total(&sums[1]).await?, total(&sums[2]).await?];
        let nll = nll.ok_or_else(|| Error::internal("an evaluation without NLL"))? / tokens as f64;
        let kld = kld.filter(|_| taught > 0).map(|kld| kld / taught as f64);
        let top1_agreement = kld.map(|_| (agreement.unwrap_or(0.0) + agreed) / taught as f64);
        let bits = |bytes: u64| nll * tokens as f64 / std::f64::consts::LN_2 / bytes as f64;
        let bits_per_byte = bytes.filter(|bytes| *bytes > 0).map(bits);
        Ok(Evaluation { nll, bits_per_byte, kld, top1_agreement, tokens: tokens as u64 })
    }

    /// The sum, over the rows that count, of the shares of the stored teachers whose likeliest token is the student's.
    async fn agreeing(&self, records: &[Option<RowTensors>], batch: &Batch) -> Result<f64> {
        if !self.runner.plan().outputs.contains_key(BEST) {
            return Ok(0.0);
        }
        let best = self.runner.read_u32(BEST).await?;
        let mut sum = 0.0;
        for (number, rows) in records.iter().enumerate().filter_map(|(number, rows)| Some((number, rows.as_ref()?))) {
            let agree = rows.likeliest().zip(&best).map(|(theirs, own)| theirs == *own);
            let counts = batch.labels.iter().zip(&batch.route).zip(agree);
            let counted = counts.filter(|((label, _), agree)| **label != IGNORE && *agree);
            sum += counted.map(|((_, route), _)| self.teaching.shares.of(*route)[number]).sum::<f64>();
        }
        Ok(sum)
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
