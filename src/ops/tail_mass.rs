//! The probability outside each row's k best tokens.

use super::shader;
use super::sparse_kl::log_sum_exp_off;
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("tail_mass");

#[derive(Debug, Clone, Copy)]
struct TailMass {
    vocab: usize,
    temperature: f32,
}

/// The mass of softmax(z / temperature) outside the row's `ids` `[R, k]`, which are those of [`super::top_k`] of `z`
/// `[R, V_padded]` (best first); `lse` `[R]` is its [`super::log_sum_exp`] at that temperature. `[R]`; 0 where every
/// token has a place.
pub fn tail_mass(g: &mut Graph, z: Tensor, lse: Tensor, ids: Tensor, vocab: usize, temperature: f32) -> Tensor {
    assert!((1..=z.shape.cols()).contains(&vocab) && temperature > 0.0, "tail_mass");
    assert!(lse.shape.numel() == z.shape.rows() && ids.shape.rows() == z.shape.rows(), "tail_mass: {ids:?}");
    g.record(TailMass { vocab, temperature }, &[z, lse, ids], [(lse.shape, DType::F32)])[0]
}

impl Op for TailMass {
    fn name(&self) -> &'static str {
        "tail_mass"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let (z, k) = (node.inputs[0].shape, node.inputs[2].shape.cols());
        let sizes = [z.rows() as u32, z.cols() as u32, self.vocab as u32, k as u32];
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: "main",
            constants: vec![],
            binds: vec![Bind::Out(0), Bind::In(0), Bind::In(1), Bind::In(2)],
            params: [&sizes[..], &[(1.0 / self.temperature).to_bits()]].concat(),
            groups: grid(z.rows(), caps),
        }])
    }
}

impl Twin for TailMass {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (z, lse, ids) = (io.f(0), io.f(1), io.u(2));
        let (stride, k, scale) =
            (io.in_shape(0).cols(), io.in_shape(2).cols(), F::ONE / F::of(self.temperature as f64));
        let rows = z.par_chunks(stride).zip(lse).zip(ids.par_chunks(k));
        io.out(0).par_iter_mut().zip(rows).for_each(|(tail, ((row, &lse), ids))| {
            let mut inside: Vec<usize> = ids.iter().map(|&id| id as usize).filter(|&id| id < self.vocab).collect();
            inside.sort_unstable();
            *tail = F::ZERO;
            if inside.len() < self.vocab {
                *tail = (log_sum_exp_off(&row[..self.vocab], inside.iter().copied(), scale) - lse).exp();
            }
        });
    }
}
