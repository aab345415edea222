//! Cross-entropy of a chunk of logits with labels, and its gradient by the logits.

use super::{Chunk, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("cross_entropy");

/// Where the row losses write. Every op takes it and hands it on with the tensors' new handles.
#[derive(Debug, Clone, Copy)]
pub struct LossInto {
    /// `[N]`: each row's loss, unweighted; 0 where its weight is 0. The rows of the chunk are written.
    pub loss_rows: Tensor,
    /// Shape of the logits: gets weight * d loss / d logits added. Rows of weight 0 are not touched.
    pub dz: Option<Tensor>,
}

impl LossInto {
    /// Records `op` reading `inputs` and, after them, this; `op` must say the same in [`Op::in_place`].
    pub(crate) fn record(self, g: &mut Graph, op: impl crate::graph::AnyOp, inputs: &[Tensor]) -> LossInto {
        let rows = (self.loss_rows.shape, DType::F32);
        let Some(dz) = self.dz else {
            let [loss_rows] = g.record(op, &[inputs, &[self.loss_rows]].concat(), [rows]);
            return LossInto { loss_rows, dz: None };
        };
        let inputs = [inputs, &[self.loss_rows, dz]].concat();
        let [loss_rows, dz] = g.record(op, &inputs, [rows, (dz.shape, DType::F32)]);
        LossInto { loss_rows, dz: Some(dz) }
    }
}

/// [`Op::in_place`] of an op recorded by [`LossInto::record`] with `inputs` inputs of its own.
pub(crate) fn in_place(inputs: usize, gradient: bool) -> Vec<(usize, usize)> {
    (0..1 + gradient as usize).map(|output| (output, inputs + output)).collect()
}

/// Runs `row(r, batch row, loss, dz)` for every row of a chunk in parallel; `dz` is empty when there is none.
pub(crate) fn each_row<F: Real>(
    (rows, stride, first_row): (usize, usize, usize),
    loss_rows: &mut [F],
    dz: Option<&mut [F]>,
    row: impl Fn(usize, usize, &mut F, &mut [F]) + Sync,
) {
    let losses = loss_rows[first_row..first_row + rows].par_iter_mut().enumerate();
    match dz {
        None => losses.for_each(|(r, loss)| row(r, first_row + r, loss, &mut [])),
        Some(dz) => {
            losses.zip(dz.par_chunks_mut(stride)).for_each(|((r, loss), dz)| row(r, first_row + r, loss, dz));
        }
    }
}

/// What may be added to the plain cross-entropy.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Smoothing {
    /// e: the target is 1 - e at the label and e / V more at every token (Szegedy et al. 2016, arXiv 1512.00567).
    pub label_smoothing: f32,
    /// c: adds c lse^2, which keeps the logits' normaliser near 1 (PaLM, arXiv 2204.02311: 1e-4).
    pub z_loss: f32,
}

#[derive(Debug, Clone, Copy)]
struct CrossEntropy {
    first_row: usize,
    vocab: usize,
    gradient: bool,
    smoothing: Smoothing,
}

/// The number of inputs before those of [`LossInto`].
const INPUTS: usize = 4;

/// -log softmax(z)\[label\] of each row, and dz += weight * (softmax(z) - one-hot(label)).
/// `lse` `[R]` is the chunk's [`super::log_sum_exp`] at temperature 1; `labels` (u32) and `weights` are `[N]`. A row
/// whose weight is 0 or whose label is no token of the vocabulary (`u32::MAX` by convention) does not count.
pub fn cross_entropy(
    g: &mut Graph,
    chunk: Chunk,
    lse: Tensor,
    labels: Tensor,
    weights: Tensor,
    into: LossInto,
) -> LossInto {
    smoothed_cross_entropy(g, chunk, lse, labels, weights, Smoothing::default(), into)
}

/// [`cross_entropy`] with label smoothing e and z-loss c: lse - (1 - e) z\[label\] - e mean z + c lse^2, and dz +=
/// weight * ((1 + 2 c lse) softmax(z) - (1 - e) one-hot(label) - e / V).
pub fn smoothed_cross_entropy(
    g: &mut Graph,
    chunk: Chunk,
    lse: Tensor,
    labels: Tensor,
    weights: Tensor,
    smoothing: Smoothing,
    into: LossInto,
) -> LossInto {
    let batch = into.loss_rows.shape.numel();
    chunk.check(batch);
    assert!(labels.shape.numel() == batch && weights.shape.numel() == batch, "cross_entropy: {labels:?} {weights:?}");
    assert!(into.dz.is_none_or(|dz| dz.shape == chunk.z.shape), "cross_entropy: gradient of another shape");
    let (first_row, vocab, gradient) = (chunk.first_row, chunk.vocab, into.dz.is_some());
    let op = CrossEntropy { first_row, vocab, gradient, smoothing };
    into.record(g, op, &[chunk.z, lse, labels, weights])
}

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        in_place(INPUTS, self.gradient)
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let z = node.inputs[0].shape;
        let mut binds = vec![Bind::Out(0), Bind::In(0), Bind::In(1), Bind::In(2), Bind::In(3)];
        binds.extend(self.gradient.then_some(Bind::Out(1)));
        let mut params = Chunk::params(z.rows(), z.cols(), self.vocab, self.first_row);
        params.extend([self.smoothing.label_smoothing.to_bits(), self.smoothing.z_loss.to_bits()]);
        let plain = self.smoothing == Smoothing::default();
        let (entry, groups) = match (plain, self.gradient) {
            (true, false) => ("value", z.rows().div_ceil(256)),
            (true, true) => ("gradient", z.rows()),
            (false, false) => ("smoothed_value", z.rows()),
            (false, true) => ("smoothed_gradient", z.rows()),
        };
        Ok(vec![Dispatch { shader: SHADER, entry, constants: vec![], binds, params, groups: grid(groups, caps) }])
    }
}

impl Twin for CrossEntropy {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (z, lse, labels, weights) = (io.f(0), io.f(1), io.u(2), io.f(3));
        let (rows, stride) = (io.in_shape(0).rows(), io.in_shape(0).cols());
        let (losses, dz) = (io.out(0), self.gradient.then(|| io.out(1)));
        each_row((rows, stride, self.first_row), losses, dz, |r, n, loss, dz| {
            let (label, weight, z) = (labels[n] as usize, weights[n], &z[r * stride..][..self.vocab]);
            *loss = F::ZERO;
            if label >= self.vocab || weight == F::ZERO {
                return;
            }
            let of = |x: f32| F::of(f64::from(x));
            let (smooth, penalty) = (of(self.smoothing.label_smoothing), of(self.smoothing.z_loss));
            *loss = lse[r] - z[label];
            if smooth != F::ZERO {
                *loss += smooth * (z[label] - F::sum_of(z) / F::of(z.len() as f64));
            }
            *loss += penalty * lse[r] * lse[r];
            if !dz.is_empty() {
                let dz = &mut dz[..self.vocab];
                F::add_exp(dz, z, weight * (F::ONE + of(2.0) * penalty * lse[r]), F::ONE, lse[r]);
                dz[label] -= weight * (F::ONE - smooth);
                if smooth != F::ZERO {
                    let each = weight * smooth / F::of(z.len() as f64);
                    dz.iter_mut().for_each(|dz| *dz -= each);
                }
            }
        });
    }
}
