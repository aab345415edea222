//! Sums over rows and over tokens. Not differentiable: they are ends of gradients and of losses.

use super::{add_grad, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("reduce");
/// Rows that are summed in one go. A taller matrix is summed in parts first, then the parts are.
const PART: usize = 64;
/// Parts at most, so that neither sum gets long.
const PARTS: usize = 1024;

#[derive(Debug, Clone, Copy)]
enum Reduce {
    /// Output 0: the sums; output 1, of a tall matrix only: the parts' sums. With `accumulate`, input 1 is updated.
    SumRows { accumulate: bool },
    /// Inputs: values, weights, the scalar that is updated.
    WeightedSum,
}

/// y[j] = sum over i of x[i, j]: x [.., M] with its leading dimensions flattened to rows, y [M].
pub fn sum_rows(g: &mut Graph, x: Tensor) -> Tensor {
    record_sum(g, &[x], false)
}

/// The same, added to `into` [M] in its memory; returns its new handle.
pub fn sum_rows_into(g: &mut Graph, x: Tensor, into: Tensor) -> Tensor {
    assert_eq!(into.shape.numel(), x.shape.cols(), "sum_rows_into");
    record_sum(g, &[x, into], true)
}

fn record_sum(g: &mut Graph, inputs: &[Tensor], accumulate: bool) -> Tensor {
    let (rows, cols) = (inputs[0].shape.rows(), inputs[0].shape.cols());
    let sums = (inputs.get(1).map_or([cols].into(), |into| into.shape), DType::F32);
    let op = Reduce::SumRows { accumulate };
    if rows <= PART {
        return g.record(op, inputs, [sums])[0];
    }
    g.record(op, inputs, [sums, ([rows.div_ceil(part(rows)), cols].into(), DType::F32)])[0]
}

/// Adds the sum over the rows of x [.., C] to the gradient of `t` [C].
pub fn add_row_sums(g: &mut Graph, t: Tensor, x: Tensor) {
    match g.grad_in_place(t) {
        Some(own) => {
            let sum = sum_rows_into(g, x, own);
            g.set_grad(t, sum);
        }
        None => {
            let sum = sum_rows(g, x);
            add_grad(g, t, sum);
        }
    }
}

/// Rows of a part of a tall matrix.
fn part(rows: usize) -> usize {
    rows.div_ceil(PARTS).max(PART)
}

/// into[at] += sum over i of values[i] * weights[i], in the memory of `into` [R] (a ring of scalars, say), where `at`
/// u32 [1] is below R; returns the new handle of `into`.
pub fn weighted_sum(g: &mut Graph, values: Tensor, weights: Tensor, into: Tensor, at: Tensor) -> Tensor {
    assert!(values.shape.numel() == weights.shape.numel() && at.shape.numel() == 1, "weighted_sum");
    g.record(Reduce::WeightedSum, &[values, weights, at, into], [(into.shape, DType::F32)])[0]
}

impl Op for Reduce {
    fn name(&self) -> &'static str {
        "reduce"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        match self {
            Reduce::SumRows { accumulate: false } => Vec::new(),
            Reduce::SumRows { accumulate: true } => vec![(0, 1)],
            Reduce::WeightedSum => vec![(0, 3)],
        }
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let x = node.inputs[0].shape;
        let dispatch = |entry, binds, rows: usize, part: usize, count: usize, accumulate: bool| Dispatch {
            shader: SHADER,
            entry,
            constants: Vec::new(),
            binds,
            params: [rows, x.cols(), part, count, usize::from(accumulate)].map(|n| n as u32).to_vec(),
            groups: grid(count, caps),
        };
        let Reduce::SumRows { accumulate } = *self else {
            let binds = vec![Bind::Out(0), Bind::In(0), Bind::In(1), Bind::In(2)];
            let params = [x.numel(), 1, 0, node.outputs[0].shape.numel(), 1].map(|n| n as u32).to_vec();
            return Ok(vec![Dispatch { params, groups: [1, 1, 1], ..dispatch("weighted", binds, 1, 0, 1, true) }]);
        };
        let (rows, blocks) = (x.rows(), x.cols().div_ceil(64));
        let Some(parts) = node.outputs.get(1).map(|parts| parts.shape.rows()) else {
            return Ok(vec![dispatch("columns", vec![Bind::Out(0), Bind::In(0)], rows, rows, blocks, accumulate)]);
        };
        Ok(vec![
            dispatch("columns", vec![Bind::Out(1), Bind::In(0)], rows, part(rows), parts * blocks, false),
            dispatch("total", vec![Bind::Out(0), Bind::Out(1)], parts, parts, blocks, accumulate),
        ])
    }
}

impl Twin for Reduce {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (x, y, cols) = (io.f(0), io.out(0), io.in_shape(0).cols());
        let Reduce::SumRows { accumulate } = *self else {
            // Blocks first, as on a GPU: the error grows with the block's length, not with the whole.
            let blocks = x.chunks(256).zip(io.f(1).chunks(256));
            if let Some(y) = y.get_mut(io.u(2)[0] as usize) {
                *y += F::of(blocks.map(|(x, w)| F::dot(x, w).f64()).sum());
            }
            return;
        };
        if !accumulate {
            y.fill(F::ZERO);
        }
        let add_rows = |y: &mut [F], rows: &[F]| rows.chunks(cols).for_each(|row| F::axpy(y, F::ONE, row));
        if io.outputs.len() == 1 {
            return add_rows(y, x);
        }
        let parts = io.out(1);
        let part = part(io.in_shape(0).rows());
        parts.par_chunks_mut(cols).zip(x.par_chunks(part * cols)).for_each(|(sums, rows)| {
            sums.fill(F::ZERO);
            add_rows(sums, rows);
        });
        add_rows(y, parts);
    }
}
