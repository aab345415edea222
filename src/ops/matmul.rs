//! Matrix products in three layouts, in batches, into new or existing memory, with bias and residual.

use super::{add_grad, add_row_sums, shader, zeros};
use crate::Result;
use crate::device::gemm::{Layout as Strides, gemm};
use crate::device::{Caps, Dispatch, Precision, Real, Shader};
use crate::formats::Dtype;
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Shape, Tensor, Twin};
use crate::platform::parallel::*;
use std::ops::Range;

mod pieces;
mod variant;

pub(crate) const SHADER: Shader = shader!("matmul");
pub(crate) const ALIGNED: Shader = shader!("matmul_aligned");
#[cfg(not(target_family = "wasm"))]
pub(crate) const COOPERATIVE: Shader = shader!("matmul_cooperative");

/// Rows of a product below which the CPU does not round its factors.
const FEW_ROWS: usize = 8;

/// Which operand is transposed. NN: C = A*B (A [M,K], B [K,N]); NT: C = A*B^T (B [N,K]); TN: C = A^T*B
/// (A [K,M], B [K,N]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// C = A*B
    NN,
    /// C = A*B^T
    NT,
    /// C = A^T*B
    TN,
}

/// A matrix, or a batch of equal ones, inside a tensor: element (b, i, j) is element
/// `offset + b*batch_stride + i*stride + j` of the tensor.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// The tensor.
    pub tensor: Tensor,
    /// Element (0, 0, 0).
    pub offset: usize,
    /// How many matrices.
    pub batch: usize,
    /// Elements from one matrix to the next.
    pub batch_stride: usize,
    /// Rows of each.
    pub rows: usize,
    /// Columns of each.
    pub cols: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// What brings it into the range of 16-bit floats, see [`View::in_range`].
    pub scale: Option<Tensor>,
}

impl View {
    /// The same with the scale that its tensor needs where the graph's products round to 16-bit floats. Whatever may be far
    /// from 1 must have it: gradients do.
    pub fn in_range(self, g: &mut Graph) -> View {
        let scale = (g.precision() == Precision::F16).then(|| super::f16_scale(g, self.tensor));
        View { scale, ..self }
    }

    /// Some rows of a 2-D tensor.
    pub fn rows_of(t: Tensor, rows: Range<usize>) -> View {
        assert!(t.shape.len() == 2 && rows.start <= rows.end && rows.end <= t.shape[0], "rows {rows:?} of {t:?}");
        let whole = View::from(t);
        View { offset: rows.start * whole.stride, rows: rows.len(), ..whole }
    }

    /// Some columns of a 2-D tensor.
    pub fn cols_of(t: Tensor, cols: Range<usize>) -> View {
        assert!(t.shape.len() == 2 && cols.start <= cols.end && cols.end <= t.shape[1], "columns {cols:?} of {t:?}");
        View { offset: cols.start, cols: cols.len(), ..View::from(t) }
    }

    /// All of a tensor, its leading dimensions flattened to rows.
    fn flat(t: Tensor) -> View {
        let (rows, cols) = (t.shape.rows(), t.shape.cols());
        View { tensor: t, offset: 0, batch: 1, batch_stride: rows * cols, rows, cols, stride: cols, scale: None }
    }

    fn region(&self) -> Region {
        let View { tensor, offset, batch, batch_stride, rows, cols, stride, .. } = *self;
        let region = Region { offset, batch_stride, stride };
        let end = region.at([batch.max(1) - 1, rows.max(1) - 1, cols]);
        assert!(end <= tensor.shape.numel() && cols <= stride.max(cols * usize::from(rows == 1)), "{self:?}");
        region
    }
}

impl From<Tensor> for View {
    /// A matrix [rows, cols] or a batch of them [batch, rows, cols].
    fn from(t: Tensor) -> View {
        match t.shape[..] {
            [batch, rows, cols] => View { batch, rows, batch_stride: rows * cols, ..View::flat(t) },
            [_, _] => View::flat(t),
            _ => panic!("{t:?} is no matrix and no batch of matrices"),
        }
    }
}

/// A [`View`] without its tensor and its size.
#[derive(Debug, Clone, Copy)]
struct Region {
    offset: usize,
    batch_stride: usize,
    stride: usize,
}

impl Region {
    fn at(&self, [batch, row, col]: [usize; 3]) -> usize {
        self.offset + batch * self.batch_stride + row * self.stride + col
    }
}

/// What happens to C's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    New,
    Write,
    Accumulate,
}

/// A factor of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Factor {
    A = 1,
    B = 2,
}

