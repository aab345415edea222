//! A mixture of two rows of logits: TAID's moving teacher (Shing et al. 2025, arXiv 2501.16937).

use super::{Chunk, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("blend");

#[derive(Debug, Clone, Copy)]
struct Blend {
    vocab: usize,
}

/// (1 - t) z + t v over the first `vocab` columns, `[R, vocab]`, of the chunk's logits z and a teacher's logits `v`
/// `[R, V']`; `t` is f32 `[1]`. A target: no gradient flows into either.
pub fn blend(g: &mut Graph, chunk: Chunk, v: Tensor, t: Tensor) -> Tensor {
    let (rows, vocab) = (chunk.z.shape.rows(), chunk.vocab);
    assert!(v.shape.rows() == rows && vocab <= v.shape.cols() && vocab <= chunk.z.shape.cols(), "blend: {v:?}");
    assert_eq!(t.shape.numel(), 1, "blend: {t:?}");
    g.record(Blend { vocab }, &[chunk.z, v, t], [([rows, vocab].into(), DType::F32)])[0]
}

impl Op for Blend {
    fn name(&self) -> &'static str {
        "blend"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let (z, v, count) = (node.inputs[0].shape, node.inputs[1].shape, node.outputs[0].shape.numel());
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: "main",
            constants: vec![],
            binds: vec![Bind::Out(0), Bind::In(0), Bind::In(1), Bind::In(2)],
            params: [count, self.vocab, z.cols(), v.cols()].map(|n| n as u32).to_vec(),
            groups: grid(count.div_ceil(256), caps),
        }])
    }
}

impl Twin for Blend {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (z, v, t) = (io.f(0), io.f(1), io.f(2)[0]);
        let (z_stride, v_stride) = (io.in_shape(0).cols(), io.in_shape(1).cols());
        let rows = z.par_chunks(z_stride).zip(v.par_chunks(v_stride));
        io.out(0).par_chunks_mut(self.vocab).zip(rows).for_each(|(out, (z, v))| {
            out.iter_mut().zip(z).zip(v).for_each(|((out, &z), &v)| *out = (F::ONE - t) * z + t * v);
        });
    }
}
