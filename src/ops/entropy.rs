//! The entropy of each row's distribution.

use super::shader;
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("entropy");
/// Columns handled at a time.
const BLOCK: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Entropy {
    vocab: usize,
}

/// Entropy in nats of softmax over the first `vocab` columns of each row of `z` `[R, V_padded]`; `lse` `[R]` is its
/// [`super::log_sum_exp`] at temperature 1. `[R]`.
pub fn entropy(g: &mut Graph, z: Tensor, lse: Tensor, vocab: usize) -> Tensor {
    assert!((1..=z.shape.cols()).contains(&vocab) && lse.shape.numel() == z.shape.rows(), "entropy");
    g.record(Entropy { vocab }, &[z, lse], [(lse.shape, DType::F32)])[0]
}

impl Op for Entropy {
    fn name(&self) -> &'static str {
        "entropy"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let z = node.inputs[0].shape;
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: "main",
            constants: vec![],
            binds: vec![Bind::Out(0), Bind::In(0), Bind::In(1)],
            params: vec![z.rows() as u32, z.cols() as u32, self.vocab as u32],
            groups: grid(z.rows(), caps),
        }])
    }
}

impl Twin for Entropy {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (z, lse, stride) = (io.f(0), io.f(1), io.in_shape(0).cols());
        io.out(0).par_iter_mut().zip(z.par_chunks(stride)).zip(lse).for_each(|((entropy, row), &lse)| {
            let (mut q, mut minus_log_q) = ([F::ZERO; BLOCK], [F::ZERO; BLOCK]);
            *entropy = F::ZERO;
            for z in row[..self.vocab].chunks(BLOCK) {
                let (q, minus_log_q) = (&mut q[..z.len()], &mut minus_log_q[..z.len()]);
                F::exp_into(q, z, F::ONE, F::ONE, lse);
                minus_log_q.iter_mut().zip(z).for_each(|(m, &z)| *m = lse - z);
                *entropy += F::dot(q, minus_log_q);
            }
        });
    }
}
