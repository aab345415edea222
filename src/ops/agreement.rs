//! Whether two models put the same token first.

use super::shader;
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("agreement");
/// Columns handled at a time.
const BLOCK: usize = 256;

#[derive(Debug, Clone, Copy)]
struct Agreement {
    vocab: usize,
}

/// 1 for each row whose largest logit among the first `vocab` columns stands in the same column in `a` `[R, _]` as in
/// `b` `[R, _]` (of equal ones the lowest column), else 0. `[R]`.
pub fn agreement(g: &mut Graph, a: Tensor, b: Tensor, vocab: usize) -> Tensor {
    assert!(a.shape.rows() == b.shape.rows() && vocab >= 1, "agreement: {a:?} {b:?}");
    assert!(vocab <= a.shape.cols() && vocab <= b.shape.cols(), "agreement: {a:?} {b:?}");
    g.record(Agreement { vocab }, &[a, b], [([a.shape.rows()].into(), DType::F32)])[0]
}

impl Op for Agreement {
    fn name(&self) -> &'static str {
        "agreement"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let (a, b) = (node.inputs[0].shape, node.inputs[1].shape);
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: "main",
            constants: vec![],
            binds: vec![Bind::Out(0), Bind::In(0), Bind::In(1)],
            params: vec![a.rows() as u32, a.cols() as u32, b.cols() as u32, self.vocab as u32],
            groups: grid(a.rows(), caps),
        }])
    }
}

impl Twin for Agreement {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (a, b) = (io.f(0), io.f(1));
        let rows = a.par_chunks(io.in_shape(0).cols()).zip(b.par_chunks(io.in_shape(1).cols()));
        io.out(0).par_iter_mut().zip(rows).for_each(|(same, (a, b))| {
            *same = if first_best(&a[..self.vocab]) == first_best(&b[..self.vocab]) { F::ONE } else { F::ZERO };
        });
    }
}

/// The lowest column of the largest value. Blocks that hold nothing larger are passed over at the speed of a maximum.
fn first_best<F: Real>(row: &[F]) -> Option<usize> {
    let (mut high, mut column) = (F::LOWEST, None);
    for (number, block) in row.chunks(BLOCK).enumerate() {
        let best = F::max_of(block);
        if best > high {
            high = best;
            column = block.iter().position(|&x| x == best).map(|at| number * BLOCK + at);
        }
    }
    column
}
