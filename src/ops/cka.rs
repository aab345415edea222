//! 1 - linear centred kernel alignment of two sets of hidden states (Kornblith et al. 2019, arXiv 1905.00414), a
//! statistic of a whole batch.

use super::centre::centre;
use super::{Layout, add_grad, matmul, shader};
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;
use crate::{Error, Result};

pub(crate) const SHADER: Shader = shader!("cka");
/// Lanes of a workgroup of the shader, and its partial sums of a matrix.
const LANES: usize = 256;
const PARTS: usize = 64;

/// (C, A, B) -> loss rows, (N, a, b), partial sums.
#[derive(Debug, Clone, Copy)]
struct Cka {
    rows: usize,
}

/// (C, A, (N, a, b), dy) -> dC, dA, factors.
#[derive(Debug, Clone, Copy)]
struct CkaGrad;

/// 1 - |Y^T X|^2 / (|X^T X| |Y^T Y|) with the columns of x `[N, d]` and y `[N, d']` centred over the rows whose weight
/// (`[N]`) is not 0 and the other rows left out; Frobenius norms. The same value in each of the N rows of the result,
/// so that rows weighted by `weights` sum to the value times the weights' sum. Widths may differ: no rotation or scale
/// of either side changes it. 1 with gradient 0 where one side does not vary. Differentiable in x; y is a constant. The
/// three products are `[d', d]`, `[d, d]` and `[d', d']`.
pub fn cka(g: &mut Graph, x: Tensor, y: Tensor, weights: Tensor) -> Tensor {
    assert!(x.shape.len() == 2 && y.shape.len() == 2 && x.shape[0] == y.shape[0], "cka: {x:?} {y:?}");
    let (x, y) = (centre(g, x, weights), centre(g, y, weights));
    let [c, a, b] = [(y, x), (x, x), (y, y)].map(|(left, right)| matmul(g, Layout::TN, left, right));
    let rows = x.shape[0];
    let shapes = [[rows].into(), [3].into(), [3 * PARTS].into()].map(|shape| (shape, DType::F32));
    g.record(Cka { rows }, &[c, a, b], shapes)[0]
}

fn dispatch(entry: &'static str, binds: Vec<Bind>, count: usize, first: usize, groups: [u32; 3]) -> Dispatch {
    Dispatch { shader: SHADER, entry, constants: Vec::new(), binds, params: vec![count as u32, first as u32], groups }
}

impl Op for Cka {
    fn name(&self) -> &'static str {
        "cka"
    }

    fn backward(&self, g: &mut Graph, node: &Node<'_>, dy: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = dy[0] else { return Ok(()) };
        let &[c, a, b] = node.inputs else { return Err(Error::internal("`cka` without its three products")) };
        if g.requires_grad(b) {
            return Err(Error::internal("`cka` has no gradient for the target"));
        }
        let shapes = [(c.shape, DType::F32), (a.shape, DType::F32), ([2].into(), DType::F32)];
        let [dc, da, _] = g.record(CkaGrad, &[c, a, node.outputs[1], dy], shapes);
        add_grad(g, c, dc);
        add_grad(g, a, da);
        Ok(())
    }

    fn dispatches(&self, node: &Node<'_>, _: &Caps) -> Result<Vec<Dispatch>> {
        let squares = |i: usize| {
            let count = node.inputs[i].shape.numel();
            dispatch("squares", vec![Bind::In(i), Bind::Out(2)], count, i * PARTS, [PARTS as u32, 1, 1])
        };
        let value = vec![Bind::Out(0), Bind::Out(2), Bind::Out(1)];
        Ok((0..3).map(squares).chain([dispatch("value", value, self.rows, 0, [1, 1, 1])]).collect())
    }
}

impl Twin for Cka {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let square = |m: &[F]| F::of(m.chunks(4096).map(|m| F::dot(m, m).f64()).sum());
        let (n, a, b) = (square(io.f(0)), square(io.f(1)).sqrt(), square(io.f(2)).sqrt());
        let varies = a > F::ZERO && b > F::ZERO;
        io.out(0).fill(if varies { F::ONE - n / (a * b) } else { F::ONE });
        io.out(1).copy_from_slice(&[n, a, b]);
        io.out(2).fill(F::ZERO);
    }
}

impl Op for CkaGrad {
    fn name(&self) -> &'static str {
        "cka"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let factors = vec![Bind::In(3), Bind::In(2), Bind::Out(2)];
        let scale = |i: usize| {
            let count = node.inputs[i].shape.numel();
            let binds = vec![Bind::In(i), Bind::Out(i), Bind::Out(2)];
            dispatch("scale", binds, count, i, grid(count.div_ceil(LANES), caps))
        };
        Ok(vec![dispatch("factors", factors, node.inputs[3].shape.numel(), 0, [1, 1, 1]), scale(0), scale(1)])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let n = (node.inputs[0].shape.numel() + node.inputs[1].shape.numel()) as u64;
        Cost { flops: n, bytes: 8 * n }
    }
}

impl Twin for CkaGrad {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (stats, u) = (io.f(2), F::sum_of(io.f(3)));
        let [n, a, b] = [stats[0], stats[1], stats[2]];
        let mut factors = [F::ZERO; 2];
        if a > F::ZERO && b > F::ZERO {
            factors = [-F::of(2.0) * u / (a * b), u * n / (a * a * a * b)];
        }
        for (i, factor) in factors.into_iter().enumerate() {
            let matrix = io.f(i);
            io.out(i).par_iter_mut().zip(matrix).for_each(|(y, &x)| *y = factor * x);
        }
        io.out(2).copy_from_slice(&factors);
    }
}
