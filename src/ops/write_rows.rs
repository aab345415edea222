//! Rows written into a larger tensor: how a KV cache grows.

use super::shader;
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};

pub(crate) const SHADER: Shader = shader!("write_rows");

/// (cache, rows, at) -> cache.
#[derive(Debug, Clone, Copy)]
struct WriteRows;

/// cache[at[n]] = rows[n], in the cache's memory: cache [P, W], rows [N, W], at u32 [N], no place twice. Rows whose
/// place is P or more are skipped. Returns the cache's new value; the old handle must not be read again. No gradient.
pub fn write_rows(g: &mut Graph, cache: Tensor, rows: Tensor, at: Tensor) -> Tensor {
    assert_eq!((cache.shape.len(), rows.shape.len(), at.dtype), (2, 2, DType::U32), "write_rows");
    assert_eq!((cache.shape[1], rows.shape[0]), (rows.shape[1], at.shape.numel()), "write_rows");
    g.record(WriteRows, &[cache, rows, at], [(cache.shape, DType::F32)])[0]
}

impl Op for WriteRows {
    fn name(&self) -> &'static str {
        "write_rows"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let (cache, count) = (node.inputs[0].shape, node.inputs[1].shape.numel());
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: "write_rows",
            constants: vec![("COLS", format!("{}u", cache[1]))],
            binds: vec![Bind::Out(0), Bind::In(1), Bind::In(2)],
            params: vec![count as u32, cache[0] as u32],
            groups: grid(count.div_ceil(256), caps),
        }])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        Cost { flops: 0, bytes: 8 * node.inputs[1].shape.numel() as u64 }
    }
}

impl Twin for WriteRows {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (cache, rows, at) = (io.out(0), io.f(1), io.u(2));
        let cols = io.in_shape(0).cols().max(1);
        for (row, &place) in rows.chunks_exact(cols).zip(at) {
            if let Some(target) = cache.chunks_exact_mut(cols).nth(place as usize) {
                target.copy_from_slice(row);
            }
        }
    }
}
