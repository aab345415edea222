//! How good a student is, row by row.

use super::head::{Head, Live, Normalisers, check_rows, chunks};
use crate::Result;
use crate::graph::{Graph, Tensor};
use crate::ops::{self, Chunk, DenseTarget, LossInto, RowsInto, SparseTarget};

/// Measures of every row; all `[N]`.
#[derive(Debug, Clone, Copy)]
pub struct Evaluation {
    /// Negative log-likelihood of the label, nats; 0 where the row's weight is 0.
    pub nll: Tensor,
    /// KL(teacher || student) at temperature 1, nats; 0 where the row's weight is 0.
    pub kld: Option<Tensor>,
    /// 1 where teacher and student put the same token first, else 0. Rows of weight 0 are not left out.
    pub agreement: Option<Tensor>,
    /// The student's likeliest token, u32 `[N, 1]`, to be compared with a stored teacher's.
    pub best: Option<Tensor>,
}

/// The teacher that a student is compared with.
#[derive(Debug, Clone, Copy)]
pub enum Against<'a> {
    /// None: labels only.
    Labels,
    /// A model on the same device: exact.
    Live(Live<'a>),
    /// Stored rows: the divergence of their buckets, a lower bound of the full one.
    Stored(SparseTarget),
}

/// Evaluates `head` on the last hidden states `[N, d]` against `labels` (u32 `[N]`, `u32::MAX` for none), and against a
/// teacher if there is one. `weights` `[N]` is 0 for rows that do not count.
pub fn evaluate_head(
    g: &mut Graph,
    hidden: Tensor,
    head: &Head<'_>,
    labels: Tensor,
    weights: Tensor,
    teacher: Against<'_>,
    chunk_rows: usize,
) -> Result<Evaluation> {
    let batch = head.check(hidden)?;
    check_rows(batch, &[labels, weights])?;
    match teacher {
        Against::Labels => {}
        Against::Live(live) => check_rows(live.head.check(live.hidden)?, &[weights])?,
        Against::Stored(target) => check_rows(batch, &[target.ids, target.log_probs])?,
    }
    let mut nll = ops::zeros(g, [batch]);
    let mut kld = (!matches!(teacher, Against::Labels)).then(|| ops::zeros(g, [batch]));
    let (mut agreement, mut best): (Option<Tensor>, Option<Tensor>) = (None, None);
    for rows in chunks(batch, chunk_rows) {
        let z = head.logits(g, hidden, &rows);
        let chunk = Chunk { z, first_row: rows.start, vocab: head.vocab };
        let mut normalisers = Normalisers::of(z);
        let lse = normalisers.get(g, head.vocab, 1.0);
        nll = ops::cross_entropy(g, chunk, lse, labels, weights, LossInto { loss_rows: nll, dz: None }).loss_rows;
        let gathered = |so_far: Option<Tensor>| so_far.map_or(RowsInto::New(batch), RowsInto::Old);
        if let (Against::Stored(target), Some(rows_so_far)) = (teacher, kld) {
            let into = LossInto { loss_rows: rows_so_far, dz: None };
            let lse = normalisers.get(g, head.vocab, target.temperature);
            kld = Some(ops::sparse_kl(g, chunk, lse, target, weights, into).loss_rows);
            let (ids, _) = ops::top_k(g, z, head.vocab, 1);
            best = Some(ops::put_rows(g, gathered(best), rows.start, ids));
        }
        if let (Against::Live(teacher), Some(rows_so_far)) = (teacher, kld) {
            let vocab = head.vocab.min(teacher.head.vocab);
            let teacher_z = teacher.head.logits(g, teacher.hidden, &rows);
            let teacher_lse = ops::log_sum_exp(g, teacher_z, vocab, 1.0);
            let target = DenseTarget { z: teacher_z, lse: teacher_lse, temperature: 1.0 };
            let lse = normalisers.get(g, vocab, 1.0);
            let into = LossInto { loss_rows: rows_so_far, dz: None };
            kld = Some(ops::dense_kl(g, Chunk { vocab, ..chunk }, lse, target, weights, into).loss_rows);
            let same = ops::agreement(g, z, teacher_z, vocab);
            agreement = Some(ops::put_rows(g, gathered(agreement), rows.start, same));
        }
    }
    Ok(Evaluation { nll, kld, agreement, best })
}
