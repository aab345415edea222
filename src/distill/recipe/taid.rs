//! `taid`'s `t`: how far its target is from the student's distribution to the teacher's.

use super::scheduled::{Ramp, Scheduled};
use crate::Result;
use crate::yaml::Node;
use serde_json::{Value, json};

/// The share of the teacher's logits in the target, from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub enum Share {
    /// A number or a schedule.
    Scheduled(Scheduled),
    /// `{adaptive: {...}}`: it rises faster while the loss falls.
    Adaptive(Adaptive),
}

/// TAID's own rule (Shing et al. 2025, arXiv 2501.16937, section 3.2). After each step, with the relative fall d of the
/// loss since the step before, momentum m <- beta m + (1 - beta) d and t <- t + alpha sigmoid(m) (1 - t); t is never
/// below the straight line from `start` at the first step to `end` at the last, nor above `end`.
#[derive(Clone, Debug, PartialEq)]
pub struct Adaptive {
    /// t at the first step; default 0.4.
    pub start: f64,
    /// The greatest t; default 1.
    pub end: f64,
    /// How far a step moves t; default 5e-4.
    pub alpha: f64,
    /// The momentum's decay; default 0.99.
    pub beta: f64,
}

impl Default for Share {
    fn default() -> Self {
        Share::Scheduled(Scheduled::Ramp { shape: Ramp::Linear, from: 0.4, to: 1.0, steps: None })
    }
}

impl Default for Adaptive {
    fn default() -> Self {
        Adaptive { start: 0.4, end: 1.0, alpha: 5e-4, beta: 0.99 }
    }
}

impl Share {
    pub(super) fn read(node: &Node) -> Result<Share> {
        if node.value.get("adaptive").is_none() {
            return Scheduled::read(node).map(Share::Scheduled);
        }
        let fields = node.clone().fields(&["adaptive"], &[])?;
        fields.need("adaptive", "a mapping, {} for its defaults", Adaptive::read).map(Share::Adaptive)
    }

    pub(super) fn to_json(&self) -> Value {
        match self {
            Share::Scheduled(t) => t.to_json(),
            Share::Adaptive(Adaptive { start, end, alpha, beta }) => {
                json!({"adaptive": {"start": start, "end": end, "alpha": alpha, "beta": beta}})
            }
        }
    }

    /// The schedule, if it is one.
    pub fn scheduled(&self) -> Option<&Scheduled> {
        match self {
            Share::Scheduled(t) => Some(t),
            Share::Adaptive(_) => None,
        }
    }

    /// The rule, if it is one.
    pub fn adaptive(&self) -> Option<&Adaptive> {
        match self {
            Share::Scheduled(_) => None,
            Share::Adaptive(rule) => Some(rule),
        }
    }
}

impl Adaptive {
    fn read(node: &Node) -> Result<Adaptive> {
        let fields = node.clone().fields(&["start", "end", "alpha", "beta"], &[])?;
        let default = Adaptive::default();
        let mut keys = crate::yaml::Gather::new(&fields);
        let read = Adaptive {
            start: keys.or("start", default.start, Node::number),
            end: keys.or("end", default.end, Node::number),
            alpha: keys.or("alpha", default.alpha, Node::number),
            beta: keys.or("beta", default.beta, Node::number),
        };
        keys.all()?;
        Ok(read)
    }

    /// The least t of the step after `step` steps of `total`.
    pub fn least(&self, step: u64, total: u64) -> f64 {
        Scheduled::Ramp { shape: Ramp::Linear, from: self.start, to: self.end, steps: None }.at(step, total)
    }

    /// What is out of range: key, what is expected, what is found.
    pub(super) fn problems(&self) -> Vec<(&'static str, &'static str, f64)> {
        let Adaptive { start, end, alpha, beta } = *self;
        let checks = [
            ("start", "a number from 0 to 1", start, (0.0..=1.0).contains(&start)),
            ("end", "a number from `start` to 1", end, end >= start && end <= 1.0),
            ("alpha", "a number from 0 to 1", alpha, (0.0..=1.0).contains(&alpha)),
            ("beta", "a number from 0 to below 1", beta, (0.0..1.0).contains(&beta)),
        ];
        let wrong = checks.into_iter().filter(|(.., holds)| !holds);
        wrong.map(|(key, expected, found, _)| (key, expected, found)).collect()
    }
}

impl std::fmt::Display for Adaptive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Adaptive { start, end, alpha, beta } = self;
        write!(f, "{start} to {end} as the loss falls (alpha {alpha}, beta {beta})")
    }
}