/// Inputs: A, B, then as there are: the tensor that C lies in, bias, residual, the scale of a factor.
#[derive(Debug, Clone, Copy)]
struct Matmul {
    layout: Layout,
    /// Batch, M, N, K.
    size: [usize; 4],
    a: Region,
    b: Region,
    c: Region,
    target: Target,
    bias: bool,
    residual: bool,
    /// The factor that has a scale.
    scaled: Option<Factor>,
    /// What B is in memory; but for a frozen weight's it is F32.
    stored: Dtype,
    precision: Precision,
}

/// C = A*B (or with one transposed) as a new tensor [M, N], or [B, M, N] of 3-D operands. Differentiable.
pub fn matmul(g: &mut Graph, layout: Layout, a: impl Into<View>, b: impl Into<View>) -> Tensor {
    let (a, b) = (a.into(), b.into());
    let [batch, m, n, _] = size(layout, &a, &b);
    let batched = a.tensor.shape.len() == 3 || b.tensor.shape.len() == 3 || batch > 1;
    product(g, layout, a, b, if batched { [batch, m, n].into() } else { [m, n].into() })
}

/// Writes the product into a view of an existing tensor, in that tensor's memory, or adds it there. Returns the
/// tensor's new handle. Not differentiable: for gradients and fused losses.
pub fn matmul_into(
    g: &mut Graph,
    layout: Layout,
    a: impl Into<View>,
    b: impl Into<View>,
    into: impl Into<View>,
    accumulate: bool,
) -> Tensor {
    let (a, b, c) = (a.into(), b.into(), into.into());
    let size = size(layout, &a, &b);
    assert_eq!([c.batch, c.rows, c.cols], size[..3], "matmul_into: {layout:?} {a:?} {b:?} {c:?}");
    let target = if accumulate { Target::Accumulate } else { Target::Write };
    let op = Matmul { c: c.region(), target, ..Matmul::new(g, layout, size, &a, &b) };
    let inputs: Vec<Tensor> = [a.tensor, b.tensor, c.tensor].into_iter().chain(scale(&a, &b)).collect();
    g.record(op, &inputs, [(c.tensor.shape, DType::F32)])[0]
}

/// y = x * w^T (+ bias) (+ residual): x [.., K], w [M, K] (as Hugging Face stores it: [out, in]), bias [M], residual
/// and y [.., M]. Differentiable in all.
pub fn linear(g: &mut Graph, x: Tensor, w: Tensor, bias: Option<Tensor>, residual: Option<Tensor>) -> Tensor {
    let (a, b) = (View::flat(x), View::from(w));
    let size = size(Layout::NT, &a, &b);
    let shape = with_cols(x.shape, size[2]);
    assert!(bias.is_none_or(|t| t.shape.numel() == size[2]), "linear: bias {bias:?} for {w:?}");
    assert!(residual.is_none_or(|t| t.shape == shape), "linear: residual {residual:?} for {shape:?}");
    let op = Matmul { bias: bias.is_some(), residual: residual.is_some(), ..Matmul::new(g, Layout::NT, size, &a, &b) };
    let inputs: Vec<Tensor> = [x, w].into_iter().chain(bias).chain(residual).collect();
    g.record(op, &inputs, [(shape, DType::F32)])[0]
}

/// The launches of x * w^T (+ bias) (+ residual), inputs in this order, x a view [M, K] and w [N, K] of F16 or BF16: those of an
/// f32 product, which decode w on its way. None where they cannot: few rows, or nothing that can be loaded in fours.
pub(super) fn by_halves(
    node: &Node<'_>,
    caps: &Caps,
    stored: Dtype,
    (x, precision): (View, Precision),
    [bias, residual]: [bool; 2],
) -> Option<Vec<Dispatch>> {
    let (w, y) = (node.inputs[1], node.outputs[0]);
    let (n, k) = (w.shape[0], w.shape[1]);
    let size = [1, x.rows, n, k];
    let b = Region { offset: 0, batch_stride: n * k, stride: k };
    let (a, c) = (x.region(), contiguous(&size));
    let (layout, target, scaled) = (Layout::NT, Target::New, None);
    let op = Matmul { layout, size, a, b, c, target, bias, residual, scaled, stored, precision };
    debug_assert_eq!(y.shape.numel(), x.rows * n);
    pieces::dispatches(&op, node, caps)
}

fn product(g: &mut Graph, layout: Layout, a: View, b: View, shape: Shape) -> Tensor {
    let size = size(layout, &a, &b);
    let op = Matmul::new(g, layout, size, &a, &b);
    let inputs: Vec<Tensor> = [a.tensor, b.tensor].into_iter().chain(scale(&a, &b)).collect();
    g.record(op, &inputs, [(shape, DType::F32)])[0]
}

