//! How a recipe names losses and their parameters: reading and writing them.

use serde_json::{Map, Value, json};

use super::canonical::name;
use super::hidden;
use super::{Divergence, Function, LossFunction, MissingProbability, Names, Scheduled, Share};
use crate::yaml::{Fields, Node};
use crate::{Error, Result};

const MISSING: Names<MissingProbability> = &[
    ("symmetric_uniform", MissingProbability::Ghost),
    ("ghost", MissingProbability::Ghost),
    ("zero", MissingProbability::Zero),
    ("uniform", MissingProbability::Uniform),
    ("both_renormalised", MissingProbability::BothRenormalised),
];

/// A loss by its name in a recipe.
struct Named {
    name: &'static str,
    /// The keys it has besides `function` and `weight`.
    keys: &'static [&'static str],
    read: fn(&Fields) -> Result<Function>,
}

const T: &str = "temperature";
const M: &str = "missing_probability_handling";

/// Every loss there is.
const LOSSES: &[Named] = &[
    Named { name: "cross_entropy", keys: &["label_smoothing", "z_loss"], read: cross_entropy },
    Named { name: "kl", keys: &[T, M], read: |f| divergence(f, Divergence::Kl) },
    Named { name: "reverse_kl", keys: &[T, M], read: |f| divergence(f, Divergence::ReverseKl) },
    Named { name: "jeffreys", keys: &[T, M], read: |f| divergence(f, Divergence::Jeffreys) },
    Named {
        name: "jsd",
        keys: &[T, M, "beta", "scaled"],
        read: |f| {
            let scaled = f.or("scaled", false, Node::boolean)?;
            divergence(f, Divergence::Jsd { beta: scheduled(f, "beta", 0.5)?, scaled })
        },
    },
    Named {
        name: "skew_kl",
        keys: &[T, M, "alpha"],
        read: |f| divergence(f, Divergence::SkewKl { alpha: scheduled(f, "alpha", 0.1)? }),
    },
    Named {
        name: "skew_reverse_kl",
        keys: &[T, M, "alpha"],
        read: |f| divergence(f, Divergence::SkewReverseKl { alpha: scheduled(f, "alpha", 0.1)? }),
    },
    Named { name: "tvd", keys: &[T, M], read: |f| divergence(f, Divergence::Tvd) },
    Named {
        name: "adaptive_kl",
        keys: &[T, M, "mu"],
        read: |f| divergence(f, Divergence::AdaptiveKl { mu: scheduled(f, "mu", 0.5)? }),
    },
    Named {
        name: "alpha_beta",
        keys: &[T, M, "alpha", "beta"],
        read: |f| {
            let (alpha, beta) = (scheduled(f, "alpha", 0.2)?, scheduled(f, "beta", 0.7)?);
            divergence(f, Divergence::AlphaBeta { alpha, beta })
        },
    },
    Named {
        name: "taid",
        keys: &[T, M, "t"],
        read: |f| divergence(f, Divergence::Taid { t: f.or("t", Share::default(), Share::read)? }),
    },
    Named { name: "logit_mse", keys: &[], read: |_| Ok(Function::LogitMse) },
    Named {
        name: "hinge",
        keys: &["margin"],
        read: |f| Ok(Function::Hinge { margin: f.need("margin", "a difference of probabilities", Node::number)? }),
    },
    Named { name: "logistic_ranking", keys: &[], read: |_| Ok(Function::LogisticRanking) },
    Named { name: "hs_mse", keys: &["layer_mapping"], read: hidden::mse },
    Named { name: "hs_cosine", keys: &["layer_mapping"], read: hidden::cosine },
    Named { name: "hs_cka", keys: &["layer_mapping"], read: hidden::cka },
    Named { name: "hs_relation", keys: &["layer_mapping", "relation_heads"], read: hidden::relation },
];

/// A key of DistillKit's losses that says nothing here.
const DISTILLKIT_KEYS: &[&str] = &["sparse_chunk_length"];

fn scheduled(fields: &Fields, key: &str, default: f64) -> Result<Scheduled> {
    fields.or(key, default.into(), Scheduled::read)
}

fn cross_entropy(fields: &Fields) -> Result<Function> {
    Ok(Function::CrossEntropy {
        label_smoothing: fields.or("label_smoothing", 0.0, Node::number)?,
        z_loss: fields.or("z_loss", 0.0, Node::number)?,
    })
}

