//! How good a student is, row by row.

use super::head::{Head, Live, Normalisers, check_rows, chunks};
use crate::Result;
use crate::graph::{Graph, Tensor};
use crate::ops::{self, Chunk, DenseTarget, LossInto, RowsInto, SparseTarget};

/// Measures of every row.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Negative log-likelihood of the label, nats, `[N]`; 0 where the row's weight is 0.
    pub nll: Tensor,
    /// Beside each of the teachers.
    pub beside: Vec<Beside>,
    /// The student's likeliest token, u32 `[N, 1]`, to be compared with a stored teacher's, if one is.
    pub best: Option<Tensor>,
}

/// How near a student is to one teacher, in every row; all `[N]`.
#[derive(Debug, Clone, Copy)]
pub struct Beside {
    /// KL(teacher || student) at temperature 1, nats; 0 where the row's weight is 0.
    pub kld: Tensor,
    /// Of a live teacher: 1 where teacher and student put the same token first, else 0. Rows of weight 0 are not left
    /// out.
    pub agreement: Option<Tensor>,
}

/// A teacher that a student is compared with.
#[derive(Debug, Clone, Copy)]
pub enum Against<'a> {
    /// A model on the same device: exact.
    Live(Live<'a>),
    /// Stored rows: the divergence of their buckets, a lower bound of the full one.
    Stored(SparseTarget),
}

impl Against<'_> {
    fn check(&self, batch: usize, weights: Tensor) -> Result<()> {
        match self {
            Against::Live(live) => check_rows(live.head.check(live.hidden)?, &[weights]),
            Against::Stored(target) => check_rows(batch, &[target.ids, target.log_probs]),
        }
    }
}

/// Evaluates `head` on the last hidden states `[N, d]` against `labels` (u32 `[N]`, `u32::MAX` for none), and against
/// each of the teachers. `weights` `[N]` is 0 for rows that do not count.
pub fn evaluate_head(
    g: &mut Graph,
    hidden: Tensor,
    head: &Head<'_>,
    labels: Tensor,
    weights: Tensor,
    teachers: &[Against<'_>],
    chunk_rows: usize,
) -> Result<Evaluation> {
    let batch = head.check(hidden)?;
    check_rows(batch, &[labels, weights])?;
    teachers.iter().try_for_each(|teacher| teacher.check(batch, weights))?;
    let mut nll = ops::zeros(g, [batch]);
    let mut beside: Vec<Beside> =
        teachers.iter().map(|_| Beside { kld: ops::zeros(g, [batch]), agreement: None }).collect();
    let mut best: Option<Tensor> = None;
    let gathered = |so_far: Option<Tensor>| so_far.map_or(RowsInto::New(batch), RowsInto::Old);
    for rows in chunks(batch, chunk_rows) {
        let z = head.logits(g, hidden, &rows);
        let chunk = Chunk { z, first_row: rows.start, vocab: head.vocab };
        let mut normalisers = Normalisers::of(z);
        let lse = normalisers.get(g, head.vocab, 1.0);
        nll = ops::cross_entropy(g, chunk, lse, labels, weights, LossInto { loss_rows: nll, dz: None }).loss_rows;
        for (teacher, found) in teachers.iter().zip(&mut beside) {
            let into = LossInto { loss_rows: found.kld, dz: None };
            match *teacher {
                Against::Stored(target) => {
                    let lse = normalisers.get(g, head.vocab, target.temperature);
                    found.kld = ops::sparse_kl(g, chunk, lse, target, weights, into).loss_rows;
                }
                Against::Live(teacher) => {
                    let vocab = head.vocab.min(teacher.head.vocab);
                    let teacher_z = teacher.head.logits(g, teacher.hidden, &rows);
                    let teacher_lse = ops::log_sum_exp(g, teacher_z, vocab, 1.0);
                    let target = DenseTarget { z: teacher_z, lse: teacher_lse, temperature: 1.0 };
                    let lse = normalisers.get(g, vocab, 1.0);
                    found.kld = ops::dense_kl(g, Chunk { vocab, ..chunk }, lse, target, weights, into).loss_rows;
                    let same = ops::agreement(g, z, teacher_z, vocab);
                    found.agreement = Some(ops::put_rows(g, gathered(found.agreement), rows.start, same));
                }
            }
        }
        if teachers.iter().any(|teacher| matches!(teacher, Against::Stored(_))) {
            let (ids, _) = ops::top_k(g, z, head.vocab, 1);
            best = Some(ops::put_rows(g, gathered(best), rows.start, ids));
        }
    }
    Ok(Evaluation { nll, beside, best })
}
