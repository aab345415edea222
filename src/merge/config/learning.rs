//! The `parameters` of `merge_method: dam`, and each model's `data`.

use crate::Result;
use crate::yaml::{Gather, Node};
use std::path::PathBuf;

const KEYS: &[&str] = &[
    "learning_rate",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "sequence_length",
    "temperature",
    "similarity",
    "overlap",
    "max_grad_norm",
    "holdout",
    "embeddings",
    "norms",
    "save_steps",
];

/// How coefficients are learned.
#[derive(Clone, Debug, PartialEq)]
pub struct Learning {
    /// Of AdamW, the same in every step.
    pub learning_rate: f64,
    /// Steps; without a number, so many that the largest of the models' data is read `num_train_epochs` times.
    pub max_steps: Option<u64>,
    /// See there.
    pub num_train_epochs: f64,
    /// Sequences of each model's data in a step.
    pub per_device_train_batch_size: usize,
    /// Tokens of a sequence.
    pub sequence_length: usize,
    /// Of both sides of the divergence.
    pub temperature: f32,
    /// Factor of the mean cosine of two models' coefficients, summed over the tensors.
    pub similarity: f64,
    /// Factor of the mean of sum_j min(|a_j|, |b_j|) of two models' coefficients, summed over the tensors.
    pub overlap: f64,
    /// Largest norm of the gradient; 0 does not clip.
    pub max_grad_norm: f64,
    /// The share of each model's data, from its end, that is measured and not learned; 0 measures nothing.
    pub holdout: f64,
    /// Learn embeddings too; else they are averaged.
    pub embeddings: bool,
    /// Learn norms too; else they are averaged.
    pub norms: bool,
    /// Steps between two checkpoints.
    pub save_steps: u64,
}

/// The `parameters` of the document. The error lists everything wrong.
pub(super) fn learning(node: &Node) -> Result<Learning> {
    let fields = node.clone().fields(KEYS, &[])?;
    let mut keys = Gather::new(&fields);
    if keys.has("max_steps") && keys.has("num_train_epochs") {
        let complaint = keys.complaint("num_train_epochs").expected("this or `max_steps`").found("both");
        keys.add(complaint.help("say how long to learn by one of them"));
    }
    let learning = Learning {
        learning_rate: keys.or("learning_rate", 1e-3, positive),
        max_steps: keys.maybe("max_steps", |node| count(node).map(|n| n as u64)),
        num_train_epochs: keys.or("num_train_epochs", 1.0, positive),
        per_device_train_batch_size: keys.or("per_device_train_batch_size", 1, count),
        sequence_length: keys.or("sequence_length", 512, count),
        temperature: keys.or("temperature", 2.0, |node| positive(node).map(|t| t as f32)),
        similarity: keys.or("similarity", 0.01, not_negative),
        overlap: keys.or("overlap", 0.0, not_negative),
        max_grad_norm: keys.or("max_grad_norm", 1.0, not_negative),
        holdout: keys.or("holdout", 0.05, share),
        embeddings: keys.or("embeddings", false, Node::boolean),
        norms: keys.or("norms", false, Node::boolean),
        save_steps: keys.or("save_steps", 100, |node| count(node).map(|n| n as u64)),
    };
    keys.all()?;
    Ok(learning)
}

/// The `parameters` of a model: the text that it is distilled on; none for a model that is only merged.
pub(super) fn data(node: &Node) -> Result<Vec<PathBuf>> {
    let fields = node.clone().fields(&["data"], &[])?;
    fields.or("data", Vec::new(), |node| node.one_or_more(|item| item.text().map(PathBuf::from)))
}

fn positive(node: &Node) -> Result<f64> {
    let number = node.number()?;
    // Large enough and small enough to be an f32 other than 0.
    if (1e-30..1e30).contains(&number) { Ok(number) } else { node.wrong("a positive number") }
}

fn not_negative(node: &Node) -> Result<f64> {
    let number = node.number()?;
    if (0.0..1e30).contains(&number) { Ok(number) } else { node.wrong("a number, 0 or more") }
}

fn share(node: &Node) -> Result<f64> {
    let number = node.number()?;
    if (0.0..1.0).contains(&number) { Ok(number) } else { node.wrong("a number from 0 to below 1") }
}

fn count(node: &Node) -> Result<usize> {
    let number = node.count()?;
    if number > 0 { Ok(number) } else { node.wrong("a whole number from 1 on") }
}
