//! How good a student is, row by row.

use super::head::{Head, Live, Normalisers, check_rows, chunks};
use crate::Result;
use crate::graph::{Graph, Tensor};
use crate::ops::{self, Chunk, DenseTarget, LossInto, RowsInto};

/// Measures of every row; all `[N]`.
#[derive(Debug, Clone, Copy)]
pub struct Evaluation {
    /// Negative log-likelihood of the label, nats; 0 where the row's weight is 0.
    pub nll: Tensor,
    /// KL(teacher || student) at temperature 1, nats; 0 where the row's weight is 0.
    pub kld: Option<Tensor>,
    /// 1 where teacher and student put the same token first, else 0. Rows of weight 0 are not left out.
    pub agreement: Option<Tensor>,
}

/// Evaluates `head` on the last hidden states `[N, d]` against `labels` (u32 `[N]`, `u32::MAX` for none), and against a
/// live teacher if there is one. `weights` `[N]` is 0 for rows that do not count.
/// Against stored teacher rows: [`super::fused_head`] without training.
pub fn evaluate_head(
    g: &mut Graph,
    hidden: Tensor,
    head: &Head<'_>,
    labels: Tensor,
    weights: Tensor,
    teacher: Option<&Live<'_>>,
    chunk_rows: usize,
) -> Result<Evaluation> {
    let batch = head.check(hidden)?;
    check_rows(batch, &[labels, weights])?;
    if let Some(teacher) = teacher {
        let rows = teacher.head.check(teacher.hidden)?;
        check_rows(rows, &[weights])?;
    }
    let mut nll = ops::zeros(g, [batch]);
    let mut kld = teacher.map(|_| ops::zeros(g, [batch]));
    let mut agreement: Option<Tensor> = None;
    for rows in chunks(batch, chunk_rows) {
        let z = head.logits(g, hidden, &rows);
        let chunk = Chunk { z, first_row: rows.start, vocab: head.vocab };
        let mut normalisers = Normalisers::of(z);
        let lse = normalisers.get(g, head.vocab, 1.0);
        nll = ops::cross_entropy(g, chunk, lse, labels, weights, LossInto { loss_rows: nll, dz: None }).loss_rows;
        if let (Some(teacher), Some(rows_so_far)) = (teacher, kld) {
            let vocab = head.vocab.min(teacher.head.vocab);
            let teacher_z = teacher.head.logits(g, teacher.hidden, &rows);
            let teacher_lse = ops::log_sum_exp(g, teacher_z, vocab, 1.0);
            let target = DenseTarget { z: teacher_z, lse: teacher_lse, temperature: 1.0 };
            let lse = normalisers.get(g, vocab, 1.0);
            let into = LossInto { loss_rows: rows_so_far, dz: None };
            kld = Some(ops::dense_kl(g, Chunk { vocab, ..chunk }, lse, target, weights, into).loss_rows);
            let same = ops::agreement(g, z, teacher_z, vocab);
            let into = agreement.map_or(RowsInto::New(batch), RowsInto::Old);
            agreement = Some(ops::put_rows(g, into, rows.start, same));
        }
    }
    Ok(Evaluation { nll, kld, agreement })
}
