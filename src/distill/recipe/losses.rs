//! The terms of the loss.
//!
//! To add one: a variant of [`Function`] and a row of `LOSSES` in `loss_keys.rs`, which reads it; then the compiler
//! asks for its name and canonical form there, and for its recording in `distill/terms.rs`.

use super::{Adaptive, Hidden, Recipe, Scheduled, Share};

/// One term of the loss.
#[derive(Clone, Debug, PartialEq)]
pub struct LossFunction {
    /// Its factor, not normalised.
    pub weight: Scheduled,
    /// Which.
    pub function: Function,
}

/// The terms there are.
#[derive(Clone, Debug, PartialEq)]
pub enum Function {
    /// `cross_entropy`: the negative log-likelihood of the text's own next token, at temperature 1.
    CrossEntropy {
        /// Share of the target that is spread over the whole vocabulary; default 0.
        label_smoothing: f64,
        /// Factor of the squared log-partition; default 0.
        z_loss: f64,
    },
    /// A divergence between the teacher's distribution and the student's.
    Divergence {
        /// Which.
        divergence: Divergence,
        /// T of both softmaxes; the loss is multiplied by T^2 (Hinton 2015). Default 1.
        temperature: Scheduled,
        /// `missing_probability_handling`.
        missing: MissingProbability,
    },
    /// `logit_mse`: the variance over the vocabulary of the difference between the logits.
    LogitMse,
    /// `hinge`: the teacher's order of its recorded tokens, as probabilities that are `margin` apart.
    Hinge {
        /// In probability.
        margin: f64,
    },
    /// `logistic_ranking`: the teacher's order of its recorded tokens, as logits.
    LogisticRanking,
    /// `hs_mse`, `hs_cosine`, `hs_cka`, `hs_relation`: a comparison of hidden states or attention relations.
    Hidden(Hidden),
}

/// Divergences between p, the teacher's distribution, and q, the student's. `docs/losses.md` has the formulas.
#[derive(Clone, Debug, PartialEq)]
pub enum Divergence {
    /// `kl`: KL(p || q).
    Kl,
    /// `reverse_kl`: KL(q || p).
    ReverseKl,
    /// `jeffreys`: the sum of both.
    Jeffreys,
    /// `jsd`: beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q.
    Jsd {
        /// Default 0.5.
        beta: Scheduled,
        /// Divided by beta (1 - beta), which makes its ends 0 and 1 `kl` and `reverse_kl`; default false.
        scaled: bool,
    },
    /// `skew_kl`: KL(p || alpha p + (1 - alpha) q).
    SkewKl {
        /// Default 0.1.
        alpha: Scheduled,
    },
    /// `skew_reverse_kl`: KL(q || (1 - alpha) p + alpha q).
    SkewReverseKl {
        /// Default 0.1.
        alpha: Scheduled,
    },
    /// `tvd`: half of sum |p - q|.
    Tvd,
    /// `adaptive_kl`: KL both ways, weighted by where the distributions differ.
    AdaptiveKl {
        /// The head's probability; default 0.5.
        mu: Scheduled,
    },
    /// `alpha_beta`: ABKD's divergence.
    AlphaBeta {
        /// Default 0.2.
        alpha: Scheduled,
        /// Default 0.7.
        beta: Scheduled,
    },
    /// `taid`: KL from softmax((1 - t) z + t v), between the student's logits z and the teacher's v.
    Taid {
        /// Default from 0.4 to 1 over the run.
        t: Share,
    },
}

/// What a sparse teacher's unrecorded probability means. A dense teacher leaves none out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingProbability {
    /// `symmetric_uniform`, `ghost`: one more outcome, the rest of the vocabulary, with the recorded tail mass.
    #[default]
    Ghost,
    /// `zero`: none; the recorded probabilities are scaled to sum to 1. Biased; for comparisons.
    Zero,
    /// `uniform`: the recorded tail mass in equal shares for all tokens that are not recorded.
    Uniform,
    /// `both_renormalised`: teacher and student are compared on the recorded tokens alone.
    BothRenormalised,
}

