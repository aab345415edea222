//! The graphs of a run: one micro-batch of training, one batch of evaluation. Recorded once, replayed for every batch.

mod evaluation;
mod teacher;
mod training;

pub(super) use teacher::GraphTeacher;
pub use teacher::{StepTeacher, TeacherInput, teacher_prefix};

use super::recipe::LossFunction;
use super::trained::Trained;
use crate::Result;
use crate::device::Precision;
use crate::graph::{DType, Graph, Shape, Store, Tensor};
use crate::losses::Head;
use crate::models::Decoder;
use crate::nn::BatchInputs;

/// The student's likeliest tokens, an output of the evaluation against stored rows.
pub const BEST: &str = "best";
/// Prefix of the rings that hold the last steps' losses, `metrics.0`, `metrics.1`, ... in the recipe's order.
pub const METRICS: &str = "metrics";

/// What the graphs are recorded from.
#[derive(Clone)]
pub struct StepSpec {
    /// The student.
    pub student: Decoder,
    /// What of it is trained.
    pub trained: Trained,
    /// The teachers, in the recipe's order.
    pub teachers: Vec<StepTeacher>,
    /// Whether the teachers share the rows, each by row weights of its own ([`super::teaching::Shares`]); else the only
    /// one teaches every row that counts.
    pub shared: bool,
    /// Tokens that all vocabularies really have.
    pub vocabulary: usize,
    /// Sequences in a micro-batch.
    pub batch: usize,
    /// Rows in a sequence.
    pub context: usize,
    /// Recompute activations.
    pub recompute: bool,
    /// How the training graph's products treat their factors; what is measured is measured in f32.
    pub precision: Precision,
    /// The losses.
    pub losses: Vec<LossFunction>,
}

/// The inputs of one graph, `train` or `eval`.
struct Inputs {
    graph: &'static str,
    batch: BatchInputs,
    /// u32 [N].
    labels: Tensor,
    /// f32 [N]: how much each row counts, 0 where it does not.
    weights: Tensor,
}

impl StepSpec {
    /// Rows of a micro-batch.
    pub fn rows(&self) -> usize {
        self.batch * self.context
    }

    fn inputs(&self, g: &mut Graph, graph: &'static str, gradients: bool) -> Inputs {
        let n = self.rows();
        let batch = BatchInputs::declare(g, graph, n, self.context, gradients);
        let labels = g.external(&format!("{graph}.labels"), [n], DType::U32);
        let weights = g.external(&format!("{graph}.weights"), [n], DType::F32);
        Inputs { graph, batch, labels, weights }
    }

    /// The head of the student or of a teacher, over the tokens that both have.
    fn head<'a>(&self, decoder: &Decoder, weight: &'a [Tensor]) -> Head<'a> {
        Head { weight, vocab: self.vocabulary, softcap: decoder.config.logit_softcap }
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
