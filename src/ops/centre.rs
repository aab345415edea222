//! Hidden states with their columns centred over the rows that count, and brought to norm 1: CKA's first step.

use super::{add_grad, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("centre");
/// Lanes of a workgroup of the shader.
const LANES: usize = 64;
/// A sum of squares below this is none.
const LEAST: f64 = 1e-30;

/// Inputs x, weights and, in the gradient, the forward's 1 / norm. Outputs y, (mean, squares) of each column and, in
/// the forward pass, 1 / norm.
#[derive(Debug, Clone, Copy)]
struct Centre {
    gradient: bool,
}

/// y = (x - m) / s on the rows of x `[N, d]` whose weight (`[N]`) is not 0, and 0 on the others, where m is the mean of
/// those rows and s the Frobenius norm of their deviations; 0 where they do not deviate. To be used by what no
/// scale of y changes: the gradient takes s as a constant, which is then exact.
pub(super) fn centre(g: &mut Graph, x: Tensor, weights: Tensor) -> Tensor {
    assert!(x.shape.len() == 2 && weights.shape.numel() == x.shape[0], "centre: {x:?} {weights:?}");
    let stats = ([x.shape[1], 2].into(), DType::F32);
    g.record(Centre { gradient: false }, &[x, weights], [(x.shape, DType::F32), stats, ([1].into(), DType::F32)])[0]
}

impl Op for Centre {
    fn name(&self) -> &'static str {
        "centre"
    }

    fn backward(&self, g: &mut Graph, node: &Node<'_>, dy: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = dy[0] else { return Ok(()) };
        let outputs = [(dy.shape, DType::F32), (node.outputs[1].shape, DType::F32)];
        let inputs = [dy, node.inputs[1], node.outputs[2]];
        let [dx, _] = g.record(Centre { gradient: true }, &inputs, outputs);
        add_grad(g, node.inputs[0], dx);
        Ok(())
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let x = node.inputs[0].shape;
        let dispatch = |entry, binds: Vec<Bind>, groups| Dispatch {
            shader: SHADER,
            entry,
            constants: Vec::new(),
            binds,
            params: vec![x.rows() as u32, x.cols() as u32],
            groups,
        };
        let [y, stats] = [Bind::Out(0), Bind::Out(1)];
        let columns = vec![Bind::In(0), Bind::In(1), stats];
        let elements = grid(x.numel().div_ceil(LANES), caps);
        let columns_grid = grid(x.cols().div_ceil(LANES), caps);
        if self.gradient {
            let rows = vec![Bind::In(0), Bind::In(1), stats, Bind::In(2), y];
            return Ok(vec![dispatch("columns", columns, columns_grid), dispatch("gradient", rows, elements)]);
        }
        let inv = Bind::Out(2);
        let total = vec![Bind::In(0), Bind::In(1), stats, inv];
        let rows = vec![Bind::In(0), Bind::In(1), stats, inv, y];
        Ok(vec![
            dispatch("columns", columns, columns_grid),
            dispatch("total", total, [1, 1, 1]),
            dispatch("forward", rows, elements),
        ])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let n = node.inputs[0].shape.numel() as u64;
        Cost { flops: 6 * n, bytes: 16 * n }
    }
}

impl Twin for Centre {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (x, weights, cols) = (io.f(0), io.f(1), io.in_shape(0).cols());
        let (y, stats) = (io.out(0), io.out(1));
        let counted = || x.chunks(cols).zip(weights).filter(|(_, w)| **w != F::ZERO).map(|(x, _)| x);
        let count = F::of(counted().count().max(1) as f64);
        let mut means = vec![F::ZERO; cols];
        counted().for_each(|x| F::axpy(&mut means, F::ONE, x));
        means.iter_mut().for_each(|m| *m /= count);
        let mut squares = vec![F::ZERO; cols];
        for x in counted() {
            squares.iter_mut().zip(x.iter().zip(&means)).for_each(|(s, (&x, &m))| *s += (x - m) * (x - m));
        }
        for (stats, (&mean, &squares)) in stats.chunks_exact_mut(2).zip(means.iter().zip(&squares)) {
            stats.copy_from_slice(&[mean, squares]);
        }
        let inv = if self.gradient {
            io.f(2)[0]
        } else {
            let total = F::sum_of(&squares);
            let inv = if total.f64() >= LEAST { F::ONE / total.sqrt() } else { F::ZERO };
            io.out(2)[0] = inv;
            inv
        };
        y.par_chunks_mut(cols).zip(x.par_chunks(cols)).zip(weights).for_each(|((y, x), &weight)| {
            if weight == F::ZERO {
                return y.fill(F::ZERO);
            }
            y.iter_mut().zip(x.iter().zip(&means)).for_each(|(y, (&x, &m))| *y = (x - m) * inv);
        });
    }
}
