//! Sums over rows: the gradient of whatever was broadcast over them (a bias, a norm's weight). Long sums go in two
//! stages, shares of blocks of rows first, so that many lanes share them and the order stays fixed.

use super::{add_grad, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use rayon::prelude::*;

pub(crate) const SHADER: Shader = shader!("sum_rows");
/// Columns one workgroup handles.
const COLUMNS: usize = 32;
/// Shares in the first stage at most.
const MAX_BLOCKS: usize = 64;
/// Rows that are worth a share of their own.
const MIN_ROWS: usize = 16;

#[derive(Debug, Clone, Copy)]
struct SumRows {
    block_rows: usize,
    accumulate: bool,
}

/// y = sum over the rows of x, x being [.., C] and y [C]. With `onto` [C] the sum is added to it in its memory; its old
/// handle must not be read again.
pub fn sum_rows(g: &mut Graph, x: Tensor, onto: Option<Tensor>) -> Tensor {
    let cols = x.shape.cols();
    let (block_rows, blocks) = blocks_of(x.shape.rows());
    let shares = match blocks {
        1 => x,
        _ => g.record(SumRows { block_rows, accumulate: false }, &[x], [([blocks, cols].into(), DType::F32)])[0],
    };
    let last = SumRows { block_rows: shares.shape.rows(), accumulate: onto.is_some() };
    let inputs: Vec<Tensor> = [Some(shares), onto].into_iter().flatten().collect();
    if let Some(onto) = onto {
        assert_eq!(&onto.shape[..], [cols], "sum_rows");
    }
    g.record(last, &inputs, [([cols].into(), DType::F32)])[0]
}

/// Adds the sum over the rows of x [.., C] to the gradient of `t` [C].
pub fn add_row_sums(g: &mut Graph, t: Tensor, x: Tensor) {
    let onto = g.grad_in_place(t);
    let sum = sum_rows(g, x, onto);
    match onto {
        Some(_) => g.set_grad(t, sum),
        None => add_grad(g, t, sum),
    }
}

/// Rows a block, and how many blocks, when `rows` rows are summed in two stages.
pub(super) fn blocks_of(rows: usize) -> (usize, usize) {
    let block_rows = rows.div_ceil(MAX_BLOCKS).max(MIN_ROWS);
    (block_rows, rows.div_ceil(block_rows).max(1))
}

impl Op for SumRows {
    fn name(&self) -> &'static str {
        "sum_rows"
    }

    fn in_place(&self) -> Option<(usize, usize)> {
        self.accumulate.then_some((0, 1))
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let (x, y) = (node.inputs[0].shape, node.outputs[0].shape);
        let (rows, cols, blocks) = (x.rows(), x.cols(), y.numel() / x.cols().max(1));
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: "sum_rows",
            constants: vec![("ACCUMULATE", self.accumulate.to_string())],
            binds: vec![Bind::Out(0), Bind::In(0)],
            params: vec![rows as u32, cols as u32, self.block_rows as u32, blocks as u32],
            groups: grid(blocks * cols.div_ceil(COLUMNS), caps),
        }])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let (x, y) = (node.inputs[0].shape.numel() as u64, node.outputs[0].shape.numel() as u64);
        Cost { flops: x, bytes: 4 * (x + y) }
    }
}

impl Twin for SumRows {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (y, x) = (io.out(0), io.f(0));
        let cols = io.in_shape(0).cols();
        if cols == 0 {
            return;
        }
        let block = (self.block_rows * cols).max(1);
        y.par_chunks_mut(cols).enumerate().for_each(|(b, y)| {
            if !self.accumulate {
                y.fill(F::ZERO);
            }
            let rows = x.chunks(block).nth(b).unwrap_or(&[]);
            rows.chunks_exact(cols).for_each(|row| y.iter_mut().zip(row).for_each(|(y, &x)| *y += x));
        });
    }
}
