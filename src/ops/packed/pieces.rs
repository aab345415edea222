//! The kernel launches of a packed matrix: one, or several where it is larger than one binding may be.

use super::{PackedLinear, PackedRows, SHADER, View, format};
use crate::device::{Bind, Caps, Dispatch, Slice, grid};
use crate::formats::Dtype;
use crate::graph::{Node, Tensor};
use crate::ops::matmul;
use crate::{Error, Result};
use std::ops::Range;

/// Fewer large tiles than this leave a GPU's cores idle; smaller tiles then win.
const ENOUGH_TILES: usize = 128;
/// Rows up to which a product is one pass over the matrix.
pub(super) const FEW_ROWS: usize = 4;
/// Columns that a group of the kernel for few rows takes.
const COLUMNS: usize = 8;

/// Rows `0..count` in as few ranges of at most `most` as it takes, each starting where a binding may start in all `tensors`.
fn ranges(tensors: &[Tensor], count: usize, most: u64) -> Result<Vec<Range<usize>>> {
    if most >= count as u64 {
        return Ok(std::iter::once(0..count).collect());
    }
    // Rows that together are a multiple of the alignment, a power of two.
    let zeros = tensors.iter().map(|tensor| (tensor.bytes() / count as u64).trailing_zeros()).min().unwrap_or(0);
    let step = Slice::ALIGN >> zeros.min(Slice::ALIGN.trailing_zeros());
    let rows = (most / step * step) as usize;
    if rows == 0 {
        let what = format!("{step} rows of {tensors:?} do not fit one binding");
        return Err(Error::device(what, "use another device"));
    }
    Ok((0..count).step_by(rows).map(|first| first..count.min(first + rows)).collect())
}

/// How many of the `count` rows of a tensor fit one binding.
fn fitting(tensor: Tensor, count: usize, limit: u64) -> u64 {
    let row_bytes = tensor.bytes() / (count as u64).max(1);
    if tensor.bytes() <= limit { count as u64 } else { limit / row_bytes }
}

/// The bytes of some of `count` rows of a tensor, if they are not all of it.
fn part(tensor: Tensor, count: usize, rows: &Range<usize>) -> Option<(u64, u64)> {
    let row_bytes = tensor.bytes() / (count as u64).max(1);
    (rows.len() < count).then_some((rows.start as u64 * row_bytes, rows.len() as u64 * row_bytes))
}

fn input(i: usize, part: Option<(u64, u64)>) -> Bind {
    part.map_or(Bind::In(i), |(offset, bytes)| Bind::InRange(i, offset, bytes))
}

/// What the kernels know when they are compiled: the type, its blocks, the words of a row, the side of a tile.
fn constants(stored: Dtype, cols: usize, side: Option<usize>) -> Vec<(&'static str, String)> {
    let (values, words) = stored.packed_block().unwrap_or((1, 1));
    let (format, row) = (format(stored) as usize, stored.packed_words(cols));
    let all = [("FORMAT", format), ("VALUES", values), ("WORDS", words), ("ROW_WORDS", row)];
    all.into_iter().chain(side.map(|side| ("SIDE", side))).map(|(name, x)| (name, format!("{x}u"))).collect()
}