/// What a parameter of a divergence may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bounds {
    /// Between 0 and 1.
    Inside,
    /// From 0 to 1.
    Unit,
    /// Above 0.
    Positive,
}

impl LossFunction {
    /// Plain `cross_entropy`.
    pub fn cross_entropy(weight: f64) -> LossFunction {
        let function = Function::CrossEntropy { label_smoothing: 0.0, z_loss: 0.0 };
        LossFunction { weight: weight.into(), function }
    }

    /// `kl` at temperature 1 with the ghost bucket.
    pub fn kl(weight: f64) -> LossFunction {
        let (divergence, missing) = (Divergence::Kl, MissingProbability::Ghost);
        let function = Function::Divergence { divergence, temperature: 1.0.into(), missing };
        LossFunction { weight: weight.into(), function }
    }

    /// Everything of it that changes over the run, by key.
    pub fn scheduled(&self) -> Vec<(&'static str, &Scheduled)> {
        let mut all = vec![("weight", &self.weight)];
        if let Function::Divergence { divergence, temperature, .. } = &self.function {
            all.push(("temperature", temperature));
            all.extend(divergence.parameters().into_iter().map(|(key, value, _)| (key, value)));
        }
        all.retain(|(_, value)| value.constant().is_none());
        all
    }
}

impl Function {
    /// Whether it needs a teacher.
    pub fn needs_teacher(&self) -> bool {
        !matches!(self, Function::CrossEntropy { .. })
    }

    /// The rule by which its t follows the loss: TAID's, where it does.
    pub fn adaptive(&self) -> Option<&Adaptive> {
        match self {
            Function::Divergence { divergence, .. } => divergence.adaptive(),
            _ => None,
        }
    }

    /// The temperature at which it wants a stored teacher's records; `None` if it reads none.
    pub fn record_temperature(&self) -> Option<f64> {
        match self {
            Function::Divergence { temperature, .. } => temperature.constant(),
            Function::Hinge { .. } | Function::LogisticRanking => Some(1.0),
            Function::CrossEntropy { .. } | Function::LogitMse | Function::Hidden(_) => None,
        }
    }
}

impl Function {
    /// What it is, for a reader who does not know its name.
    pub fn describe(&self) -> String {
        match self {
            Function::CrossEntropy { label_smoothing, z_loss } => {
                let mut text = "cross entropy with the text's next token".to_string();
                for (value, what) in [(label_smoothing, "label smoothing"), (z_loss, "z-loss")] {
                    if *value != 0.0 {
                        text += &format!(", {what} {value}");
                    }
                }
                text
            }
            Function::Divergence { divergence, temperature, missing } => {
                let missing = match missing {
                    MissingProbability::Ghost => "unrecorded probability as one outcome more",
                    MissingProbability::Zero => "recorded probabilities scaled up to 1",
                    MissingProbability::Uniform => "unrecorded probability in equal shares",
                    MissingProbability::BothRenormalised => "both sides renormalised over the recorded tokens",
                };
                format!("{} at temperature {temperature}, {missing}", divergence.describe())
            }
            Function::LogitMse => "the variance of the difference between the logits".to_string(),
            Function::Hinge { margin } => format!("the teacher's ranking, by probabilities {margin} apart"),
            Function::LogisticRanking => "the teacher's ranking, by logits".to_string(),
            Function::Hidden(hidden) => hidden.kind.describe().to_string(),
        }
    }
}

