//! 1 / the norm of each row of W + s B A, from W, B and two small products: DoRA's denominators (arXiv:2402.09353).

use super::embedding::{byte_range, pieces};
use super::shader;
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;
use std::ops::Range;

pub(crate) const SHADER: Shader = shader!("inverse_norms");
/// Squared norms below this count as this: a row of zeros has a large inverse, not an infinite one.
const LEAST: f64 = 1e-30;

/// Inputs: W, B, W A^T, B (A A^T).
#[derive(Debug, Clone, Copy)]
struct InverseNorms {
    scale: f32,
}

/// y[o] = 1 / |W_o + scale (B A)_o| for w [O, K], b [O, r], wa = W A^T [O, r] and baa = B (A A^T) [O, r]. The squared
/// norm is |W_o|^2 + sum_j b_oj (2 scale wa_oj + scale^2 baa_oj), so W + scale B A itself is never formed. No gradient
/// flows back: DoRA treats the norm as a constant (its section 4.3).
pub fn inverse_norms(g: &mut Graph, w: Tensor, b: Tensor, [wa, baa]: [Tensor; 2], scale: f32) -> Tensor {
    let rows = w.shape[0];
    let fits = [b, wa, baa].iter().all(|t| t.shape == b.shape && t.shape.rows() == rows);
    assert!(w.shape.len() == 2 && fits, "inverse_norms: {w:?} {b:?} {wa:?} {baa:?}");
    g.record(InverseNorms { scale }, &[w, b, wa, baa], [([rows].into(), DType::F32)])[0]
}

impl Op for InverseNorms {
    fn name(&self) -> &'static str {
        "inverse_norms"
    }

    fn backward(&self, _: &mut Graph, _: &Node<'_>, _: &[Option<Tensor>]) -> Result<()> {
        Ok(())
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let (w, rank) = (node.inputs[0], node.inputs[1].shape.cols());
        let dispatch = |rows: Range<usize>| {
            let (at, bytes) = byte_range(w, &rows);
            let counts = [rows.start, rows.len(), w.shape.cols(), rank].map(|n| n as u32);
            Dispatch {
                shader: SHADER,
                entry: "rows",
                constants: Vec::new(),
                binds: vec![Bind::Out(0), Bind::InRange(0, at, bytes), Bind::In(1), Bind::In(2), Bind::In(3)],
                params: [&counts[..], &[self.scale.to_bits()]].concat(),
                groups: grid(rows.len(), caps),
            }
        };
        Ok(pieces(w, caps)?.into_iter().map(dispatch).collect())
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let count = |i: usize| node.inputs[i].shape.numel() as u64;
        Cost { flops: 2 * count(0) + 5 * count(1), bytes: 4 * (count(0) + 3 * count(1)) }
    }
}

impl Twin for InverseNorms {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (y, w, b, wa, baa) = (io.out(0), io.f(0), io.f(1), io.f(2), io.f(3));
        let (cols, rank) = (io.in_shape(0).cols(), io.in_shape(1).cols());
        let scale = F::of(self.scale as f64);
        y.par_iter_mut().enumerate().with_min_len(8).for_each(|(o, y)| {
            let (w, small) = (&w[o * cols..][..cols], o * rank..(o + 1) * rank);
            let b = &b[small.clone()];
            let added = F::dot(b, &wa[small.clone()]) * (scale + scale) + F::dot(b, &baa[small]) * scale * scale;
            let square = F::dot(w, w) + added;
            *y = F::ONE / if square > F::of(LEAST) { square } else { F::of(LEAST) }.sqrt();
        });
    }
}