/// The scale of the one factor that has one.
fn scale(a: &View, b: &View) -> Option<Tensor> {
    assert!(a.scale.is_none() || b.scale.is_none(), "one factor of a product may have a scale: {a:?}, {b:?}");
    a.scale.or(b.scale)
}

/// Batch, M, N and K of a product.
fn size(layout: Layout, a: &View, b: &View) -> [usize; 4] {
    let (m, k) = if layout == Layout::TN { (a.cols, a.rows) } else { (a.rows, a.cols) };
    let (n, bk) = if layout == Layout::NT { (b.rows, b.cols) } else { (b.cols, b.rows) };
    assert!(k == bk && a.batch == b.batch, "matmul {layout:?}: {a:?} and {b:?}");
    [a.batch, m, n, k]
}

fn with_cols(shape: Shape, cols: usize) -> Shape {
    match shape[..] {
        [a, b, c, _] => [a, b, c, cols].into(),
        [a, b, _] => [a, b, cols].into(),
        [a, _] => [a, cols].into(),
        _ => [cols].into(),
    }
}

fn contiguous(&[_, m, n, _]: &[usize; 4]) -> Region {
    Region { offset: 0, batch_stride: m * n, stride: n }
}

/// Adds a product to the gradient of the part of `t` that `region` is.
fn add_product(g: &mut Graph, t: Tensor, region: Region, layout: Layout, x: View, y: View) {
    if !g.requires_grad(t) {
        return;
    }
    let [batch, rows, cols, _] = size(layout, &x, &y);
    let Region { offset, batch_stride, stride } = region;
    let part = |tensor| View { tensor, offset, batch, batch_stride, rows, cols, stride, scale: None };
    if let Some(own) = g.grad_in_place(t) {
        let sum = matmul_into(g, layout, x, y, part(own), true);
        return g.set_grad(t, sum);
    }
    let whole = batch * rows * cols == t.shape.numel() && stride == cols && (batch == 1 || batch_stride == rows * cols);
    let dt = if whole {
        product(g, layout, x, y, t.shape)
    } else {
        let rest = zeros(g, t.shape);
        matmul_into(g, layout, x, y, part(rest), false)
    };
    add_grad(g, t, dt);
}

impl Matmul {
    /// A product into memory of its own.
    fn new(g: &Graph, layout: Layout, size: [usize; 4], a: &View, b: &View) -> Matmul {
        Matmul {
            layout,
            size,
            a: a.region(),
            b: b.region(),
            c: contiguous(&size),
            target: Target::New,
            bias: false,
            residual: false,
            scaled: a.scale.map(|_| Factor::A).or(b.scale.map(|_| Factor::B)),
            stored: Dtype::F32,
            precision: g.precision(),
        }
    }

    /// The tensors A and B as views.
    fn operands(&self, node: &Node<'_>) -> [View; 2] {
        let [batch, m, n, k] = self.size;
        let view = |tensor, Region { offset, batch_stride, stride }: Region, (rows, cols)| View {
            tensor,
            offset,
            batch,
            batch_stride,
            rows,
            cols,
            stride,
            scale: None,
        };
        let a = if self.layout == Layout::TN { (k, m) } else { (m, k) };
        let b = if self.layout == Layout::NT { (n, k) } else { (k, n) };
        [view(node.inputs[0], self.a, a), view(node.inputs[1], self.b, b)]
    }

    /// Whether the CPU rounds the factors: with few rows the time is that of reading B, whatever is done with it.
    fn rounds(&self) -> bool {
        self.precision == Precision::Bf16 && self.size[1] >= FEW_ROWS
    }

    /// Which input the bias and the residual are.
    fn extras(&self) -> (Option<usize>, Option<usize>) {
        (self.bias.then_some(2), self.residual.then_some(2 + usize::from(self.bias)))
    }
}