impl Divergence {
    fn describe(&self) -> String {
        let name = match self {
            Divergence::Kl => "KL(teacher || student)",
            Divergence::ReverseKl => "KL(student || teacher)",
            Divergence::Jeffreys => "KL(teacher || student) + KL(student || teacher)",
            Divergence::Jsd { scaled: false, .. } => "Jensen-Shannon divergence",
            Divergence::Jsd { scaled: true, .. } => "scaled Jensen-Shannon divergence",
            Divergence::SkewKl { .. } => "KL(teacher || mixture with the student)",
            Divergence::SkewReverseKl { .. } => "KL(student || mixture with the teacher)",
            Divergence::Tvd => "total variation distance",
            Divergence::AdaptiveKl { .. } => "adaptive KL in both directions",
            Divergence::AlphaBeta { .. } => "alpha-beta divergence",
            Divergence::Taid { .. } => "KL(teacher between student and teacher || student)",
        };
        let mut parameters: Vec<String> =
            self.parameters().iter().map(|(key, value, _)| format!("{key} {value}")).collect();
        parameters.extend(self.adaptive().map(|rule| format!("t {rule}")));
        if parameters.is_empty() { name.to_string() } else { format!("{name} ({})", parameters.join(", ")) }
    }

    /// Its parameters by key.
    pub(super) fn parameters(&self) -> Vec<(&'static str, &Scheduled, Bounds)> {
        match self {
            Divergence::Kl | Divergence::ReverseKl | Divergence::Jeffreys | Divergence::Tvd => Vec::new(),
            Divergence::Jsd { beta, scaled: false } => vec![("beta", beta, Bounds::Inside)],
            Divergence::Jsd { beta, scaled: true } => vec![("beta", beta, Bounds::Unit)],
            Divergence::SkewKl { alpha } | Divergence::SkewReverseKl { alpha } => {
                vec![("alpha", alpha, Bounds::Inside)]
            }
            Divergence::AdaptiveKl { mu } => vec![("mu", mu, Bounds::Inside)],
            Divergence::AlphaBeta { alpha, beta } => {
                vec![("alpha", alpha, Bounds::Positive), ("beta", beta, Bounds::Positive)]
            }
            Divergence::Taid { t } => t.scheduled().map(|t| ("t", t, Bounds::Unit)).into_iter().collect(),
        }
    }

    /// The rule by which TAID's t follows the loss, if it does.
    pub fn adaptive(&self) -> Option<&Adaptive> {
        match self {
            Divergence::Taid { t } => t.adaptive(),
            _ => None,
        }
    }

    /// Whether it is infinite where the teacher has probability 0 and the student has not.
    pub fn needs_support(&self) -> bool {
        match self {
            Divergence::ReverseKl | Divergence::Jeffreys | Divergence::AdaptiveKl { .. } => true,
            Divergence::Jsd { beta, scaled: true } => beta.ends().iter().any(|beta| *beta >= 1.0),
            _ => false,
        }
    }
}

/// The names of losses in metrics: those in the recipe, numbered from the second of a name on: `kl`, `kl_2`.
pub fn loss_names(losses: &[LossFunction]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (i, loss) in losses.iter().enumerate() {
        let name = loss.function.name();
        let before = losses[..i].iter().filter(|other| other.function.name() == name).count();
        names.push(if before == 0 { name.to_string() } else { format!("{name}_{}", before + 1) });
    }
    names
}

/// The distinct temperatures at which `losses` want a stored teacher's records, in their order.
pub fn record_temperatures(losses: &[LossFunction]) -> Vec<f64> {
    let mut temperatures: Vec<f64> = Vec::new();
    for temperature in losses.iter().filter_map(|loss| loss.function.record_temperature()) {
        if !temperatures.contains(&temperature) {
            temperatures.push(temperature);
        }
    }
    temperatures
}

impl Recipe {
    /// Whether a loss needs the teacher.
    pub fn learns_from_teacher(&self) -> bool {
        self.loss_functions.iter().any(|loss| loss.function.needs_teacher())
    }

    /// Whether there is a `cross_entropy` with a weight above 0.
    pub fn has_cross_entropy(&self) -> bool {
        let counts = |loss: &LossFunction| loss.weight.ends().iter().any(|weight| *weight > 0.0);
        let is = |loss: &&LossFunction| matches!(loss.function, Function::CrossEntropy { .. });
        self.loss_functions.iter().filter(is).any(counts)
    }
}
