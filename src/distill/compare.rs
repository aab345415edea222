//! Finished models side by side: each against the same teacher, exactly, on the same held-out text.

use super::batch::{write_batch, write_weights};
use super::fidelity::{Fidelity, Token};
use super::metrics::Evaluation;
use super::step::{provide, teacher_prefix};
use crate::data::packing::{Batch, Cursor, IGNORE, Packer};
use crate::data::tokens::Corpus;
use crate::device::Device;
use crate::formats::ModelFolder;
use crate::graph::{DType, Graph, Plan, Runner, Store, Tensor};
use crate::losses::{Head, Live, chunk_rows, fidelity_head};
use crate::models::{self, Decoder, FrozenWeights, load_parameters};
use crate::nn::BatchInputs;
use crate::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// The text to compare on.
#[derive(Clone)]
pub struct Comparison {
    /// The tokenised text.
    pub corpus: Arc<Corpus>,
    /// The held-out part.
    pub ranges: Vec<Range<usize>>,
    /// Tokens of context.
    pub context: usize,
    /// Sequences at a time.
    pub batch: usize,
}

impl Comparison {
    /// Measures `model` against `teacher` over full distributions: NLL, bits per byte, KL(teacher || model), top-1
    /// agreement. Both models run on `device` at once; with `None` the teacher itself is measured.
    pub fn measure(&self, device: &Device, teacher: &ModelFolder, model: Option<&ModelFolder>) -> Result<Evaluation> {
        Ok(self.fidelity(device, teacher, model)?.0)
    }

    /// What [`Comparison::measure`] does, and beyond averages.
    pub fn fidelity(
        &self,
        device: &Device,
        teacher: &ModelFolder,
        model: Option<&ModelFolder>,
    ) -> Result<(Evaluation, Fidelity)> {
        let vocabulary = teacher.tokenizer()?.vocab_size();
        let mut store = Store::new(device);
        let mut open = |folder: &ModelFolder, prefix: &str| -> Result<Decoder> {
            same_tokenizer(teacher, folder)?;
            let decoder = models::from_config(folder.path(), &folder.config)?;
            let decoder = decoder.with_frozen(FrozenWeights::Stored, &folder.tensors)?;
            decoder.allocate(&mut store, prefix, self.context)?;
            load_parameters(&decoder, &store, prefix, &folder.tensors, None)?;
            Ok(decoder)
        };
        let student = model.map(|model| open(model, STUDENT)).transpose()?;
        let graph = self.side_by_side(student.as_ref(), &open(teacher, &teacher_prefix(0))?, vocabulary, device)?;
        provide(&mut store, &graph)?;
        let mut runner = Runner::new(Plan::new(&graph)?, &store, &mut Vec::new())?;
        let mut packer = Packer::new(self.corpus.clone(), self.ranges.clone(), self.context, self.batch, None)?;
        let (mut cursor, mut rows, mut bytes) = (Cursor::default(), Rows::default(), Some(0));
        while cursor.epoch == 0 {
            let batch = packer.next_batch(&mut cursor)?;
            write_batch(&store, PREFIX, &batch)?;
            write_weights(&store, PREFIX, &batch, 1.0)?;
            runner.run()?;
            rows.collect(&runner, &batch)?;
            bytes = bytes.zip(batch.valid_bytes).map(|(sum, more)| sum + more);
        }
        rows.finish(bytes)
    }

