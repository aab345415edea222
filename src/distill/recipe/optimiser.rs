//! The keys of `training_args` that choose the optimiser and the rates of single parameters.

use super::{Names, TrainingArgs};
use crate::optim::{Rule, Settings};
use crate::yaml::{Gather, Node};
use serde_json::{Map, Value, json};

/// `optim`: how gradients move parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Optim {
    /// `adamw_torch`, `adamw`: AdamW.
    #[default]
    AdamW,
    /// `adamw_8bit`: AdamW with matrices' moments in 8 bits.
    AdamW8Bit,
    /// `lion`.
    Lion,
    /// `sgd`.
    Sgd,
}

pub(super) const OPTIMS: Names<Optim> = &[
    ("adamw_torch", Optim::AdamW),
    ("adamw_8bit", Optim::AdamW8Bit),
    ("lion", Optim::Lion),
    ("sgd", Optim::Sgd),
    ("adamw", Optim::AdamW),
    ("adamw_bnb_8bit", Optim::AdamW8Bit),
    ("lion_32bit", Optim::Lion),
];

/// What [`read`] reads.
pub(super) struct Read {
    pub optim: Optim,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_epsilon: f64,
    pub momentum: f64,
    pub layerwise_lr_decay: f64,
    pub lr_multipliers: Vec<(String, f64)>,
    pub ema_decay: f64,
}

impl Optim {
    /// The constants that the rule has, with their defaults.
    fn constants(self) -> &'static [(&'static str, f64)] {
        match self {
            Optim::AdamW | Optim::AdamW8Bit => &[("adam_beta1", 0.9), ("adam_beta2", 0.999), ("adam_epsilon", 1e-8)],
            Optim::Lion => &[("adam_beta1", 0.9), ("adam_beta2", 0.99)],
            Optim::Sgd => &[("momentum", 0.0)],
        }
    }
}

pub(super) fn read(keys: &mut Gather) -> Read {
    // Where `optim` itself is wrong, any of them may be right.
    let before = keys.problems();
    let optim = keys.or("optim", Optim::AdamW, |node| node.choice(OPTIMS));
    let known = keys.problems() == before;
    let name = super::canonical::name(OPTIMS, optim);
    let mut constant = |key: &str| match optim.constants().iter().find(|(own, _)| *own == key) {
        Some((_, default)) => keys.or(key, *default, Node::number),
        None => {
            if known && keys.has(key) {
                let complaint = keys.complaint(key).expected(format!("no such key with `optim: {name}`")).found("one");
                keys.add(complaint.help("remove it, or choose an `optim` that has it"));
            }
            0.0
        }
    };
    Read {
        optim,
        adam_beta1: constant("adam_beta1"),
        adam_beta2: constant("adam_beta2"),
        adam_epsilon: constant("adam_epsilon"),
        momentum: constant("momentum"),
        layerwise_lr_decay: keys.or("layerwise_lr_decay", 1.0, Node::number),
        lr_multipliers: keys.or("lr_multipliers", Vec::new(), Node::numbers_by_name),
        ema_decay: keys.or("ema_decay", 0.0, Node::number),
    }
}

impl TrainingArgs {
    /// The update and its constants.
    pub fn optimiser(&self) -> Settings {
        let (beta1, beta2, epsilon) = (self.adam_beta1, self.adam_beta2, self.adam_epsilon);
        let rule = match self.optim {
            Optim::AdamW => Rule::AdamW { beta1, beta2, epsilon, eight_bit: false },
            Optim::AdamW8Bit => Rule::AdamW { beta1, beta2, epsilon, eight_bit: true },
            Optim::Lion => Rule::Lion { beta1, beta2 },
            Optim::Sgd => Rule::Sgd { momentum: self.momentum },
        };
        let TrainingArgs { weight_decay, max_grad_norm, ema_decay, .. } = *self;
        Settings { rule, weight_decay, max_grad_norm, ema_decay }
    }

    pub(super) fn put_optimiser(&self, map: &mut Map<String, Value>) {
        let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
        put("optim", json!(super::canonical::name(OPTIMS, self.optim)));
        for (key, _) in self.optim.constants() {
            let value = match *key {
                "adam_beta1" => self.adam_beta1,
                "adam_beta2" => self.adam_beta2,
                "adam_epsilon" => self.adam_epsilon,
                _ => self.momentum,
            };
            put(key, json!(value));
        }
        if self.layerwise_lr_decay != 1.0 {
            put("layerwise_lr_decay", json!(self.layerwise_lr_decay));
        }
        if !self.lr_multipliers.is_empty() {
            let pairs = self.lr_multipliers.iter().map(|(pattern, factor)| (pattern.clone(), json!(factor)));
            put("lr_multipliers", Value::Object(pairs.collect()));
        }
        if self.ema_decay != 0.0 {
            put("ema_decay", json!(self.ema_decay));
        }
    }

    /// Checks the keys read here; `rule` answers for `training_args.KEY`.
    pub(super) fn check_optimiser(&self, problems: &mut super::check::Problems) {
        let mut check = |holds: bool, key: &str, expected: &str, found: f64| {
            problems.rule(holds, &format!("training_args.{key}"), expected, &found);
        };
        if matches!(self.optim, Optim::AdamW | Optim::AdamW8Bit) {
            let positive = self.adam_epsilon > 0.0 && self.adam_epsilon.is_finite();
            check(positive, "adam_epsilon", "a positive number", self.adam_epsilon);
        }
        let decays = [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2), ("momentum", self.momentum)];
        for (key, value) in decays.into_iter().chain([("ema_decay", self.ema_decay)]) {
            check((0.0..1.0).contains(&value), key, "a number from 0 to below 1", value);
        }
        let decay = self.layerwise_lr_decay;
        check(decay > 0.0 && decay <= 1.0, "layerwise_lr_decay", "a number above 0 and up to 1", decay);
        for (pattern, factor) in &self.lr_multipliers {
            let (key, positive) = (format!("lr_multipliers.{pattern}"), *factor > 0.0 && factor.is_finite());
            check(positive, &key, "a positive number (to freeze, use `frozen_res`)", *factor);
        }
    }
}
