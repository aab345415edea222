//! A student beside its teacher, row by row: all that a study of their likeness needs.

use super::head::{Head, Live, Normalisers, check_rows, chunks};
use crate::graph::{Graph, Tensor};
use crate::ops::{self, Chunk, DenseTarget, Divergence, LossInto, RowsInto};
use crate::{Error, Result};

/// Numbers of every row; f32 `[N]` unless said.
#[derive(Debug, Clone, Copy)]
pub struct FidelityRows {
    /// Negative log-likelihood of the label, nats; 0 where the row's weight is 0, as the next two.
    pub nll: Tensor,
    /// KL(teacher || student), nats.
    pub kld: Tensor,
    /// Total variation distance; 1 minus it is the acceptance rate of speculative decoding.
    pub distance: Tensor,
    /// 1 where both put the same token first.
    pub agreement: Tensor,
    /// The student's likeliest token, u32 `[N, 1]`.
    pub best: Tensor,
    /// Its log-probability `[N, 1]`.
    pub best_log_prob: Tensor,
}

/// Compares `head` on the last hidden states `[N, d]` with a live teacher over the tokens that both have, all at
/// temperature 1. `labels` (u32) and `weights` are `[N]`; weights are 0 for rows that do not count.
pub fn fidelity_head(
    g: &mut Graph,
    hidden: Tensor,
    head: &Head<'_>,
    labels: Tensor,
    weights: Tensor,
    teacher: Live<'_>,
    chunk_rows: usize,
) -> Result<FidelityRows> {
    let batch = head.check(hidden)?;
    check_rows(batch, &[labels, weights])?;
    check_rows(teacher.head.check(teacher.hidden)?, &[weights])?;
    let vocab = head.vocab.min(teacher.head.vocab);
    let [mut nll, mut kld, mut distance] = [0; 3].map(|_| ops::zeros(g, [batch]));
    let mut gathered: Option<[Tensor; 3]> = None;
    for rows in chunks(batch, chunk_rows) {
        let z = head.logits(g, hidden, &rows);
        let chunk = Chunk { z, first_row: rows.start, vocab };
        let mut normalisers = Normalisers::of(z);
        let own = normalisers.get(g, head.vocab, 1.0);
        let into = |loss_rows| LossInto { loss_rows, dz: None };
        let labelled = Chunk { vocab: head.vocab, ..chunk };
        nll = ops::cross_entropy(g, labelled, own, labels, weights, into(nll)).loss_rows;
        let teacher_z = teacher.head.logits(g, teacher.hidden, &rows);
        let target = DenseTarget { z: teacher_z, lse: ops::log_sum_exp(g, teacher_z, vocab, 1.0), temperature: 1.0 };
        let lse = normalisers.get(g, vocab, 1.0);
        kld = ops::dense_kl(g, chunk, lse, target, weights, into(kld)).loss_rows;
        distance = ops::divergence(g, Divergence::Tvd, None, chunk, lse, target, weights, into(distance)).loss_rows;
        let agreement = ops::agreement(g, z, teacher_z, vocab);
        let (best, logit) = ops::top_k(g, z, vocab, 1);
        let at = |which: usize| gathered.map_or(RowsInto::New(batch), |all| RowsInto::Old(all[which]));
        gathered = Some([
            ops::put_rows(g, at(0), rows.start, agreement),
            ops::put_rows(g, at(1), rows.start, best),
            ops::put_rows_minus(g, at(2), rows.start, logit, lse, 1.0),
        ]);
    }
    let Some([agreement, best, best_log_prob]) = gathered else {
        return Err(Error::internal("nothing to compare: a batch without rows"));
    };
    Ok(FidelityRows { nll, kld, distance, agreement, best, best_log_prob })
}
