//! The kernel launches of a product: one, or several where a matrix is larger than one binding may be.

use super::variant::Variant;
use super::{Layout, Matmul, Region, Target};
use crate::device::{Bind, Caps, Dispatch, Slice, grid};
use crate::formats::Dtype;
use crate::graph::{Node, Tensor};
use std::ops::Range;

/// None if no kernel can multiply what B is in memory.
pub(super) fn dispatches(op: &Matmul, node: &Node<'_>, caps: &Caps) -> Option<Vec<Dispatch>> {
    let splitter = Splitter { op, operands: operands(op, node), inputs: node.inputs.len(), limit: caps.max_binding };
    let mut dispatches = Vec::new();
    splitter.split(op.size.map(|n| 0..n), &mut |piece| dispatches.push(splitter.dispatch(piece, caps)));
    dispatches.into_iter().collect()
}

/// Ranges of batch, M, N and K.
type Piece = [Range<usize>; 4];
const BATCH: usize = 0;
const M: usize = 1;
const N: usize = 2;
const K: usize = 3;

/// A matrix of the product with the axes of its rows and columns, and the tensor it lies in.
#[derive(Clone, Copy)]
struct Operand {
    region: Region,
    rows: usize,
    cols: usize,
    /// Bytes of the tensor, and of an element.
    bytes: u64,
    each: u64,
}

/// Cuts a product so that every binding stays within the device's limit.
struct Splitter<'a> {
    op: &'a Matmul,
    /// A, B, C.
    operands: [Operand; 3],
    /// How many; a scale is the last.
    inputs: usize,
    limit: u64,
}

/// A, B and C.
fn operands(op: &Matmul, node: &Node<'_>) -> [Operand; 3] {
    let (a, b) = match op.layout {
        Layout::NN => ((M, K), (K, N)),
        Layout::NT => ((M, K), (N, K)),
        Layout::TN => ((K, M), (K, N)),
    };
    let operand = |region, (rows, cols), t: Tensor| Operand { region, rows, cols, bytes: t.bytes(), each: 4 };
    let [x, y] = [node.inputs[0], node.inputs[1]];
    let each = if op.stored == Dtype::F32 { 4 } else { 2 };
    [operand(op.a, a, x), Operand { each, ..operand(op.b, b, y) }, operand(op.c, (M, N), node.outputs[0])]
}

impl Operand {
    /// The bytes of the tensor that hold a piece, from a multiple of the binding alignment on.
    fn span(&self, piece: &Piece) -> Range<u64> {
        let [batch, rows, cols] = [BATCH, self.rows, self.cols].map(|axis| &piece[axis]);
        let first = self.region.at([batch.start, rows.start, cols.start]) as u64 * self.each;
        let end = self.region.at([batch.end - 1, rows.end - 1, cols.end]) as u64 * self.each;
        first / Slice::ALIGN * Slice::ALIGN..end
    }

    /// What to bind for a piece (`None`: the whole tensor), and the parameters of the matrix inside the binding.
    fn place(&self, piece: &Piece, limit: u64) -> (Option<(u64, u64)>, [u32; 3]) {
        let first = self.region.at([BATCH, self.rows, self.cols].map(|axis| piece[axis].start));
        let range = (self.bytes > limit).then(|| self.span(piece)).map(|span| (span.start, span.end - span.start));
        let start = range.map_or(0, |(start, _)| (start / self.each) as usize);
        (range, [first - start, self.region.batch_stride, self.region.stride].map(|x| x as u32))
    }
}

impl Splitter<'_> {
    /// Calls `emit` for pieces that fit, in an order in which the pieces of one sum over K follow each other.
    fn split(&self, piece: Piece, emit: &mut dyn FnMut(&Piece)) {
        let bytes = |o: &&Operand| {
            let span = o.span(&piece);
            span.end - span.start
        };
        let too_large = self.operands.iter().filter(|o| o.bytes > self.limit && bytes(o) > self.limit);
        let axes = too_large.max_by_key(bytes).map(|o| [BATCH, o.rows, o.cols]);
        let Some(axis) = axes.and_then(|axes| axes.into_iter().find(|&axis| piece[axis].len() > 1)) else {
            return emit(&piece);
        };
        let Range { start, end } = piece[axis].clone();
        // Whole tiles where there are many.
        let half = (end - start) / 2;
        let middle = start + if half >= 64 { half / 64 * 64 } else { half };
        for part in [start..middle, middle..end] {
            let mut piece = piece.clone();
            piece[axis] = part;
            self.split(piece, emit);
        }
    }

    fn dispatch(&self, piece: &Piece, caps: &Caps) -> Option<Dispatch> {
        let op = self.op;
        let [batch, m, n, k] = [BATCH, M, N, K].map(|axis| piece[axis].len());
        let [a, b, c] = self.operands.map(|operand| operand.place(piece, self.limit));
        let bind_in = |i, range: Option<(u64, u64)>| range.map_or(Bind::In(i), |(at, len)| Bind::InRange(i, at, len));
        let bind_out = c.0.map_or(Bind::Out(0), |(at, len)| Bind::OutRange(0, at, len));
        // Unused bindings need some buffer: B again.
        let first = piece[K].start == 0;
        let (bias, residual) = if first { op.extras() } else { (None, None) };
        let mut binds = vec![
            bind_out,
            bind_in(0, a.0),
            bind_in(1, b.0),
            bias.map_or(bind_in(1, b.0), Bind::In),
            residual.map_or(bind_in(1, b.0), |i| bind_in(i, c.0)),
        ];
        let accumulate = !first || op.target == Target::Accumulate;
        let flags = u32::from(accumulate) + 2 * u32::from(bias.is_some()) + 4 * u32::from(residual.is_some());

        let size = [batch, m, n, k];
        let aligned = [n, if op.layout == Layout::TN { m } else { k }, piece[N].start].iter().all(|n| n % 4 == 0)
            && [a.1, b.1, c.1].iter().flatten().all(|x| x % 4 == 0);
        let variant = Variant::of(op, size, aligned, caps)?;
        let (shader, entry, constants) = variant.kernel(op, caps);
        if variant.scales() {
            binds.push(if op.scaled.is_some() { Bind::In(self.inputs - 1) } else { bind_in(1, b.0) });
        }
        let count = variant.groups(size);
        let mut params = [m, n, k, count].map(|x| x as u32).to_vec();
        [a.1, b.1, c.1].iter().for_each(|&[offset, batch, row]| params.extend([offset, batch, row, 0]));
        params.extend([flags, piece[N].start as u32]);
        Some(Dispatch { shader, entry, constants, binds, params, groups: grid(count, caps) })
    }
}
