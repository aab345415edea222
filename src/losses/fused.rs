//! LM head and losses in one: values and gradients, chunk by chunk.

use super::divergence::{Divergent, check_stored};
use super::head::{Head, Normalisers, check_rows, chunks};
use crate::Result;
use crate::graph::{Graph, Tensor};
use crate::ops::{self, Chunk, LossInto, Ranking, Smoothing, SparseTarget};
use std::ops::Range;

/// A loss on the head's logits. `weights` `[N]` say how much each row counts; they carry the loss's own weight and
/// the division by the number of counted rows of the optimiser step.
#[derive(Debug, Clone, Copy)]
pub enum Loss<'a> {
    /// Cross-entropy with the labels (u32 `[N]`, `u32::MAX` for none), at temperature 1.
    CrossEntropy {
        /// Label of each row.
        labels: Tensor,
        /// What is added to it.
        smoothing: Smoothing,
        /// Weight of each row.
        weights: Tensor,
    },
    /// A divergence between a teacher's rows and the student's.
    Divergence(Divergent<'a>),
    /// How far the student ranks stored tokens otherwise than the teacher.
    Ranking {
        /// What a pair costs.
        ranking: Ranking,
        /// The stored rows.
        target: SparseTarget,
        /// Weight of each row.
        weights: Tensor,
    },
}

/// What [`fused_head`] recorded.
#[derive(Debug, Clone)]
pub struct Fused {
    /// For each loss, in order, every row's value `[N]`, unweighted; 0 where the weight is 0.
    pub loss_rows: Vec<Tensor>,
    /// Gradient of the weighted sum of all losses by the hidden states `[N, d]`: the seed of [`Graph::backward`].
    /// `None` if `train` is false or the hidden states want no gradient.
    pub d_hidden: Option<Tensor>,
}

/// Applies `head` and all `losses` to the last hidden states `[N, d]` (after the final norm), at most `chunk_rows` rows
/// at a time ([`super::chunk_rows`]). With `train`, gradients too: the head's are added to its weights' gradients at
/// once, so [`Graph::backward`] is seeded with `d_hidden` alone; before, record nothing else that adds to them in
/// another way. Two to five tensors of `chunk_rows` x vocabulary are alive at once.
pub fn fused_head(
    g: &mut Graph,
    hidden: Tensor,
    head: &Head<'_>,
    losses: &[Loss<'_>],
    chunk_rows: usize,
    train: bool,
) -> Result<Fused> {
    let batch = head.check(hidden)?;
    losses.iter().try_for_each(|loss| loss.check(batch))?;
    let losses: Vec<Loss<'_>> = losses.iter().map(|loss| loss.prepared(g)).collect();
    let trains_head = head.weight.iter().any(|&w| g.requires_grad(w));
    let (d_hidden, d_head) = (train && g.requires_grad(hidden), train && trains_head);
    let mut loss_rows: Vec<Tensor> = losses.iter().map(|_| ops::zeros(g, [batch])).collect();
    let mut d_hidden = d_hidden.then(|| ops::zeros(g, hidden.shape));
    for rows in chunks(batch, chunk_rows) {
        let z = head.logits(g, hidden, &rows);
        let chunk = Chunk { z, first_row: rows.start, vocab: head.vocab };
        let mut normalisers = Normalisers::of(z);
        let mut dz = (d_hidden.is_some() || d_head).then(|| ops::zeros(g, z.shape));
        for (loss, loss_rows) in losses.iter().zip(&mut loss_rows) {
            let into = LossInto { loss_rows: *loss_rows, dz };
            LossInto { loss_rows: *loss_rows, dz } = loss.record(g, chunk, &mut normalisers, &rows, into);
        }
        if let Some(dz) = dz {
            d_hidden = head.gradients(g, hidden, &rows, [z, dz], d_hidden);
        }
    }
    let loss_rows = losses.iter().zip(loss_rows).map(|(loss, rows)| loss.finished(g, rows)).collect();
    Ok(Fused { loss_rows, d_hidden })
}

impl<'a> Loss<'a> {
    fn check(&self, batch: usize) -> Result<()> {
        match self {
            Loss::CrossEntropy { labels, weights, .. } => check_rows(batch, &[*labels, *weights]),
            Loss::Divergence(divergent) => divergent.check(batch),
            Loss::Ranking { target, weights, .. } => {
                check_stored(batch, target)?;
                check_rows(batch, &[*weights])
            }
        }
    }

    fn prepared(self, g: &mut Graph) -> Loss<'a> {
        match self {
            Loss::Divergence(divergent) => Loss::Divergence(divergent.prepared(g)),
            other => other,
        }
    }

    fn finished(&self, g: &mut Graph, loss_rows: Tensor) -> Tensor {
        match self {
            Loss::Divergence(divergent) => divergent.finished(g, loss_rows),
            Loss::CrossEntropy { .. } | Loss::Ranking { .. } => loss_rows,
        }
    }

    /// Records this loss for one chunk.
    fn record(
        &self,
        g: &mut Graph,
        chunk: Chunk,
        normalisers: &mut Normalisers,
        rows: &Range<usize>,
        into: LossInto,
    ) -> LossInto {
        match *self {
            Loss::CrossEntropy { labels, smoothing, weights } => {
                let lse = normalisers.get(g, chunk.vocab, 1.0);
                ops::smoothed_cross_entropy(g, chunk, lse, labels, weights, smoothing, into)
            }
            Loss::Divergence(divergent) => divergent.record(g, chunk, normalisers, rows, into),
            Loss::Ranking { ranking, target, weights } => {
                let lse = normalisers.get(g, chunk.vocab, 1.0);
                ops::ranking(g, ranking, chunk, lse, target, weights, into)
            }
        }
    }
}