    /// Both models over one batch, with every row's numbers as outputs; without a student the teacher beside itself.
    fn side_by_side(
        &self,
        student: Option<&Decoder>,
        teacher: &Decoder,
        vocab: usize,
        device: &Device,
    ) -> Result<Graph> {
        let mut g = Graph::new();
        let n = self.batch * self.context;
        let batch = BatchInputs::declare(&mut g, PREFIX, n, self.context, false);
        let labels = g.external(&format!("{PREFIX}.labels"), [n], DType::U32);
        let weights = g.external(&format!("{PREFIX}.weights"), [n], DType::F32);
        let mut run = |decoder: &Decoder, prefix: &str| -> Result<(Tensor, [Tensor; 1])> {
            let params = decoder.frozen(prefix);
            let hidden = decoder.forward(&mut g, &params, &batch, false)?;
            Ok((hidden, [decoder.head_weight(&mut g, &params)]))
        };
        let (teacher_hidden, teacher_head) = run(teacher, &teacher_prefix(0))?;
        let (hidden, head) = student.map_or(Ok((teacher_hidden, teacher_head)), |student| run(student, STUDENT))?;
        let student = student.unwrap_or(teacher);
        let of = |decoder: &Decoder, weight| Head { weight, vocab, softcap: decoder.config.logit_softcap };
        let live = Live { hidden: teacher_hidden, head: of(teacher, &teacher_head) };
        let chunk = chunk_rows(student.config.vocab_size.max(teacher.config.vocab_size), device.caps());
        let head = of(student, &head);
        let rows = fidelity_head(&mut g, hidden, &head, labels, weights, live, chunk)?;
        for (name, tensor) in [
            ("nll", rows.nll),
            ("kld", rows.kld),
            ("distance", rows.distance),
            ("agreement", rows.agreement),
            ("best", rows.best),
            ("best_log_prob", rows.best_log_prob),
        ] {
            g.output(name, tensor);
        }
        Ok(g)
    }
}

/// The prefix of the batch's tensors.
const PREFIX: &str = "compare";
/// The prefix of the student's parameters.
const STUDENT: &str = "";

/// What has been read back of the rows that count.
#[derive(Default)]
struct Rows {
    nll: f64,
    agreed: f64,
    tokens: Vec<Token>,
}

impl Rows {
    fn collect(&mut self, runner: &Runner, batch: &Batch) -> Result<()> {
        let floats = |name: &str| pollster::block_on(runner.read_f32(name));
        let (nll, kld, distance) = (floats("nll")?, floats("kld")?, floats("distance")?);
        let (agreement, best_log_prob) = (floats("agreement")?, floats("best_log_prob")?);
        let best = pollster::block_on(runner.read_u32("best"))?;
        for row in (0..batch.labels.len()).filter(|&row| batch.labels[row] != IGNORE) {
            let follows = row > 0
                && batch.labels[row - 1] != IGNORE
                && batch.positions[row] == batch.positions[row - 1].wrapping_add(1);
            self.nll += f64::from(nll[row]);
            self.agreed += f64::from(agreement[row]);
            self.tokens.push(Token {
                kld: f64::from(kld[row]),
                acceptance: 1.0 - f64::from(distance[row]),
                confidence: f64::from(best_log_prob[row]).exp(),
                correct: best[row] == batch.labels[row],
                follows,
            });
        }
        Ok(())
    }

    fn finish(self, bytes: Option<u64>) -> Result<(Evaluation, Fidelity)> {
        if self.tokens.is_empty() {
            return Error::at("held-out text").expected("tokens to predict").found("none").err();
        }
        let count = self.tokens.len() as f64;
        let fidelity = Fidelity::of(&self.tokens);
        let bits = |bytes: u64| self.nll / std::f64::consts::LN_2 / bytes as f64;
        let evaluation = Evaluation {
            nll: self.nll / count,
            bits_per_byte: bytes.filter(|bytes| *bytes > 0).map(bits),
            kld: Some(fidelity.kld.mean),
            top1_agreement: Some(self.agreed / count),
            tokens: self.tokens.len() as u64,
        };
        Ok((evaluation, fidelity))
    }
}

fn same_tokenizer(teacher: &ModelFolder, model: &ModelFolder) -> Result<()> {
    let (expected, found) = (teacher.tokenizer()?.digest(), model.tokenizer()?.digest());
    if expected == found {
        return Ok(());
    }
    Error::file(model.path())
        .field("tokenizer")
        .expected(format!("that of {} ({expected})", teacher.path().display()))
        .found(found)
        .help("only models of one tokenizer can be compared token by token")
        .err()
}