pub(super) fn of_product(op: &PackedLinear, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
    let (w, y) = (node.inputs[1], node.outputs[0]);
    let [m, n, k] = op.size;
    if matches!(op.stored, Dtype::F16 | Dtype::Bf16) {
        let [offset, stride] = op.x;
        let x = View { offset, rows: m, cols: k, stride, ..View::from(node.inputs[0]) };
        let found = matmul::by_halves(node, caps, op.stored, (x, op.precision), [op.bias, op.residual]);
        if let Some(dispatches) = found {
            return Ok(dispatches);
        }
    }
    let mut dispatches = Vec::new();
    let limit = caps.max_binding;
    let most = fitting(y, m, limit).min(rows_of_x_that_fit(op, node.inputs[0], limit));
    for rows in ranges(&[y], m, most)? {
        let part_y = part(y, m, &rows);
        let (part_x, x_at) = rows_of_x(op, node.inputs[0], &rows, limit);
        for columns in ranges(&[w], n, fitting(w, n, limit))? {
            let part_w = part(w, n, &columns);
            let (bias, residual) = op.extras();
            let few_rows = rows.len() <= FEW_ROWS;
            let tiles = |side: usize| rows.len().div_ceil(side) * columns.len().div_ceil(side);
            let side = if few_rows || tiles(64) >= ENOUGH_TILES { 64 } else { 32 };
            let count = if few_rows { columns.len().div_ceil(COLUMNS) } else { tiles(side) };
            // Unused bindings need some buffer: x again.
            let binds = vec![
                part_y.map_or(Bind::Out(0), |(offset, bytes)| Bind::OutRange(0, offset, bytes)),
                input(0, part_x),
                input(1, part_w),
                bias.map_or(input(0, part_x), Bind::In),
                residual.map_or(input(0, part_x), |i| input(i, part_y)),
            ];
            let flags = u32::from(op.bias) + 2 * u32::from(op.residual);
            let sizes = [rows.len(), columns.len(), k, count, x_at, op.x[1], n, columns.start].map(|x| x as u32);
            dispatches.push(Dispatch {
                shader: SHADER,
                entry: if few_rows { "few_rows" } else { "tiles" },
                constants: constants(op.stored, k, Some(side / 4)),
                binds,
                params: sizes.into_iter().chain([flags]).collect(),
                groups: grid(count, caps),
            });
        }
    }
    Ok(dispatches)
}

/// How many rows of x fit one binding, wherever they start.
fn rows_of_x_that_fit(op: &PackedLinear, x: Tensor, limit: u64) -> u64 {
    let bytes = (op.x[1] as u64 * 4).max(1);
    if x.bytes() <= limit { u64::MAX } else { limit.saturating_sub(Slice::ALIGN) / bytes }
}

/// What to bind of x for some rows of the product, and where in it they start, elements.
fn rows_of_x(op: &PackedLinear, x: Tensor, rows: &Range<usize>, limit: u64) -> (Option<(u64, u64)>, usize) {
    let [offset, stride] = op.x;
    let first = offset + rows.start * stride;
    if x.bytes() <= limit {
        return (None, first);
    }
    let start = first as u64 * 4 / Slice::ALIGN * Slice::ALIGN;
    let end = (offset + (rows.end - 1) * stride + op.size[2]) as u64 * 4;
    (Some((start, end - start)), first - (start / 4) as usize)
}

pub(super) fn of_rows(op: &PackedRows, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
    let (table, y) = (node.inputs[1], node.outputs[0]);
    let (vocabulary, cols) = (table.shape[0], table.shape[1]);
    let groups = grid(y.shape.numel().div_ceil(4 * 256), caps);
    let piece = |rows: Range<usize>| Dispatch {
        shader: SHADER,
        entry: "rows",
        constants: constants(op.stored, cols, None),
        binds: vec![Bind::Out(0), Bind::In(0), input(1, part(table, vocabulary, &rows))],
        params: [y.shape[0], rows.len(), cols, vocabulary, rows.start]
            .into_iter()
            .map(|x| x as u32)
            .chain([op.scale.to_bits()])
            .collect(),
        groups,
    };
    let most = fitting(table, vocabulary, caps.max_binding);
    Ok(ranges(&[table], vocabulary, most)?.into_iter().map(piece).collect())
}

/// Launches that write a matrix of blocks as F16.
pub(super) fn of_halves(stored: Dtype, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
    let (w, y) = (node.inputs[0], node.outputs[0]);
    let (n, cols) = (w.shape[0], w.shape[1]);
    let most = fitting(w, n, caps.max_binding).min(fitting(y, n, caps.max_binding));
    let piece = |rows: Range<usize>| Dispatch {
        shader: SHADER,
        entry: "halves",
        constants: constants(stored, cols, None),
        // The second is not used.
        binds: vec![
            part(y, n, &rows).map_or(Bind::Out(0), |(offset, bytes)| Bind::OutRange(0, offset, bytes)),
            input(0, part(w, n, &rows)),
            input(0, part(w, n, &rows)),
        ],
        params: [0, rows.len(), cols, 0, 0, 0].map(|x| x as u32).to_vec(),
        groups: grid((rows.len() * cols).div_ceil(4 * 256), caps),
    };
    Ok(ranges(&[w, y], n, most)?.into_iter().map(piece).collect())
}
