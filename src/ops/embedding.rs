//! Rows of a table by index, and the host's half of their gradient.

use super::{add_grad, embedding_grad, shader};
use crate::device::{Bind, Caps, Dispatch, Real, Shader, Slice, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;
use crate::{Error, Result};
use std::ops::Range;

pub(crate) const SHADER: Shader = shader!("embedding");

/// (ids, table, maybe segments) -> rows.
#[derive(Debug, Clone, Copy)]
struct Embedding {
    scale: f32,
}

/// Where each token stands among the ids, all u32: what the gradient needs. [`segments_of`] fills them for each batch.
#[derive(Debug, Clone, Copy)]
pub struct Segments {
    /// [N]: the positions 0..N, sorted by their ids.
    pub order: Tensor,
    /// [N + 1]: where in `order` each segment of equal ids starts, then N.
    pub starts: Tensor,
    /// [N]: the id of each segment, then u32::MAX.
    pub tokens: Tensor,
}

/// y = scale * table[ids]: ids u32 [N], table [V, d], y [N, d]. Differentiable in the table if `segments` are given. An
/// id of V or more gives zeros and no gradient.
pub fn embedding(g: &mut Graph, ids: Tensor, table: Tensor, segments: Option<Segments>, scale: f32) -> Tensor {
    let n = ids.shape.numel();
    assert!(ids.shape.len() == 1 && ids.dtype == DType::U32 && table.shape.len() == 2, "embedding: {ids:?} {table:?}");
    let mut inputs = vec![ids, table];
    if let Some(Segments { order, starts, tokens }) = segments {
        let lengths = [order, starts, tokens].map(|t| (t.shape.numel(), t.dtype));
        assert_eq!(lengths, [n, n + 1, n].map(|n| (n, DType::U32)), "segments");
        inputs.extend([order, starts, tokens]);
    }
    g.record(Embedding { scale }, &inputs, [([n, table.shape[1]].into(), DType::F32)])[0]
}

/// y[m] = x[at[m]]: x [N, W], at u32 [M], y [M, W]. Rows past x are zeros. No gradient.
pub fn gather_rows(g: &mut Graph, x: Tensor, at: Tensor) -> Tensor {
    embedding(g, at, x, None, 1.0)
}

/// The values of [`Segments`] for a batch's ids: `(order, starts, tokens)`. Equal ids keep their order, so that sums
/// are the same on every run.
pub fn segments_of(ids: &[u32]) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|&n| ids[n as usize]);
    let (mut starts, mut tokens) = (Vec::with_capacity(ids.len() + 1), Vec::with_capacity(ids.len()));
    for (k, &n) in order.iter().enumerate() {
        let id = ids[n as usize];
        if tokens.last() != Some(&id) {
            starts.push(k as u32);
            tokens.push(id);
        }
    }
    starts.resize(ids.len() + 1, ids.len() as u32);
    tokens.resize(ids.len(), u32::MAX);
    (order, starts, tokens)
}

/// Cuts a table into ranges of rows, each small enough to bind and starting where a binding may start.
pub(super) fn pieces(table: Tensor, caps: &Caps) -> Result<Vec<Range<usize>>> {
    let (rows, row_bytes) = (table.shape[0], table.shape[1] as u64 * 4);
    // Rows that together are a multiple of the alignment, a power of two.
    let step = Slice::ALIGN >> row_bytes.trailing_zeros().min(Slice::ALIGN.trailing_zeros());
    let fits = table.bytes() <= caps.max_binding;
    let rows_a_piece = if fits { rows.max(1) } else { (caps.max_binding / row_bytes / step * step) as usize };
    if rows_a_piece == 0 {
        return Err(Error::device(
            format!("{step} rows of {table:?} do not fit one binding ({} bytes)", caps.max_binding),
            "use another device",
        ));
    }
    Ok((0..rows).step_by(rows_a_piece).map(|first| first..rows.min(first + rows_a_piece)).collect())
}

