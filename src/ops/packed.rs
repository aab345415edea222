//! Products with, and rows of, a frozen matrix that stays as its file stores it (`formats/packed.rs`): decoded on the
//! way into the product, so that no f32 copy of it exists beyond a panel. No gradients: what needs them is not frozen.

use super::{View, shader};
use crate::Result;
use crate::device::gemm::{Layout as Strides, gemm};
use crate::device::{Caps, Dispatch, Precision, Real, Shader};
use crate::formats::{Dtype, Quant};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Shape, Tensor, Twin};
use crate::platform::parallel::*;

mod halves;
mod pieces;

pub use halves::halves;

pub(crate) const SHADER: Shader = shader!("packed");

/// Values of the matrix that the CPU decodes at a time, 4 MiB of f32: a layer's matrix of a small model at once.
const PANEL: usize = 1 << 20;
/// Rows of x below which the CPU does not round the factors of a product.
const FEW_ROWS: usize = 8;

/// (x, w, maybe bias, maybe residual) -> y.
#[derive(Debug, Clone, Copy)]
struct PackedLinear {
    stored: Dtype,
    /// M, N, K.
    size: [usize; 3],
    /// First element of x, and elements from one of its rows to the next.
    x: [usize; 2],
    bias: bool,
    residual: bool,
    precision: Precision,
}

/// (ids, table) -> rows.
#[derive(Debug, Clone, Copy)]
struct PackedRows {
    stored: Dtype,
    scale: f32,
}

/// y = x * w^T (+ bias) (+ residual), as [`super::linear`] has it: x [.., K], w [N, K] packed, bias [N], residual and y
/// [.., N] of shape `out`. Not differentiable.
pub fn packed_linear(g: &mut Graph, x: Tensor, w: Tensor, bias: Option<Tensor>, residual: Option<Tensor>) -> Tensor {
    let (rows, n) = (x.shape.rows(), w.shape[0]);
    let shape = match x.shape[..] {
        [a, b, _] => Shape::from([a, b, n]),
        _ => [rows, n].into(),
    };
    assert!(bias.is_none_or(|t| t.shape.numel() == n), "packed_linear: bias {bias:?} for {w:?}");
    assert!(residual.is_none_or(|t| t.shape == shape), "packed_linear: residual {residual:?} for {shape:?}");
    let view = View::from(g.reshape(x, [rows, x.shape.cols()]));
    record(g, view, w, bias, residual, shape)
}

/// y = x * w^T of some rows of a matrix: x [M, K], w [N, K] packed, y [M, N]. Not differentiable.
pub fn packed_product(g: &mut Graph, x: impl Into<View>, w: Tensor) -> Tensor {
    let x = x.into();
    record(g, x, w, None, None, [x.rows, w.shape[0]])
}

fn record(
    g: &mut Graph,
    x: View,
    w: Tensor,
    bias: Option<Tensor>,
    residual: Option<Tensor>,
    shape: impl Into<Shape>,
) -> Tensor {
    let w = if x.rows > pieces::FEW_ROWS { halves(g, w) } else { w };
    let (DType::Packed(stored), &[n, k]) = (w.dtype, &w.shape[..]) else { panic!("{w:?} is no packed matrix") };
    assert!(x.cols == k && x.batch == 1 && stored.packs(k), "packed: {x:?} and {w:?} of {stored}");
    let (size, precision) = ([x.rows, n, k], g.precision());
    let (bias_there, residual_there) = (bias.is_some(), residual.is_some());
    let x_at = [x.offset, x.stride];
    let op = PackedLinear { stored, size, x: x_at, bias: bias_there, residual: residual_there, precision };
    let inputs: Vec<Tensor> = [x.tensor, w].into_iter().chain(bias).chain(residual).collect();
    g.record(op, &inputs, [(shape.into(), DType::F32)])[0]
}

/// y = scale * table[ids]: ids u32 [M], table [V, K] packed, y [M, K]. An id of V or more gives zeros. Not
/// differentiable.
pub fn packed_rows(g: &mut Graph, ids: Tensor, table: Tensor, scale: f32) -> Tensor {
    let (DType::Packed(stored), &[_, k]) = (table.dtype, &table.shape[..]) else {
        panic!("{table:?} is no packed matrix")
    };
    assert!(ids.shape.len() == 1 && ids.dtype == DType::U32 && stored.packs(k), "packed_rows: {ids:?} {table:?}");
    g.record(PackedRows { stored, scale }, &[ids, table], [([ids.shape[0], k].into(), DType::F32)])[0]
}

/// The number of a stored type in the shader.
fn format(stored: Dtype) -> u32 {
    match stored {
        Dtype::Bf16 => 1,
        Dtype::Quant(Quant::Q4_0) => 2,
        Dtype::Quant(Quant::Q4_1) => 3,
        Dtype::Quant(Quant::Q5_0) => 4,
        Dtype::Quant(Quant::Q5_1) => 5,
        Dtype::Quant(Quant::Q8_0) => 6,
        Dtype::Quant(Quant::Q2_K) => 7,
        Dtype::Quant(Quant::Q3_K) => 8,
        Dtype::Quant(Quant::Q4_K) => 9,
        Dtype::Quant(Quant::Q5_K) => 10,
        Dtype::Quant(Quant::Q6_K) => 11,
        // F16; nothing else is packed.
        _ => 0,
    }
}

