//! Losses of each row of the student's hidden states against the teacher's: mean squared error and cosine distance.

use super::{add_grad, shader};
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;
use crate::{Error, Result};

pub(crate) const SHADER: Shader = shader!("hidden_loss");
/// Shorter rows have no direction. The square is a normal f32.
const SMALLEST: f64 = 1e-12;

/// (h, t) -> loss rows.
#[derive(Debug, Clone, Copy)]
struct HiddenLoss {
    cosine: bool,
}

/// (h, t, loss rows, dy) -> dh.
#[derive(Debug, Clone, Copy)]
struct HiddenLossGrad(HiddenLoss);

/// mean over the d columns of (h - t)^2 for each row, `[N]`, of the states h `[N, d]` against the target t `[N, d]`
/// (TinyBERT, arXiv 1909.10351; DistillKit's `hs_mse`). Differentiable in h; t is a constant.
pub fn hidden_mse(g: &mut Graph, h: Tensor, t: Tensor) -> Tensor {
    record(g, HiddenLoss { cosine: false }, h, t)
}

/// 1 - cos(h, t) for each row, `[N]`, of the states h `[N, d]` against the target t `[N, d]` (DistilBERT, arXiv
/// 1910.01108; DistillKit's `hs_cosine`). A row in which either is shorter than 1e-12 has loss 1 and gradient 0.
/// Differentiable in h; t is a constant.
pub fn hidden_cosine(g: &mut Graph, h: Tensor, t: Tensor) -> Tensor {
    record(g, HiddenLoss { cosine: true }, h, t)
}

fn record(g: &mut Graph, op: HiddenLoss, h: Tensor, t: Tensor) -> Tensor {
    assert!(h.shape.len() == 2 && h.shape == t.shape, "hidden_loss: {h:?} against {t:?}");
    g.record(op, &[h, t], [([h.shape[0]].into(), DType::F32)])[0]
}

impl HiddenLoss {
    /// A dispatch of one workgroup a row.
    fn dispatch(&self, entry: &'static str, node: &Node<'_>, binds: Vec<Bind>, caps: &Caps) -> Dispatch {
        let h = node.inputs[0].shape;
        Dispatch {
            shader: SHADER,
            entry,
            constants: vec![("COSINE", self.cosine.to_string())],
            binds,
            params: vec![h.rows() as u32, h.cols() as u32],
            groups: grid(h.rows(), caps),
        }
    }
}

impl Op for HiddenLoss {
    fn name(&self) -> &'static str {
        "hidden_loss"
    }

    fn backward(&self, g: &mut Graph, node: &Node<'_>, dy: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = dy[0] else { return Ok(()) };
        let &[h, t] = node.inputs else { return Err(Error::internal("`hidden_loss` without its two states")) };
        if g.requires_grad(t) {
            return Err(Error::internal("`hidden_loss` has no gradient for the target"));
        }
        let [dh] = g.record(HiddenLossGrad(*self), &[h, t, node.outputs[0], dy], [(h.shape, DType::F32)]);
        add_grad(g, h, dh);
        Ok(())
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let binds = vec![Bind::In(0), Bind::In(1), Bind::Out(0)];
        Ok(vec![self.dispatch("value", node, binds, caps)])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let n = node.inputs[0].shape.numel() as u64;
        Cost { flops: 8 * n, bytes: 8 * n }
    }
}

impl Twin for HiddenLoss {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (h, t, cols) = (io.f(0), io.f(1), io.in_shape(0).cols());
        let rows = h.par_chunks(cols).zip(t.par_chunks(cols)).with_min_len(8);
        io.out(0).par_iter_mut().zip(rows).for_each(|(loss, (h, t))| {
            let squares = |a: F, b: F| h.iter().zip(t).fold(F::ZERO, |sum, (&h, &t)| sum + square(a * h - b * t));
            *loss = match (self.cosine, inverse_norms(h, t)) {
                (false, _) => squares(F::ONE, F::ONE) / F::of(cols as f64),
                (true, Some((a, b))) => squares(a, b) / F::of(2.0),
                (true, None) => F::ONE,
            };
        });
    }
}

fn square<F: Real>(x: F) -> F {
    x * x
}

/// 1/|h| and 1/|t|, if both have a direction.
fn inverse_norms<F: Real>(h: &[F], t: &[F]) -> Option<(F, F)> {
    let (h, t) = (F::dot(h, h).sqrt(), F::dot(t, t).sqrt());
    let least = F::of(SMALLEST);
    (h >= least && t >= least).then(|| (F::ONE / h, F::ONE / t))
}

impl Op for HiddenLossGrad {
    fn name(&self) -> &'static str {
        "hidden_loss"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let binds = vec![Bind::In(0), Bind::In(1), Bind::In(2), Bind::In(3), Bind::Out(0)];
        Ok(vec![self.0.dispatch("gradient", node, binds, caps)])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let n = node.inputs[0].shape.numel() as u64;
        Cost { flops: 9 * n, bytes: 12 * n }
    }
}

impl Twin for HiddenLossGrad {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (h, t, loss, dy, cols) = (io.f(0), io.f(1), io.f(2), io.f(3), io.in_shape(0).cols());
        let rows = h.par_chunks(cols).zip(t.par_chunks(cols)).zip(loss).zip(dy).with_min_len(8);
        io.out(0).par_chunks_mut(cols).zip(rows).for_each(|(dh, (((h, t), &loss), &dy))| {
            let rows = dh.iter_mut().zip(h.iter().zip(t));
            match (self.0.cosine, inverse_norms(h, t)) {
                (false, _) => {
                    let factor = dy * F::of(2.0 / cols as f64);
                    rows.for_each(|(dh, (&h, &t))| *dh = factor * (h - t));
                }
                (true, Some((a, b))) => {
                    let along = a * (F::ONE - loss);
                    rows.for_each(|(dh, (&h, &t))| *dh = dy * a * (along * h - b * t));
                }
                (true, None) => dh.fill(F::ZERO),
            }
        });
    }
}