fn divergence(fields: &Fields, divergence: Divergence) -> Result<Function> {
    Ok(Function::Divergence {
        divergence,
        temperature: scheduled(fields, T, 1.0)?,
        missing: fields.or(M, MissingProbability::Ghost, |node| node.choice(MISSING))?,
    })
}

/// The losses of a recipe that names none.
pub(super) fn default_losses(with_teacher: bool) -> Vec<LossFunction> {
    match with_teacher {
        true => vec![LossFunction::kl(1.0), LossFunction::cross_entropy(0.1)],
        false => vec![LossFunction::cross_entropy(1.0)],
    }
}

/// Reads one item of `loss_functions`.
pub(super) fn loss_function(node: Node) -> Result<LossFunction> {
    let mut known = vec!["function", "weight"];
    for key in LOSSES.iter().flat_map(|loss| loss.keys) {
        if !known.contains(key) {
            known.push(key);
        }
    }
    let fields = node.fields(&known, DISTILLKIT_KEYS)?;
    let names = LOSSES.iter().map(|loss| loss.name).collect::<Vec<_>>();
    let expected = format!("one of {}", names.join(", "));
    let name = fields.need("function", &expected, Node::text)?;
    let Some(loss) = LOSSES.iter().find(|loss| loss.name == name) else {
        let complaint = fields.complaint("function").expected(expected).found(format!("{name:?}"));
        return match Error::nearest(&name, names.iter().copied()) {
            Some(near) => complaint.help(format!("did you mean `{near}`?")).err(),
            None => complaint.err(),
        };
    };
    if let Some(key) = known[2..].iter().find(|key| fields.node(key).is_some() && !loss.keys.contains(key)) {
        let complaint = fields.complaint(key).expected(format!("no such key for {name}")).found("one");
        return match (*key, name.as_str()) {
            (T, "cross_entropy") => complaint.help("cross_entropy is always at temperature 1: remove the key").err(),
            (T, _) => complaint.help(format!("{name} has no temperature: remove the key")).err(),
            _ => complaint.help("remove the key").err(),
        };
    }
    let function = (loss.read)(&fields)?;
    Ok(LossFunction { weight: fields.need("weight", "a number or a schedule", Scheduled::read)?, function })
}

impl Function {
    /// Its name in a recipe and in the metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Function::CrossEntropy { .. } => "cross_entropy",
            Function::Divergence { divergence, .. } => divergence.name(),
            Function::LogitMse => "logit_mse",
            Function::Hinge { .. } => "hinge",
            Function::LogisticRanking => "logistic_ranking",
            Function::Hidden(hidden) => hidden.kind.name(),
        }
    }
}

impl Divergence {
    fn name(&self) -> &'static str {
        match self {
            Divergence::Kl => "kl",
            Divergence::ReverseKl => "reverse_kl",
            Divergence::Jeffreys => "jeffreys",
            Divergence::Jsd { .. } => "jsd",
            Divergence::SkewKl { .. } => "skew_kl",
            Divergence::SkewReverseKl { .. } => "skew_reverse_kl",
            Divergence::Tvd => "tvd",
            Divergence::AdaptiveKl { .. } => "adaptive_kl",
            Divergence::AlphaBeta { .. } => "alpha_beta",
            Divergence::Taid { .. } => "taid",
        }
    }
}

impl MissingProbability {
    /// Its first name in a recipe.
    pub fn name(self) -> &'static str {
        name(MISSING, self)
    }
}

impl LossFunction {
    pub(super) fn to_json(&self) -> Value {
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.to_string(), value);
        put("function", json!(self.function.name()));
        put("weight", self.weight.to_json());
        match &self.function {
            Function::CrossEntropy { label_smoothing, z_loss } => {
                // As in recipes from before there were these keys.
                for (key, value) in [("label_smoothing", *label_smoothing), ("z_loss", *z_loss)] {
                    if value != 0.0 {
                        put(key, json!(value));
                    }
                }
            }
            Function::Divergence { divergence, temperature, missing } => {
                put(T, temperature.to_json());
                put(M, json!(missing.name()));
                for (key, value, _) in divergence.parameters() {
                    put(key, value.to_json());
                }
                match divergence {
                    Divergence::Jsd { scaled, .. } => drop(put("scaled", json!(scaled))),
                    Divergence::Taid { t } => drop(put("t", t.to_json())),
                    _ => {}
                }
            }
            Function::Hinge { margin } => {
                put("margin", json!(margin));
            }
            Function::Hidden(hidden) => hidden.put_json(&mut map),
            Function::LogitMse | Function::LogisticRanking => {}
        }
        Value::Object(map)
    }
}