impl PackedLinear {
    /// Which input the bias and the residual are.
    fn extras(&self) -> (Option<usize>, Option<usize>) {
        (self.bias.then_some(2), self.residual.then_some(2 + usize::from(self.bias)))
    }
}

impl Op for PackedLinear {
    fn name(&self) -> &'static str {
        "packed"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        pieces::of_product(self, node, caps)
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let [m, n, k] = self.size.map(|n| n as u64);
        let extra: u64 = node.inputs.iter().skip(2).map(Tensor::bytes).sum();
        Cost { flops: 2 * m * n * k, bytes: 4 * (m * k + m * n) + node.inputs[1].bytes() + extra }
    }
}

impl Twin for PackedLinear {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (y, x, w) = (io.out(0), io.f(0), io.u(1));
        let [m, n, k] = self.size;
        let (bias, residual) = self.extras();
        let (bias, residual) = (bias.map(|i| io.f(i)), residual.map(|i| io.f(i)));
        if m == 1 {
            return self.one_row(y, &x[self.x[0]..][..k], w, bias, residual);
        }
        let accumulate = prefill(y, n, bias, residual);
        let words = self.stored.packed_words(k);
        let height = (PANEL / k).clamp(1, n.max(1));
        let product = if self.precision == Precision::Bf16 && m >= FEW_ROWS { F::gemm_bf16 } else { gemm };
        F::with_scratch(height * k, |scratch| {
            for (panel, w) in w.chunks(height * words).enumerate() {
                let rows = w.len() / words;
                let panel_values = &mut scratch[..rows * k];
                unpack(self.stored, w, panel_values, k);
                let (lx, ly) = (Strides { offset: self.x[0], row: self.x[1], col: 1 }, panel * height);
                let (lw, ly) = (Strides { offset: 0, row: 1, col: k }, Strides { offset: ly, row: n, col: 1 });
                product((m, k, rows), y, ly, accumulate, x, lx, panel_values, lw, true);
            }
        });
    }
}

impl PackedLinear {
    /// y of one row of x: the matrix is decoded row by row, each for one dot product.
    fn one_row<F: Real>(&self, y: &mut [F], x: &[F], w: &[u32], bias: Option<&[F]>, residual: Option<&[F]>) {
        const CHUNK: usize = 64;
        let words = self.stored.packed_words(x.len());
        y.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, y)| {
            F::with_scratch(x.len(), |row| {
                for (i, y) in (chunk * CHUNK..).zip(y) {
                    F::filled(row, |row| self.stored.unpack(&w[i * words..][..words], row));
                    let extra = [bias, residual].into_iter().flatten().fold(F::ZERO, |sum, extra| sum + extra[i]);
                    *y = F::dot(x, row) + extra;
                }
            });
        });
    }
}

/// Decodes whole rows of `k` values.
fn unpack<F: Real>(stored: Dtype, w: &[u32], out: &mut [F], k: usize) {
    /// Values a task takes at least.
    const TASK: usize = 1 << 14;
    let rows = TASK.div_ceil(k);
    let words = stored.packed_words(k);
    let tasks = out.par_chunks_mut(rows * k).enumerate();
    tasks.for_each(|(task, out)| {
        let w = &w[task * rows * words..][..out.len() / k * words];
        F::filled(out, |out| stored.unpack(w, out));
    });
}

/// y = bias + residual, row by row, to which the product is then added; false where there is neither.
fn prefill<F: Real>(y: &mut [F], n: usize, bias: Option<&[F]>, residual: Option<&[F]>) -> bool {
    if let Some(residual) = residual {
        y.par_chunks_mut(n).zip(residual.par_chunks(n)).for_each(|(y, residual)| y.copy_from_slice(residual));
    }
    if let Some(bias) = bias {
        y.par_chunks_mut(n).for_each(|y| match residual {
            Some(_) => y.iter_mut().zip(bias).for_each(|(y, &b)| *y += b),
            None => y.copy_from_slice(bias),
        });
    }
    bias.is_some() || residual.is_some()
}

impl Op for PackedRows {
    fn name(&self) -> &'static str {
        "packed"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        pieces::of_rows(self, node, caps)
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let n = node.outputs[0].shape.numel() as u64;
        Cost { flops: 4 * n, bytes: 8 * n }
    }
}

impl Twin for PackedRows {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (y, ids, table) = (io.out(0), io.u(0), io.u(1));
        let cols = io.in_shape(1).cols();
        let words = self.stored.packed_words(cols);
        let scale = F::of(f64::from(self.scale));
        y.par_chunks_mut(cols).zip(ids).with_min_len(32).for_each(|(y, &id)| {
            let Some(row) = table.chunks_exact(words).nth(id as usize) else { return y.fill(F::ZERO) };
            F::filled(y, |y| self.stored.unpack(row, y));
            y.iter_mut().for_each(|y| *y = scale * *y);
        });
    }
}