/// First byte and length of some rows of a table.
pub(super) fn byte_range(table: Tensor, rows: &Range<usize>) -> (u64, u64) {
    let row_bytes = table.shape[1] as u64 * 4;
    (rows.start as u64 * row_bytes, rows.len() as u64 * row_bytes)
}

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn backward(&self, g: &mut Graph, node: &Node<'_>, dy: &[Option<Tensor>]) -> Result<()> {
        let (Some(dy), table) = (dy[0], node.inputs[1]) else { return Ok(()) };
        let &[order, starts, tokens] = &node.inputs[2..] else {
            return Err(Error::internal(format!("no segments are given for the gradient of {table:?}")));
        };
        let onto = g.grad_in_place(table);
        let dtable = embedding_grad::record(g, dy, Segments { order, starts, tokens }, table, onto, self.scale);
        match onto {
            Some(_) => g.set_grad(table, dtable),
            None => add_grad(g, table, dtable),
        }
        Ok(())
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let (table, count) = (node.inputs[1], node.outputs[0].shape.numel());
        let (vocabulary, cols) = (table.shape[0] as u32, table.shape[1]);
        let piece = |rows: Range<usize>| {
            let (offset, bytes) = byte_range(table, &rows);
            let (first, rows) = (rows.start as u32, rows.len() as u32);
            Dispatch {
                shader: SHADER,
                entry: "embedding",
                constants: vec![("COLS", format!("{cols}u"))],
                binds: vec![Bind::Out(0), Bind::In(0), Bind::InRange(1, offset, bytes)],
                params: vec![count as u32, first, rows, vocabulary, self.scale.to_bits()],
                groups: grid(count.div_ceil(256), caps),
            }
        };
        Ok(pieces(table, caps)?.into_iter().map(piece).collect())
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let n = node.outputs[0].shape.numel() as u64;
        Cost { flops: n, bytes: 8 * n }
    }
}

impl Twin for Embedding {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (y, ids, table) = (io.out(0), io.u(0), io.f(1));
        let cols = io.in_shape(1).cols().max(1);
        let scale = F::of(self.scale as f64);
        y.par_chunks_mut(cols).zip(ids).with_min_len(32).for_each(|(y, &id)| {
            match table.chunks_exact(cols).nth(id as usize) {
                Some(row) => y.iter_mut().zip(row).for_each(|(y, &x)| *y = scale * x),
                None => y.fill(F::ZERO),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_stable_and_padded() {
        let (order, starts, tokens) = segments_of(&[7, 2, 7, 0, 2, 7]);
        assert_eq!(order, [3, 1, 4, 0, 2, 5]);
        assert_eq!(starts, [0, 1, 3, 6, 6, 6, 6]);
        assert_eq!(tokens, [0, 2, 7, u32::MAX, u32::MAX, u32::MAX]);
        assert_eq!(segments_of(&[]), (vec![], vec![0], vec![]));
    }

    #[test]
    fn pieces_fit_the_binding_and_start_aligned() {
        let mut g = Graph::new();
        for (rows, cols, limit) in [(151_936, 896, 128 << 20), (1000, 3, 4096), (77, 64, 256), (10, 64, 1 << 20)] {
            let table = g.external(&format!("{rows}"), [rows, cols], DType::F32);
            let pieces = pieces(table, &Caps { max_binding: limit, ..Caps::webgpu() }).unwrap();
            let mut next = 0;
            for piece in &pieces {
                let (offset, bytes) = byte_range(table, piece);
                assert!(piece.start == next && !piece.is_empty());
                assert!(bytes <= limit && offset % Slice::ALIGN == 0, "{piece:?}");
                next = piece.end;
            }
            assert_eq!(next, rows);
        }
        let wide = g.external("wide", [4, 65], DType::F32);
        assert!(pieces(wide, &Caps { max_binding: 512, ..Caps::webgpu() }).is_err());
    }
}
