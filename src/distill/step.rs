//! The graphs of a run: one micro-batch of training, one batch of evaluation. Recorded once, replayed for every batch.

use super::hidden::HiddenLosses;
use super::recipe::{Function, LossFunction, MissingProbability};
use super::teacher_rows::state_name;
use super::terms::{Sources, records_prefix};
use super::trained::Trained;
use crate::device::Caps;
use crate::graph::{DType, Graph, Shape, Store, Tensor};
use crate::losses::{Against, Fused, Head, Live, Loss, chunk_rows, evaluate_head, fused_head};
use crate::models::{Decoder, Taps, Traced};
use crate::nn::{BatchInputs, Params};
use crate::ops;
use crate::optim::{RING, RING_AT};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// The student's likeliest tokens, an output of the evaluation against stored rows.
pub const BEST: &str = "best";
/// The prefix of a live teacher's parameters.
pub const TEACHER: &str = "teacher:";
/// Prefix of the rings that hold the last steps' losses, `metrics.0`, `metrics.1`, ... in the recipe's order.
pub const METRICS: &str = "metrics";
/// The teacher as a training graph sees it.
#[derive(Clone)]
pub enum TeacherInput {
    /// None: plain training on text.
    None,
    /// Records of `entries` tokens a row, written by the host.
    Sparse {
        /// Ids and log-probabilities a row.
        entries: usize,
        /// Random draws rather than the likeliest tokens.
        sampled: bool,
    },
    /// A model on the same device, over the same batch.
    Live(Box<Decoder>),
    /// Hidden states, written by the host.
    States {
        /// d.
        hidden_size: usize,
        /// Which are stored, the final one last.
        indices: Vec<usize>,
        /// The model whose head makes distributions of the final state; only its head is on the device.
        head: Option<Box<Decoder>>,
    },
}

/// What the graphs are recorded from.
#[derive(Clone)]
pub struct StepSpec {
    /// The student.
    pub student: Decoder,
    /// What of it is trained.
    pub trained: Trained,
    /// The teacher.
    pub teacher: TeacherInput,
    /// Tokens that both vocabularies really have.
    pub vocabulary: usize,
    /// Sequences in a micro-batch.
    pub batch: usize,
    /// Rows in a sequence.
    pub context: usize,
    /// Recompute activations.
    pub recompute: bool,
    /// The losses.
    pub losses: Vec<LossFunction>,
    /// What the losses on hidden states compare.
    pub hidden: HiddenLosses,
}

/// Names of the externals of one graph, `train` or `eval`.
struct Names<'a>(&'a str);

impl Names<'_> {
    fn of(&self, what: &str) -> String {
        format!("{}.{what}", self.0)
    }
}

impl StepSpec {
    /// Rows of a micro-batch.
    pub fn rows(&self) -> usize {
        self.batch * self.context
    }

