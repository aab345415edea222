//! The head's matrix and its two sides: logits of some rows, and gradients from them.

use crate::device::Caps;
use crate::graph::{Graph, Tensor};
use crate::ops::{self, Layout, View};
use crate::{Error, Result};
use std::ops::Range;

/// Largest chunk of logits, bytes: large enough for matrix products at full speed, small beside a model.
const CHUNK_BYTES: u64 = 32 << 20;

/// The LM head: the rows of the output matrix in blocks, usually one. More than one where the matrix is larger than a
/// binding, or is kept so.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Blocks `[V_i, d]` of consecutive vocabulary rows.
    pub weight: &'a [Tensor],
    /// Tokens; rows past them are padding.
    pub vocab: usize,
    /// Logits are `cap * tanh(logit / cap)` (Gemma 2).
    pub softcap: Option<f32>,
}

/// A teacher on the same device: its last hidden states `[N, d_teacher]` for the student's rows, and its head.
#[derive(Debug, Clone, Copy)]
pub struct Live<'a> {
    /// Last hidden states, after the final norm.
    pub hidden: Tensor,
    /// Its head.
    pub head: Head<'a>,
}

/// Rows in a chunk so that its logits over `columns` (the vocabulary with its padding) stay within 32 MiB and within
/// one binding of the device; at least 1.
pub fn chunk_rows(columns: usize, caps: &Caps) -> usize {
    let bytes = CHUNK_BYTES.min(caps.max_binding);
    (bytes / (4 * columns.max(1) as u64)).max(1) as usize
}

/// 0..batch in as few chunks of at most `rows` as it takes, as equal as they can be.
pub(super) fn chunks(batch: usize, rows: usize) -> impl Iterator<Item = Range<usize>> {
    let count = batch.div_ceil(rows.max(1)).max(1);
    let each = batch.div_ceil(count).max(1);
    (0..batch).step_by(each).map(move |start| start..(start + each).min(batch))
}

impl Head<'_> {
    /// Columns of its logits.
    pub fn columns(&self) -> usize {
        self.weight.iter().map(|w| w.shape.rows()).sum()
    }

    /// Refuses a head that does not fit `hidden`; gives the number of rows of `hidden`.
    pub(super) fn check(&self, hidden: Tensor) -> Result<usize> {
        let fits = |w: &Tensor| w.shape.len() == 2 && w.shape[1] == hidden.shape.cols();
        if hidden.shape.len() != 2 || self.weight.is_empty() || !self.weight.iter().all(fits) {
            return Err(Error::internal(format!("a head {:?} on hidden states {hidden:?}", self.weight)));
        }
        if !(1..=self.columns()).contains(&self.vocab) {
            return Err(Error::internal(format!("{} tokens in a head of {} rows", self.vocab, self.columns())));
        }
        Ok(hidden.shape[0])
    }

    /// Logits `[R, columns]` of some rows of `hidden` `[N, d]`.
    pub(super) fn logits(&self, g: &mut Graph, hidden: Tensor, rows: &Range<usize>) -> Tensor {
        let x = View::rows_of(hidden, rows.clone());
        let z = match *self.weight {
            [weight] => ops::matmul(g, Layout::NT, x, weight),
            _ => {
                let zeros = ops::zeros(g, [rows.len(), self.columns()]);
                self.weight.iter().zip(self.blocks()).fold(zeros, |z, (&weight, columns)| {
                    ops::matmul_into(g, Layout::NT, x, weight, View::cols_of(z, columns), false)
                })
            }
        };
        self.softcap.map_or(z, |cap| ops::softcap(g, z, cap))
    }

    /// From the gradient `dz` of the logits `z` of some rows: writes those rows of `d_hidden` `[N, d]`, if that is wanted (and
    /// returns its new handle), and adds to the gradients of the weights that are trained.
    pub(super) fn gradients(
        &self,
        g: &mut Graph,
        hidden: Tensor,
        rows: &Range<usize>,
        [z, dz]: [Tensor; 2],
        mut d_hidden: Option<Tensor>,
    ) -> Option<Tensor> {
        let dz = self.softcap.map_or(dz, |cap| ops::softcap_grad(g, z, dz, cap));
        let x = View::rows_of(hidden, rows.clone());
        let whole = View::from(dz).in_range(g);
        for (i, (&weight, columns)) in self.weight.iter().zip(self.blocks()).enumerate() {
            let dz = View { scale: whole.scale, ..View::cols_of(dz, columns) };
            if let Some(dx) = d_hidden {
                let into = View::rows_of(dx, rows.clone());
                d_hidden = Some(ops::matmul_into(g, Layout::NN, dz, weight, into, i > 0));
            }
            if !g.requires_grad(weight) {
                continue;
            }
            if let Some(own) = g.grad_in_place(weight) {
                let sum = ops::matmul_into(g, Layout::TN, dz, x, own, true);
                g.set_grad(weight, sum);
            } else {
                let dw = ops::matmul(g, Layout::TN, dz, x);
                ops::add_grad(g, weight, dw);
            }
        }
        d_hidden
    }

    /// The columns of each block.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        self.weight.iter().scan(0, |start, w| {
            let columns = *start..*start + w.shape.rows();
            *start = columns.end;
            Some(columns)
        })
    }
}

/// Log-sum-exps of one chunk of logits, each computed once.
pub(super) struct Normalisers {
    z: Tensor,
    known: Vec<(usize, f32, Tensor)>,
}

impl Normalisers {
    pub(super) fn of(z: Tensor) -> Normalisers {
        Normalisers { z, known: Vec::new() }
    }

    /// Log-sum-exp over the first `vocab` columns at `temperature`.
    pub(super) fn get(&mut self, g: &mut Graph, vocab: usize, temperature: f32) -> Tensor {
        let found = self.known.iter().find(|(v, t, _)| *v == vocab && *t == temperature);
        if let Some(&(_, _, lse)) = found {
            return lse;
        }
        let lse = ops::log_sum_exp(g, self.z, vocab, temperature);
        self.known.push((vocab, temperature, lse));
        lse
    }
}

/// Refuses a temperature that is no positive number.
pub(super) fn check_temperature(temperature: f32) -> Result<()> {
    if temperature.is_finite() && temperature > 0.0 {
        return Ok(());
    }
    Err(Error::internal(format!("a softmax temperature of {temperature}")))
}

/// Refuses per-row tensors that are not as long as the batch.
pub(super) fn check_rows(batch: usize, tensors: &[Tensor]) -> Result<()> {
    match tensors.iter().find(|t| t.shape[..].first() != Some(&batch)) {
        Some(t) => Err(Error::internal(format!("{t:?} for a batch of {batch} rows"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_stays_within_32_mib_and_one_binding() {
        let small = Caps { max_binding: 1 << 20, ..Caps::webgpu() };
        assert_eq!(chunk_rows(49_152, &Caps::webgpu()), 170);
        assert_eq!(chunk_rows(151_936, &Caps::webgpu()), 55);
        assert_eq!(chunk_rows(49_152, &small), 5);
        assert_eq!(chunk_rows(1 << 30, &small), 1);
    }

    #[test]
    fn chunks_cover_every_row_once_and_evenly() {
        for (batch, rows) in [(1, 1), (7, 3), (512, 170), (512, 512), (5, 1000), (0, 4)] {
            let all: Vec<_> = chunks(batch, rows).collect();
            assert_eq!(all.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..batch).collect::<Vec<_>>());
            assert!(all.iter().all(|c| c.len() <= rows));
        }
        assert_eq!(chunks(512, 170).map(|c| c.len()).collect::<Vec<_>>(), [128; 4]);
    }
}