impl Op for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        if self.target == Target::New { Vec::new() } else { vec![(0, 2)] }
    }

    fn backward(&self, g: &mut Graph, node: &Node<'_>, dy: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = dy[0] else { return Ok(()) };
        if self.target != Target::New {
            return Err(crate::Error::internal("`matmul_into` has no gradient"));
        }
        let [a, b] = self.operands(node);
        let [batch, rows, cols, _] = self.size;
        let scale = None;
        let dc = View { tensor: dy, offset: 0, batch, batch_stride: rows * cols, rows, cols, stride: cols, scale };
        let dc = dc.in_range(g);
        let ((la, xa, ya), (lb, xb, yb)) = match self.layout {
            Layout::NN => ((Layout::NT, dc, b), (Layout::TN, a, dc)),
            Layout::NT => ((Layout::NN, dc, b), (Layout::TN, dc, a)),
            Layout::TN => ((Layout::NT, b, dc), (Layout::NN, a, dc)),
        };
        add_product(g, a.tensor, self.a, la, xa, ya);
        add_product(g, b.tensor, self.b, lb, xb, yb);
        let (bias, residual) = self.extras();
        if let Some(bias) = bias.map(|i| node.inputs[i]).filter(|&t| g.requires_grad(t)) {
            add_row_sums(g, bias, dy);
        }
        if let Some(residual) = residual {
            add_grad(g, node.inputs[residual], dy);
        }
        Ok(())
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let found = pieces::dispatches(self, node, caps);
        found.ok_or_else(|| crate::Error::internal(format!("no kernel for {self:?}")))
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let [batch, m, n, k] = self.size.map(|n| n as u64);
        let touched = batch * (m * k + n * k + m * n * (1 + u64::from(self.target == Target::Accumulate)));
        let extra: u64 = node.inputs.iter().skip(2).map(|t| t.shape.numel() as u64).sum();
        let extra = if self.target == Target::New { extra } else { 0 };
        Cost { flops: 2 * batch * m * n * k, bytes: 4 * (touched + extra) }
    }
}

impl Twin for Matmul {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let c = io.out(0);
        let (a, b) = (io.f(0), io.f(1));
        let [batch, m, n, k] = self.size;
        let (bias, residual) = self.extras();
        if bias.is_some() || residual.is_some() {
            prefill(c, n, bias.map(|i| io.f(i)), residual.map(|i| io.f(i)));
        }
        let accumulate = self.target == Target::Accumulate || bias.is_some() || residual.is_some();
        let one = |c: &mut [F], offset: usize, i: usize, parallel: bool| {
            let at = |r: Region| r.offset + i * r.batch_stride;
            if self.layout == Layout::NT && m == 1 {
                let row = &mut c[offset..offset + n];
                return one_row(row, &a[at(self.a)..][..k], &b[at(self.b)..], self.b.stride, accumulate, parallel);
            }
            let straight = |r: Region| Strides { offset: at(r), row: r.stride, col: 1 };
            let turned = |r: Region| Strides { offset: at(r), row: 1, col: r.stride };
            let la = if self.layout == Layout::TN { turned(self.a) } else { straight(self.a) };
            let lb = if self.layout == Layout::NT { turned(self.b) } else { straight(self.b) };
            let lc = Strides { offset, ..straight(self.c) };
            let product = if self.rounds() { F::gemm_bf16 } else { gemm };
            product((m, k, n), c, lc, accumulate, a, la, b, lb, parallel);
        };
        let apart = self.c.batch_stride >= (m - 1) * self.c.stride + n;
        if batch >= current_num_threads() && batch > 1 && apart {
            let chunks = c[self.c.offset..].par_chunks_mut(self.c.batch_stride).take(batch);
            chunks.enumerate().for_each(|(i, c)| one(c, 0, i, false));
        } else {
            (0..batch).for_each(|i| one(c, self.c.offset + i * self.c.batch_stride, i, true));
        }
    }
}

/// C = bias + residual, row by row: what the product is then added to.
fn prefill<F: Real>(c: &mut [F], n: usize, bias: Option<&[F]>, residual: Option<&[F]>) {
    c.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
        match (bias, residual.map(|r| &r[i * n..][..n])) {
            (Some(bias), Some(residual)) => {
                row.iter_mut().zip(bias).zip(residual).for_each(|((y, &b), &r)| *y = b + r);
            }
            (Some(one), None) | (None, Some(one)) => row.copy_from_slice(one),
            (None, None) => {}
        };
    });
}

/// One row of x times w^T: a dot product a column, which reads w once and in order.
fn one_row<F: Real>(y: &mut [F], x: &[F], w: &[F], stride: usize, accumulate: bool, parallel: bool) {
    const CHUNK: usize = 64;
    let some = |(chunk, y): (usize, &mut [F])| {
        for (j, y) in y.iter_mut().enumerate() {
            let dot = F::dot(x, &w[(chunk * CHUNK + j) * stride..][..x.len()]);
            *y = if accumulate { *y + dot } else { dot };
        }
    };
    if parallel && y.len() * x.len() >= 1 << 15 {
        y.par_chunks_mut(CHUNK).enumerate().for_each(some);
    } else {
        y.chunks_mut(CHUNK).enumerate().for_each(some);
    }
}
