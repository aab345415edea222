//! The terms of the loss: what they are, how a recipe names them, what their values have to be.
//!
//! To add one: a variant of [`Function`] and a row of [`LOSSES`], which reads it; then the compiler asks for its
//! check and its canonical form here, and for its recording in `distill/step.rs`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::canonical::name;
use super::fields::{Fields, Node};
use super::hidden::{self, Hidden};
use super::{Names, Recipe};
use crate::{Error, Result};

/// One term of the loss.
#[derive(Clone, Debug, PartialEq)]
pub struct LossFunction {
    /// Its factor, not normalised.
    pub weight: f64,
    /// Which.
    pub function: Function,
}

/// The terms there are.
#[derive(Clone, Debug, PartialEq)]
pub enum Function {
    /// `cross_entropy`: the negative log-likelihood of the text's own next token, at temperature 1.
    CrossEntropy,
    /// `kl`: the divergence of the student from the teacher, KL(teacher || student).
    Kl {
        /// T of both softmaxes; the loss is multiplied by T^2 (Hinton 2015). Default 1.
        temperature: f64,
        /// `missing_probability_handling`.
        missing: MissingProbability,
    },
    /// `hs_mse`, `hs_cosine`, `hs_cka`, `hs_relation`: a comparison of hidden states or attention relations.
    Hidden(Hidden),
}

/// What a sparse teacher's unrecorded probability means. A dense teacher leaves none out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingProbability {
    /// `symmetric_uniform`: one more outcome, the rest of the vocabulary, with the recorded tail mass (the ghost
    /// bucket).
    #[default]
    Ghost,
    /// `zero`: none; the recorded probabilities are scaled to sum to 1. Biased; for comparisons.
    Zero,
}

const MISSING: Names<MissingProbability> =
    &[("symmetric_uniform", MissingProbability::Ghost), ("zero", MissingProbability::Zero)];

/// A loss by its name in a recipe.
struct Named {
    name: &'static str,
    /// The keys it has besides `function` and `weight`.
    keys: &'static [&'static str],
    read: fn(&Fields) -> Result<Function>,
}

/// Every loss there is.
const LOSSES: &[Named] = &[
    Named { name: "cross_entropy", keys: &[], read: |_| Ok(Function::CrossEntropy) },
    Named { name: "kl", keys: &["temperature", "missing_probability_handling"], read: kl },
    Named { name: "hs_mse", keys: &["layer_mapping"], read: hidden::mse },
    Named { name: "hs_cosine", keys: &["layer_mapping"], read: hidden::cosine },
    Named { name: "hs_cka", keys: &["layer_mapping"], read: hidden::cka },
    Named { name: "hs_relation", keys: &["layer_mapping", "relation_heads"], read: hidden::relation },
];

/// Losses of DistillKit that this crate lacks, and keys of its losses that say nothing here.
const DISTILLKIT_LOSSES: &[&str] = &["jsd", "tvd", "hinge", "logistic_ranking"];
const DISTILLKIT_KEYS: &[&str] = &["sparse_chunk_length", "margin"];

fn kl(fields: &Fields) -> Result<Function> {
    Ok(Function::Kl {
        temperature: fields.or("temperature", 1.0, Node::number)?,
        missing: fields.or("missing_probability_handling", MissingProbability::Ghost, |n| n.choice(MISSING))?,
    })
}

