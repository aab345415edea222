//! Some columns of a matrix as a tensor of their own: the parts of a fused projection.

use super::{add_grad, shader, zeros};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;
use std::ops::Range;

pub(crate) const SHADER: Shader = shader!("columns");

/// x -> its columns; or, to `add` them back: (dy, dx so far) -> dx, in its memory.
#[derive(Debug, Clone, Copy)]
struct Columns {
    start: usize,
    add: bool,
}

/// y[i, j] = x[i, columns.start + j]: x [N, W], y [N, columns.len()].
pub fn columns(g: &mut Graph, x: Tensor, columns: Range<usize>) -> Tensor {
    let fits = x.shape.len() == 2 && columns.start < columns.end && columns.end <= x.shape[1];
    assert!(fits && x.dtype == DType::F32, "columns {columns:?} of {x:?}");
    let op = Columns { start: columns.start, add: false };
    g.record(op, &[x], [([x.shape[0], columns.len()].into(), DType::F32)])[0]
}

impl Op for Columns {
    fn name(&self) -> &'static str {
        "columns"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        if self.add { vec![(0, 1)] } else { Vec::new() }
    }

    fn backward(&self, g: &mut Graph, node: &Node<'_>, dy: &[Option<Tensor>]) -> Result<()> {
        if self.add {
            return Err(crate::Error::internal("`columns` has no second derivative"));
        }
        let Some(dy) = dy[0] else { return Ok(()) };
        let x = node.inputs[0];
        let op = Columns { add: true, ..*self };
        match g.grad_in_place(x) {
            Some(own) => {
                let sum = g.record(op, &[dy, own], [(x.shape, DType::F32)])[0];
                g.set_grad(x, sum);
            }
            None => {
                let rest = zeros(g, x.shape);
                let dx = g.record(op, &[dy, rest], [(x.shape, DType::F32)])[0];
                add_grad(g, x, dx);
            }
        }
        Ok(())
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let (wide, narrow) =
            if self.add { (node.outputs[0], node.inputs[0]) } else { (node.inputs[0], node.outputs[0]) };
        let count = narrow.shape.numel();
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: if self.add { "add" } else { "take" },
            constants: Vec::new(),
            binds: vec![Bind::Out(0), Bind::In(0)],
            params: [count, wide.shape.cols(), narrow.shape.cols(), self.start].map(|n| n as u32).to_vec(),
            groups: grid(count.div_ceil(256), caps),
        }])
    }
}

impl Twin for Columns {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (out, given) = (io.out(0), io.f(0));
        let (to, from) = (io.node.outputs[0].shape.cols(), io.in_shape(0).cols());
        let rows = out.par_chunks_mut(to).zip(given.par_chunks(from)).with_min_len(32);
        rows.for_each(|(out, given)| match self.add {
            false => out.copy_from_slice(&given[self.start..][..to]),
            true => out[self.start..][..from].iter_mut().zip(given).for_each(|(out, &x)| *out += x),
        });
    }
}