    /// The head of the student or of a live teacher, over the tokens that both have.
    fn head<'a>(&self, decoder: &Decoder, weight: &'a [Tensor]) -> Head<'a> {
        Head { weight, vocab: self.vocabulary, softcap: decoder.config.logit_softcap }
    }

    /// The graph of one micro-batch: forward, losses, and every gradient added to the parameters' gradients.
    /// Externals besides the batch's: `train.labels` u32 [N], `train.weights` f32 [N] (1 / valid tokens of the whole
    /// optimiser step, 0 where a row does not count), the teacher's records, the metrics ring, and what of the losses
    /// changes over the run ([`super::terms::write_scheduled`]).
    pub fn training(&self, caps: &Caps) -> Result<Graph> {
        let mut g = Graph::new();
        let (n, names) = (self.rows(), Names("train"));
        let batch = BatchInputs::declare(&mut g, "train", n, self.context, true);
        let included = |name: &str| self.trained.includes(name);
        let trained = Params { prefix: "", trainable: &included, lora: self.trained.lora.as_ref() };
        let labels = g.external(&names.of("labels"), [n], DType::U32);
        let weights = g.external(&names.of("weights"), [n], DType::F32);
        let learns = self.losses.iter().any(|loss| loss.function.needs_teacher());
        let teacher = match learns {
            true => self.teacher_trace(&mut g, "train", &batch, &self.hidden.teacher_taps())?,
            false => None,
        };
        let taps = self.hidden.student_taps();
        let student = self.student.forward_traced(&mut g, &trained, &batch, self.recompute, &taps)?;
        let hidden = student.hidden;
        let teacher_head = if learns { self.teacher_head(&mut g) } else { None };
        let pairs = match &teacher {
            Some(teacher) => self.hidden.record(&mut g, &student, teacher, batch.ranges, weights)?,
            None => Vec::new(),
        };
        let live = teacher.as_ref().zip(teacher_head.as_ref());
        let live =
            live.map(|(trace, (decoder, weight))| Live { hidden: trace.hidden, head: self.head(decoder, weight) });
        let sources = Sources { labels, weights, live };
        let of_logits = |i: &usize| !matches!(self.losses[*i].function, Function::Hidden(_));
        let numbers: Vec<usize> = (0..self.losses.len()).filter(of_logits).collect();
        let losses = numbers.iter().map(|&i| self.term(&mut g, i, &sources)).collect::<Result<Vec<Loss<'_>>>>()?;
        let head = [self.student.head_weight(&mut g, &trained)];
        let head = self.head(&self.student, &head);
        let rows = chunk_rows(self.student.config.vocab_size, caps);
        // Without a loss on them there is no need of logits.
        let fused = match losses.is_empty() {
            true => Fused { loss_rows: Vec::new(), d_hidden: None },
            false => fused_head(&mut g, hidden, &head, &losses, rows, true)?,
        };
        let mut seeds: Vec<(Tensor, Tensor)> = fused.d_hidden.map(|d_hidden| (hidden, d_hidden)).into_iter().collect();
        for pair in &pairs {
            let weights = self.weights(&mut g, pair.loss, weights);
            let weights = ops::scale(&mut g, weights, pair.share as f32);
            seeds.push((pair.rows, weights));
        }
        if !seeds.is_empty() {
            g.backward(&seeds)?;
        }
        let at = g.external(RING_AT, [1], DType::U32);
        // Every sum into a ring takes over its memory: the next one goes on from there.
        let mut rings: BTreeMap<usize, Tensor> = BTreeMap::new();
        let mut ring = |g: &mut Graph, loss: usize, rows: Tensor, weights: Tensor| {
            let so_far = rings.get(&loss).copied();
            let so_far = so_far.unwrap_or_else(|| g.external(&format!("{METRICS}.{loss}"), [RING], DType::F32));
            rings.insert(loss, ops::weighted_sum(g, rows, weights, so_far, at));
        };
        for (loss, rows) in numbers.into_iter().zip(fused.loss_rows) {
            ring(&mut g, loss, rows, weights);
        }
        for pair in pairs {
            let weights = ops::scale(&mut g, weights, pair.share as f32);
            ring(&mut g, pair.loss, pair.rows, weights);
        }
        Ok(g)
    }

    /// The teacher's hidden states: of its own forward pass, or as they were recorded.
    fn teacher_trace(&self, g: &mut Graph, graph: &str, batch: &BatchInputs, taps: &Taps) -> Result<Option<Traced>> {
        let (hidden_size, indices) = match &self.teacher {
            TeacherInput::Live(teacher) => {
                return teacher.forward_traced(g, &Params::frozen(TEACHER), batch, false, taps).map(Some);
            }
            TeacherInput::States { hidden_size, indices, .. } => (*hidden_size, indices),
            TeacherInput::None | TeacherInput::Sparse { .. } => return Ok(None),
        };
        let last = indices.last().copied().ok_or_else(|| Error::internal("no recorded states"))?;
        let (prefix, shape) = (records_prefix(graph, 0), [self.rows(), hidden_size]);
        let mut state = |index: usize| g.external(&state_name(&prefix, index), shape, DType::F32);
        let hidden = state(last);
        let states = taps.states.iter().map(|&index| (index, state(index))).collect();
        Ok(Some(Traced { hidden, states, relations: Vec::new() }))
    }

    /// The teacher's head, if it has one on the device.
    fn teacher_head(&self, g: &mut Graph) -> Option<(&Decoder, [Tensor; 1])> {
        match &self.teacher {
            TeacherInput::Live(teacher) | TeacherInput::States { head: Some(teacher), .. } => {
                Some((teacher, [teacher.head_weight(g, &Params::frozen(TEACHER))]))
            }
            _ => None,
        }
    }

    /// The graph of one batch of evaluation at temperature 1. Sums over the batch's rows go into `eval.sum.nll` and,
    /// with a teacher, `eval.sum.kld` and `eval.sum.agreement`, f32 [1] each, which the caller clears before a pass.
    /// Row weights are 1 for rows that count and 0 for the others. With a sparse teacher the divergence is that of
    /// its K + 1 buckets, a lower bound of the full one.
    pub fn evaluation(&self, caps: &Caps) -> Result<Graph> {
        let mut g = Graph::new();
        let (n, names) = (self.rows(), Names("eval"));
        let batch = BatchInputs::declare(&mut g, "eval", n, self.context, false);
        let labels = g.external(&names.of("labels"), [n], DType::U32);
        let weights = g.external(&names.of("weights"), [n], DType::F32);
        let frozen = Params { lora: self.trained.lora.as_ref(), ..Params::frozen("") };
        let hidden = self.student.forward(&mut g, &frozen, &batch, false)?;
        let head = [self.student.head_weight(&mut g, &frozen)];
        let head = self.head(&self.student, &head);
        let rows = chunk_rows(self.student.config.vocab_size, caps);
        let traced = match &self.teacher {
            // States without a head say nothing of tokens.
            TeacherInput::States { head: None, .. } => None,
            _ => self.teacher_trace(&mut g, "eval", &batch, &Taps::default())?,
        };
        let live = traced.map(|traced| traced.hidden).zip(self.teacher_head(&mut g));
        let teacher = match (&self.teacher, &live) {
            (_, Some((hidden, (decoder, weight)))) => {
                Against::Live(Live { hidden: *hidden, head: self.head(decoder, weight) })
            }
            (TeacherInput::Sparse { sampled: false, .. }, None) => {
                Against::Stored(self.records(&mut g, &records_prefix("eval", 0), 1.0, MissingProbability::Ghost))
            }
            _ => Against::Labels,
        };
        let measured = evaluate_head(&mut g, hidden, &head, labels, weights, teacher, rows)?;
        let mut sums = vec![("nll", measured.nll)];
        sums.extend(measured.kld.map(|rows| ("kld", rows)));
        sums.extend(measured.agreement.map(|rows| ("agreement", rows)));
        if let Some(best) = measured.best {
            g.output(BEST, best);
        }
        let zero = g.external("eval.zero", [1], DType::U32);
        for (name, rows) in sums {
            let sum = g.external(&names.of(&format!("sum.{name}")), [1], DType::F32);
            ops::weighted_sum(&mut g, rows, weights, sum, zero);
        }
        Ok(g)
    }
}

/// Gives memory to every external of `graph` that has none yet in `store`.
pub fn provide(store: &mut Store, graph: &Graph) -> Result<()> {
    let missing: Vec<(String, Shape, DType)> = graph
        .externals()
        .filter(|(name, _)| !store.contains(name))
        .map(|(name, tensor)| (name.to_owned(), tensor.shape, tensor.dtype))
        .collect();
    missing.into_iter().try_for_each(|(name, shape, dtype)| store.add(&name, shape, dtype))
}
