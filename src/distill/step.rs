//! The graphs of a run: one micro-batch of training, one batch of evaluation. Recorded once, replayed for every batch.

use super::recipe::{LossFunction, MissingProbability};
use super::terms::{Sources, records_prefix};
use super::trained::Trained;
use crate::Result;
use crate::device::Caps;
use crate::graph::{DType, Graph, Shape, Store, Tensor};
use crate::losses::{Against, Head, Live, Loss, chunk_rows, evaluate_head, fused_head};
use crate::models::Decoder;
use crate::nn::{BatchInputs, Params};
use crate::ops;
use crate::optim::{RING, RING_AT};

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
        let teacher_hidden = match &self.teacher {
            TeacherInput::Live(teacher) if learns => {
                Some((teacher, teacher.forward(&mut g, &Params::frozen(TEACHER), &batch, false)?))
            }
            _ => None,
        };
        let hidden = self.student.forward(&mut g, &trained, &batch, self.recompute)?;
        let teacher_head = teacher_hidden.map(|(teacher, _)| [teacher.head_weight(&mut g, &Params::frozen(TEACHER))]);
        let live = teacher_hidden
            .zip(teacher_head.as_ref())
            .map(|((teacher, hidden), weight)| Live { hidden, head: self.head(teacher, weight) });
        let sources = Sources { labels, weights, live };
        let losses =
            (0..self.losses.len()).map(|i| self.term(&mut g, i, &sources)).collect::<Result<Vec<Loss<'_>>>>()?;
        let head = [self.student.head_weight(&mut g, &trained)];
        let head = self.head(&self.student, &head);
        let rows = chunk_rows(self.student.config.vocab_size, caps);
        let fused = fused_head(&mut g, hidden, &head, &losses, rows, true)?;
        if let Some(d_hidden) = fused.d_hidden {
            g.backward(&[(hidden, d_hidden)])?;
        }
        let at = g.external(RING_AT, [1], DType::U32);
        for (i, rows) in fused.loss_rows.into_iter().enumerate() {
            let ring = g.external(&format!("{METRICS}.{i}"), [RING], DType::F32);
            ops::weighted_sum(&mut g, rows, weights, ring, at);
        }
        Ok(g)
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
        let live_params = Params::frozen(TEACHER);
        let live = match &self.teacher {
            TeacherInput::Live(teacher) => {
                let hidden = teacher.forward(&mut g, &live_params, &batch, false)?;
                Some((teacher, hidden, [teacher.head_weight(&mut g, &live_params)]))
            }
            _ => None,
        };
        let teacher = match (&self.teacher, &live) {
            (_, Some((teacher, hidden, weight))) => {
                Against::Live(Live { hidden: *hidden, head: self.head(teacher, weight) })
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
