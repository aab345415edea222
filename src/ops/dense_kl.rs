//! Kullback-Leibler divergence of a live teacher's whole row from the student's row, and its gradient.

use super::cross_entropy::{LossInto, each_row, in_place};
use super::{Chunk, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{CpuIo, Graph, Node, Op, Tensor, Twin};

pub(crate) const SHADER: Shader = shader!("dense_kl");

/// A live teacher's logits for the same rows.
#[derive(Debug, Clone, Copy)]
pub struct DenseTarget {
    /// `[R, V_padded]`; its padding may differ from the student's.
    pub z: Tensor,
    /// [`super::log_sum_exp`] of `z` at `temperature` over the chunk's vocabulary, `[R]`.
    pub lse: Tensor,
    /// Softmax temperature of both sides.
    pub temperature: f32,
}

impl DenseTarget {
    /// Panics where shapes do not belong together.
    pub(super) fn check(&self, op: &str, chunk: Chunk, weights: Tensor, into: LossInto) {
        let batch = into.loss_rows.shape.numel();
        chunk.check(batch);
        Chunk { z: self.z, ..chunk }.check(batch);
        assert_eq!(chunk.z.shape.rows(), self.z.shape.rows(), "{op}");
        assert!(weights.shape.numel() == batch && self.temperature > 0.0, "{op}: {weights:?}");
        assert!(into.dz.is_none_or(|dz| dz.shape == chunk.z.shape), "{op}: gradient of another shape");
    }
}

#[derive(Debug, Clone, Copy)]
struct DenseKl {
    first_row: usize,
    vocab: usize,
    temperature: f32,
    gradient: bool,
}

/// Inputs before those of [`LossInto`].
const INPUTS: usize = 5;
/// Columns handled at a time: two blocks of them stay in the first-level cache.
const BLOCK: usize = 1024;

/// T^2 KL(teacher || student) of each row over the chunk's vocabulary, and dz += weight * T (q - p). `lse` `[R]` is the
/// chunk's [`super::log_sum_exp`] at the target's temperature, `weights` is `[N]`; rows of weight 0 have loss 0.
pub fn dense_kl(
    g: &mut Graph,
    chunk: Chunk,
    lse: Tensor,
    target: DenseTarget,
    weights: Tensor,
    into: LossInto,
) -> LossInto {
    target.check("dense_kl", chunk, weights, into);
    let (first_row, vocab, temperature) = (chunk.first_row, chunk.vocab, target.temperature);
    let op = DenseKl { first_row, vocab, temperature, gradient: into.dz.is_some() };
    into.record(g, op, &[chunk.z, lse, target.z, target.lse, weights])
}

impl Op for DenseKl {
    fn name(&self) -> &'static str {
        "dense_kl"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        in_place(INPUTS, self.gradient)
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let (z, teacher) = (node.inputs[0].shape, node.inputs[2].shape);
        let mut binds = vec![Bind::Out(0)];
        binds.extend((0..INPUTS).map(Bind::In));
        binds.extend(self.gradient.then_some(Bind::Out(1)));
        let mut params = Chunk::params(z.rows(), z.cols(), self.vocab, self.first_row);
        params.extend([teacher.cols() as u32, self.temperature.to_bits(), (1.0 / self.temperature).to_bits()]);
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: if self.gradient { "gradient" } else { "value" },
            constants: vec![],
            binds,
            params,
            groups: grid(z.rows(), caps),
        }])
    }
}

impl Twin for DenseKl {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (z, lse, teacher, teacher_lse, weights) = (io.f(0), io.f(1), io.f(2), io.f(3), io.f(4));
        let (rows, stride, teacher_stride) = (io.in_shape(0).rows(), io.in_shape(0).cols(), io.in_shape(2).cols());
        let (t, scale) = (F::of(self.temperature as f64), F::ONE / F::of(self.temperature as f64));
        let (losses, dz) = (io.out(0), self.gradient.then(|| io.out(1)));
        each_row((rows, stride, self.first_row), losses, dz, |r, n, loss, dz| {
            *loss = F::ZERO;
            if weights[n] == F::ZERO {
                return;
            }
            let (z, teacher) = (&z[r * stride..][..self.vocab], &teacher[r * teacher_stride..][..self.vocab]);
            let (mut probabilities, mut log_ratios) = ([F::ZERO; BLOCK], [F::ZERO; BLOCK]);
            let (shift, factor) = (teacher_lse[r] - lse[r], t * weights[n]);
            for (block, (z, teacher)) in z.chunks(BLOCK).zip(teacher.chunks(BLOCK)).enumerate() {
                let (p, log_ratios) = (&mut probabilities[..z.len()], &mut log_ratios[..z.len()]);
                F::exp_into(p, teacher, F::ONE, scale, teacher_lse[r]);
                for ((ratio, &student), &teacher) in log_ratios.iter_mut().zip(z).zip(teacher) {
                    *ratio = scale * (teacher - student) - shift;
                }
                *loss += F::dot(p, log_ratios);
                if !dz.is_empty() {
                    let dz = &mut dz[block * BLOCK..][..z.len()];
                    F::add_exp(dz, z, factor, scale, lse[r]);
                    F::axpy(dz, -factor, p);
                }
            }
            *loss *= t * t;
        });
    }
}
