//! The recipe's losses in the training graph, and the numbers of theirs that the host sets before each step.

use super::recipe::{
    Divergence, Function, LossFunction, MissingProbability, Scheduled, Share, loss_names, record_temperatures,
};
use super::step::{GraphTeacher, StepSpec, TeacherInput};
use crate::graph::{DType, Graph, Store, Tensor};
use crate::losses::{Divergent, Loss, Target, Temperature};
use crate::ops::{self, Missing, Power, Ranking, Smoothing, SparseTarget};
use crate::{Error, Result};

/// The external of one number of loss `i` that the host sets.
pub(super) fn external(i: usize, key: &str) -> String {
    format!("train.loss.{i}.{key}")
}

/// The prefix of what the host writes of teacher `number` for the graph `graph`.
fn teacher_inputs(graph: &str, number: usize) -> String {
    if number == 0 { format!("{graph}.teacher") } else { format!("{graph}.teacher{}", number + 1) }
}

/// The prefix of the externals that hold the records of teacher `number` at temperature number `index` of
/// [`record_temperatures`], in the graph `graph`.
pub fn records_prefix(graph: &str, number: usize, index: usize) -> String {
    let teacher = teacher_inputs(graph, number);
    if index == 0 { teacher } else { format!("{teacher}.at{}", index + 1) }
}

/// The external that holds how much each row counts for teacher `number`, in the graph `graph`.
pub fn row_weights(graph: &str, number: usize) -> String {
    format!("{}.weights", teacher_inputs(graph, number))
}

/// Sets what changes over the run to its values in the step after `step` steps of `total`. Only what is in the graph is
/// in the store.
pub fn write_scheduled(store: &Store, losses: &[LossFunction], step: u64, total: u64) -> Result<()> {
    let write = |name: String, values: &[f32]| {
        if store.contains(&name) { store.write(&name, values) } else { Ok(()) }
    };
    for (i, loss) in losses.iter().enumerate() {
        let at = |value: &Scheduled| value.at(step, total) as f32;
        write(external(i, "weight"), &[at(&loss.weight)])?;
        if let Function::Divergence { divergence, temperature, .. } = &loss.function {
            let (_, parameters, blend) = kernel(divergence);
            write(external(i, "temperature"), &[at(temperature)])?;
            write(external(i, "parameters"), &parameters.map(|value| value.map_or(0.0, at)))?;
            // An adaptive t is the device's own.
            if let Some(t) = blend.and_then(Share::scheduled) {
                write(external(i, "t"), &[at(t)])?;
            }
        }
    }
    Ok(())
}

/// What changes over the run, by loss and key, with its values in the step after `step` steps of `total`.
pub fn scheduled_values(losses: &[LossFunction], step: u64, total: u64) -> Vec<(String, f64)> {
    let named = loss_names(losses).into_iter().zip(losses);
    let values = named.flat_map(|(name, loss)| {
        let of = move |(key, value): (&str, &Scheduled)| (format!("{name}.{key}"), value.at(step, total));
        loss.scheduled().into_iter().map(of)
    });
    values.collect()
}

/// The op of a divergence, its parameters, and the share of the teacher in TAID's target.
fn kernel(divergence: &Divergence) -> (ops::Divergence, [Option<&Scheduled>; 2], Option<&Share>) {
    let none = [None, None];
    match divergence {
        Divergence::Kl => (ops::Divergence::Kl, none, None),
        Divergence::ReverseKl => (ops::Divergence::ReverseKl, none, None),
        Divergence::Jeffreys => (ops::Divergence::Jeffreys, none, None),
        Divergence::Jsd { beta, scaled: false } => (ops::Divergence::Jsd, [Some(beta), None], None),
        Divergence::Jsd { beta, scaled: true } => (ops::Divergence::ScaledJsd, [Some(beta), None], None),
        Divergence::SkewKl { alpha } => (ops::Divergence::SkewKl, [Some(alpha), None], None),
        Divergence::SkewReverseKl { alpha } => (ops::Divergence::SkewReverseKl, [Some(alpha), None], None),
        Divergence::Tvd => (ops::Divergence::Tvd, none, None),
        Divergence::AdaptiveKl { mu } => (ops::Divergence::AdaptiveKl, [Some(mu), None], None),
        Divergence::AlphaBeta { alpha, beta } => (ops::Divergence::AlphaBeta, [Some(alpha), Some(beta)], None),
        Divergence::Taid { t } => (ops::Divergence::Kl, none, Some(t)),
    }
}

impl StepSpec {
    /// The row weights of loss `i`: `weights` times its own, which may change over the run.
    pub(super) fn weights(&self, g: &mut Graph, i: usize, weights: Tensor) -> Tensor {
        match self.losses[i].weight.constant() {
            Some(weight) => ops::scale(g, weights, weight as f32),
            None => {
                let weight = g.external(&external(i, "weight"), [1], DType::F32);
                ops::scale_by(g, weights, weight, Power::One)
            }
        }
    }

