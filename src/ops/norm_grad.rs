//! The gradient of RMSNorm and LayerNorm. Nothing but x is kept from the forward pass: mean and scale are found again.

use super::norm::Norm;
use super::{add_grad, add_row_sums, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("norm_grad");
/// Lanes of a workgroup of the shader.
const LANES: usize = 128;

/// (dy, x, weight, maybe dx so far) -> (dx, each row's mean and scale, maybe shares of dweight by blocks of rows).
#[derive(Debug, Clone, Copy)]
struct NormGrad {
    norm: Norm,
    accumulate: bool,
}

/// Records the gradients of `x` [.., d] and `weight` [d] from `dy` and hands them on.
pub(super) fn record(g: &mut Graph, norm: Norm, dy: Tensor, x: Tensor, weight: Tensor) {
    let onto = g.grad_in_place(x);
    let op = NormGrad { norm, accumulate: onto.is_some() };
    let inputs: Vec<Tensor> = [Some(dy), Some(x), Some(weight), onto].into_iter().flatten().collect();
    let (rows, cols) = (x.shape.rows(), x.shape.cols());
    let (dx, stats) = ((x.shape, DType::F32), ([rows, 2].into(), DType::F32));
    let dx = if g.requires_grad(weight) {
        let shares = ([blocks_of(rows).1, cols].into(), DType::F32);
        let [dx, _, shares] = g.record(op, &inputs, [dx, stats, shares]);
        add_row_sums(g, weight, shares);
        dx
    } else {
        g.record(op, &inputs, [dx, stats])[0]
    };
    match onto {
        Some(_) => g.set_grad(x, dx),
        None => add_grad(g, x, dx),
    }
}

impl Op for NormGrad {
    fn name(&self) -> &'static str {
        "norm_grad"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        self.accumulate.then_some((0, 3)).into_iter().collect()
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let (rows, cols) = (node.inputs[1].shape.rows(), node.inputs[1].shape.cols());
        let (block_rows, blocks) = blocks_of(rows);
        let by_row = Dispatch {
            shader: SHADER,
            entry: "by_row",
            constants: vec![
                ("CENTER", self.norm.center.to_string()),
                ("PLUS_ONE", self.norm.plus_one.to_string()),
                ("ACCUMULATE", self.accumulate.to_string()),
            ],
            binds: vec![Bind::Out(0), Bind::Out(1), Bind::In(0), Bind::In(1), Bind::In(2)],
            params: vec![rows as u32, cols as u32, self.norm.eps.to_bits(), block_rows as u32, blocks as u32],
            groups: grid(rows, caps),
        };
        if node.outputs.len() == 2 {
            return Ok(vec![by_row]);
        }
        let mut by_column = Dispatch { entry: "by_column", ..by_row.clone() };
        by_column.binds.push(Bind::Out(2));
        by_column.groups = grid(blocks * cols.div_ceil(LANES), caps);
        Ok(vec![by_row, by_column])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let n = node.outputs[0].shape.numel() as u64;
        Cost { flops: 14 * n, bytes: 20 * n }
    }
}

impl Twin for NormGrad {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (dx, stats) = (io.out(0), io.out(1));
        let mut no_shares = Vec::new();
        let shares = if io.outputs.len() > 2 { io.out(2) } else { &mut no_shares[..] };
        let (dy, x, weight) = (io.f(0), io.f(1), io.f(2));
        let cols = weight.len();
        if cols == 0 || x.is_empty() {
            shares.fill(F::ZERO);
            return;
        }
        let (block_rows, blocks) = blocks_of(x.len() / cols);
        let mut shares: Vec<&mut [F]> = shares.chunks_mut(cols).collect();
        shares.resize_with(blocks, Default::default);
        let block = block_rows * cols;
        let rows = dx.par_chunks_mut(block).zip(stats.par_chunks_mut(2 * block_rows));
        let given = dy.par_chunks(block).zip(x.par_chunks(block));
        rows.zip(given).zip(shares).for_each(|(((dx, stats), (dy, x)), share)| {
            share.fill(F::ZERO);
            let (mut h, mut g) = (vec![F::ZERO; cols], vec![F::ZERO; cols]);
            let rows = dx.chunks_exact_mut(cols).zip(stats.chunks_exact_mut(2));
            for ((dx, stats), (dy, x)) in rows.zip(dy.chunks_exact(cols).zip(x.chunks_exact(cols))) {
                let (mean, inv) = self.norm.normalise(x, &mut h);
                stats.copy_from_slice(&[mean, inv]);
                share.iter_mut().zip(dy).zip(&h).for_each(|((s, &dy), &h)| *s += dy * h);
                g.iter_mut().zip(dy).zip(weight).for_each(|((g, &dy), &w)| *g = dy * self.norm.factor(w));
                self.row(dx, &g, &h, inv);
            }
        });
    }
}

impl NormGrad {
    /// dx (+)= inv * (g - mean(g) - h * mean(g * h)).
    fn row<F: Real>(&self, dx: &mut [F], g: &[F], h: &[F], inv: F) {
        let n = F::of(g.len() as f64);
        let mean = if self.norm.center { F::sum_of(g) / n } else { F::ZERO };
        let along = F::dot(g, h) / n;
        for (dx, (&g, &h)) in dx.iter_mut().zip(g.iter().zip(h)) {
            let value = inv * (g - mean - h * along);
            *dx = if self.accumulate { *dx + value } else { value };
        }
    }
}

/// Shares of the weight's gradient at most.
const MAX_BLOCKS: usize = 64;
/// Rows that are worth a share of their own.
const MIN_ROWS: usize = 16;

/// Rows a share sums, and how many shares, for `rows` rows.
fn blocks_of(rows: usize) -> (usize, usize) {
    let block_rows = rows.div_ceil(MAX_BLOCKS).max(MIN_ROWS);
    (block_rows, rows.div_ceil(block_rows).max(1))
}
