//! The gradient of [`super::embedding()`] in its table, without atomics: one writer for each row of the table.

use super::embedding::{Segments, byte_range, pieces};
use super::shader;
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("embedding_grad");

/// (dy, order, starts, tokens, maybe dtable so far) -> dtable.
#[derive(Debug, Clone, Copy)]
struct EmbeddingGrad {
    scale: f32,
    accumulate: bool,
}

/// dtable[token] = scale * the sum of the rows of `dy` [N, d] whose id is `token`, added to `onto` if given.
pub(super) fn record(
    g: &mut Graph,
    dy: Tensor,
    segments: Segments,
    table: Tensor,
    onto: Option<Tensor>,
    scale: f32,
) -> Tensor {
    let Segments { order, starts, tokens } = segments;
    let inputs: Vec<Tensor> = [dy, order, starts, tokens].into_iter().chain(onto).collect();
    g.record(EmbeddingGrad { scale, accumulate: onto.is_some() }, &inputs, [(table.shape, DType::F32)])[0]
}

impl Op for EmbeddingGrad {
    fn name(&self) -> &'static str {
        "embedding_grad"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        self.accumulate.then_some((0, 4)).into_iter().collect()
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let (dtable, dy) = (node.outputs[0], node.inputs[0].shape);
        let cols = dtable.shape[1];
        let mut dispatches = Vec::new();
        for rows in pieces(dtable, caps)? {
            let (offset, bytes) = byte_range(dtable, &rows);
            let dispatch = |entry, count: usize, inputs: usize| Dispatch {
                shader: SHADER,
                entry,
                constants: vec![("COLS", format!("{cols}u"))],
                binds: [Bind::OutRange(0, offset, bytes)].into_iter().chain((0..inputs).map(Bind::In)).collect(),
                params: vec![count as u32, rows.start as u32, rows.len() as u32, dy[0] as u32, self.scale.to_bits()],
                groups: grid(count.div_ceil(256), caps),
            };
            if !self.accumulate {
                dispatches.push(dispatch("clear", rows.len() * cols, 0));
            }
            dispatches.push(dispatch("scatter", dy.numel(), 4));
        }
        Ok(dispatches)
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let (dy, table) = (node.inputs[0].shape.numel() as u64, node.outputs[0].shape.numel() as u64);
        let cleared = if self.accumulate { 0 } else { table };
        Cost { flops: 2 * dy, bytes: 4 * (3 * dy + cleared) }
    }
}

impl Twin for EmbeddingGrad {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (mut dtable, dy) = (io.out(0), io.f(0));
        let (order, starts, tokens) = (io.u(1), io.u(2), io.u(3));
        let cols = io.in_shape(0).cols().max(1);
        if !self.accumulate {
            dtable.par_chunks_mut(1 << 14).for_each(|piece| piece.fill(F::ZERO));
        }
        // Tokens rise from segment to segment, so the table splits into one row a segment.
        let vocabulary = io.out_shape(0).rows();
        let used = tokens.iter().map(|&token| token as usize).zip(starts.windows(2));
        let (mut work, mut first) = (Vec::new(), 0);
        for (token, bounds) in used.take_while(|(token, _)| *token < vocabulary) {
            let Some(skip) = token.checked_sub(first) else { break };
            let (row, rest) = std::mem::take(&mut dtable)[skip * cols..].split_at_mut(cols);
            work.push((row, order.get(bounds[0] as usize..bounds[1] as usize).unwrap_or(&[])));
            (dtable, first) = (rest, token + 1);
        }
        let scale = F::of(self.scale as f64);
        work.into_par_iter().with_min_len(8).for_each(|(row, rows)| {
            let dy = rows.iter().filter_map(|&n| dy.chunks_exact(cols).nth(n as usize));
            dy.for_each(|dy| F::axpy(row, scale, dy));
        });
    }
}