    /// Loss `i` of the recipe, one on labels alone. Row weights leave the loss's own out.
    pub(super) fn on_labels(&self, g: &mut Graph, i: usize, labels: Tensor, weights: Tensor) -> Result<Loss<'static>> {
        match self.losses[i].function {
            Function::CrossEntropy { label_smoothing, z_loss } => {
                let smoothing = Smoothing { label_smoothing: label_smoothing as f32, z_loss: z_loss as f32 };
                Ok(Loss::CrossEntropy { labels, smoothing, weights: self.weights(g, i, weights) })
            }
            _ => Err(Error::internal(format!("{} on labels alone", self.losses[i].function.name()))),
        }
    }

    /// Loss `i` of the recipe, one on logits, beside one teacher.
    pub(super) fn on_teacher<'a>(&self, g: &mut Graph, i: usize, teacher: &'a GraphTeacher<'_>) -> Result<Loss<'a>> {
        let (loss, weights) = (&self.losses[i], self.weights(g, i, teacher.weights));
        match &loss.function {
            Function::Hidden(_) | Function::CrossEntropy { .. } => {
                Err(Error::internal(format!("{} on a teacher's logits", loss.function.name())))
            }
            Function::Divergence { divergence, temperature, missing } => {
                let target = match self.live(teacher) {
                    Some(live) => Target::Live(live, fixed_or_scheduled(g, i, temperature)),
                    None => Target::Stored(self.train_records(g, &loss.function, teacher, *missing)?),
                };
                let (divergence, parameters, blend) = kernel(divergence);
                let asks = parameters.iter().any(Option::is_some);
                let parameters = asks.then(|| g.external(&external(i, "parameters"), [2], DType::F32));
                let blend = blend.map(|_| g.external(&external(i, "t"), [1], DType::F32));
                Ok(Loss::Divergence(Divergent { divergence, parameters, blend, target, weights }))
            }
            Function::LogitMse => {
                let live = self.live(teacher).ok_or_else(|| Error::internal("logit_mse without a live teacher"))?;
                let target = Target::Live(live, Temperature::Fixed(1.0));
                let divergence = ops::Divergence::LogitMse;
                Ok(Loss::Divergence(Divergent { divergence, parameters: None, blend: None, target, weights }))
            }
            Function::Hinge { .. } | Function::LogisticRanking => {
                let ranking = match loss.function {
                    Function::Hinge { margin } => Ranking::Hinge { margin: margin as f32 },
                    _ => Ranking::Logistic,
                };
                let target = self.train_records(g, &loss.function, teacher, MissingProbability::Zero)?;
                Ok(Loss::Ranking { ranking, target, weights })
            }
        }
    }

    fn train_records(
        &self,
        g: &mut Graph,
        of: &Function,
        teacher: &GraphTeacher<'_>,
        missing: MissingProbability,
    ) -> Result<SparseTarget> {
        let temperature = of.record_temperature();
        let index = record_temperatures(&self.losses).iter().position(|t| Some(*t) == temperature);
        match (index, temperature, &teacher.spec.input) {
            (Some(index), Some(t), TeacherInput::Sparse { .. }) => {
                Ok(records(g, teacher, &records_prefix("train", teacher.number, index), t, missing))
            }
            _ => Err(Error::internal(format!("{} without records", of.name()))),
        }
    }
}

/// The externals that hold a teacher's stored rows under `prefix`, at temperature `t`.
pub(super) fn records(
    g: &mut Graph,
    teacher: &GraphTeacher<'_>,
    prefix: &str,
    t: f64,
    missing: MissingProbability,
) -> SparseTarget {
    let (entries, sampled) = match teacher.spec.input {
        TeacherInput::Sparse { entries, sampled } => (entries, sampled),
        _ => (1, false),
    };
    let n = teacher.weights.shape.numel();
    let mut tail = || g.external(&format!("{prefix}.tail"), [n], DType::F32);
    let missing = match missing {
        // Draws are a whole distribution: nothing is missing.
        _ if sampled => Missing::Zero,
        MissingProbability::Ghost => Missing::Ghost { tail: tail() },
        MissingProbability::Uniform => Missing::Uniform { tail: tail() },
        MissingProbability::Zero => Missing::Zero,
        MissingProbability::BothRenormalised => Missing::BothRenormalised,
    };
    SparseTarget {
        ids: g.external(&format!("{prefix}.ids"), [n, entries], DType::U32),
        log_probs: g.external(&format!("{prefix}.log_probs"), [n, entries], DType::F32),
        missing,
        temperature: t as f32,
    }
}

fn fixed_or_scheduled(g: &mut Graph, i: usize, temperature: &Scheduled) -> Temperature {
    match temperature.constant() {
        Some(t) => Temperature::Fixed(t as f32),
        None => Temperature::Scalar(g.external(&external(i, "temperature"), [1], DType::F32)),
    }
}