/// The losses of a recipe that names none.
pub(super) fn default_losses(with_teacher: bool) -> Vec<LossFunction> {
    let kl = Function::Kl { temperature: 1.0, missing: MissingProbability::Ghost };
    if with_teacher {
        let cross_entropy = LossFunction { weight: 0.1, function: Function::CrossEntropy };
        return vec![LossFunction { weight: 1.0, function: kl }, cross_entropy];
    }
    vec![LossFunction { weight: 1.0, function: Function::CrossEntropy }]
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
    let name = fields.need("function", &format!("one of {}", names.join(", ")), Node::text)?;
    let Some(loss) = LOSSES.iter().find(|loss| loss.name == name) else {
        let complaint = fields.complaint("function").expected(format!("one of {}", names.join(", ")));
        let complaint = complaint.found(format!("{name:?}"));
        let near = Error::nearest(&name, names.iter().copied());
        return match (near, DISTILLKIT_LOSSES.contains(&name.as_str())) {
            (_, true) => complaint.help("DistillKit has this loss, potstill does not").err(),
            (Some(near), false) => complaint.help(format!("did you mean `{near}`?")).err(),
            (None, false) => complaint.err(),
        };
    };
    if let Some(key) = known[2..].iter().find(|key| fields.node(key).is_some() && !loss.keys.contains(key)) {
        let complaint = fields.complaint(key).expected(format!("no such key for {name}")).found("one");
        let help = if name == "cross_entropy" { "cross_entropy is always at temperature 1: " } else { "" };
        return complaint.help(format!("{help}remove the key")).err();
    }
    let function = (loss.read)(&fields)?;
    Ok(LossFunction { weight: fields.need("weight", "a positive number", Node::number)?, function })
}

impl Function {
    /// Its name in a recipe and in the metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Function::CrossEntropy => "cross_entropy",
            Function::Kl { .. } => "kl",
            Function::Hidden(hidden) => hidden.kind.name(),
        }
    }

    /// Whether it needs a teacher.
    pub fn needs_teacher(&self) -> bool {
        !matches!(self, Function::CrossEntropy)
    }
}

impl LossFunction {
    pub(super) fn to_json(&self) -> Value {
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.to_string(), value);
        put("function", json!(self.function.name()));
        put("weight", json!(self.weight));
        match &self.function {
            Function::CrossEntropy => {}
            Function::Hidden(hidden) => hidden.put_json(&mut map),
            &Function::Kl { temperature, missing } => {
                put("temperature", json!(temperature));
                put("missing_probability_handling", json!(name(MISSING, missing)));
            }
        }
        Value::Object(map)
    }
}

impl Recipe {
    pub(super) fn check_losses(&self, file: &Path) -> Result<()> {
        let complaint = |key: String| Error::file(file).field(format!("`loss_functions{key}`"));
        if self.loss_functions.is_empty() {
            return complaint(String::new()).expected("at least one loss").found("none").err();
        }
        for (i, loss) in self.loss_functions.iter().enumerate() {
            if !(loss.weight > 0.0 && loss.weight.is_finite()) {
                let complaint = complaint(format!("[{i}].weight")).expected("a positive number").found(loss.weight);
                return complaint.help("remove the loss to leave it out").err();
            }
            let same = |other: &LossFunction| other.function.name() == loss.function.name();
            if self.loss_functions[..i].iter().any(same) {
                let complaint = complaint(format!("[{i}].function")).expected("each loss once").found("it again");
                return complaint.help("add up the weights").err();
            }
            if let Function::Kl { temperature, .. } = loss.function
                && !(temperature > 0.0 && temperature.is_finite())
            {
                let complaint = complaint(format!("[{i}].temperature"));
                return complaint.expected("a positive number").found(temperature).help("1 is usual").err();
            }
            if loss.function.needs_teacher() && self.teacher.is_none() {
                let expected = format!("a `teacher` for {}", loss.function.name());
                let complaint = complaint(format!("[{i}].function")).expected(expected).found("none");
                return complaint.help("add a teacher, or train on text with cross_entropy alone").err();
            }
        }
        Ok(())
    }

    /// The `kl` term, if there is one: its weight, temperature and handling of missing probability.
    pub fn kl(&self) -> Option<(f64, f64, MissingProbability)> {
        self.loss_functions.iter().find_map(|loss| match loss.function {
            Function::Kl { temperature, missing } => Some((loss.weight, temperature, missing)),
            Function::CrossEntropy | Function::Hidden(_) => None,
        })
    }

    /// The weight of `cross_entropy`, 0 without it.
    pub fn cross_entropy_weight(&self) -> f64 {
        let weight = |loss: &LossFunction| (loss.function == Function::CrossEntropy).then_some(loss.weight);
        self.loss_functions.iter().find_map(weight).unwrap_or(0.0)
    }
}
