//! Kullback-Leibler divergence of a stored, sparse teacher row from the student's row, and its gradient.

use super::cross_entropy::{LossInto, each_row, in_place};
use super::{Chunk, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{CpuIo, Graph, Node, Op, Tensor, Twin};
use std::ops::Range;

pub(crate) const SHADER: Shader = shader!("sparse_kl");

/// What the teacher's mass outside its stored tokens becomes.
#[derive(Debug, Clone, Copy)]
pub enum Missing {
    /// One more bucket with the stored tail mass, against all of the student's mass off the stored tokens. No bias
    /// towards the stored tokens; equal distributions have loss 0.
    Ghost {
        /// Tail mass of each row at the target's temperature, `[N]`.
        tail: Tensor,
    },
    /// Dropped: the teacher is renormalised over its stored tokens (DistillKit's `zero`). Also right for sampled
    /// rows, whose counts / N are a whole, unbiased distribution (Random Sampling KD, arXiv 2503.16870).
    Zero,
    /// Spread evenly over the tokens that are not stored.
    Uniform {
        /// Tail mass of each row at the target's temperature, `[N]`.
        tail: Tensor,
    },
    /// Dropped on both sides: teacher and student are renormalised over the stored tokens.
    BothRenormalised,
}

/// Stored teacher rows; the stored tokens of a row are distinct.
#[derive(Debug, Clone, Copy)]
pub struct SparseTarget {
    /// Token ids, u32 `[N, k]`; `u32::MAX`, as any id past the vocabulary, is an unused slot.
    pub ids: Tensor,
    /// Natural log-probabilities at `temperature`, `[N, k]`; -3.4e38 is an unused slot.
    pub log_probs: Tensor,
    /// The mass outside.
    pub missing: Missing,
    /// Softmax temperature of both sides.
    pub temperature: f32,
}

#[derive(Debug, Clone, Copy)]
struct SparseKl {
    first_row: usize,
    vocab: usize,
    ghost: bool,
    temperature: f32,
    gradient: bool,
}

/// Inputs before those of [`LossInto`]: logits, lse, ids, log-probabilities, weights, tail.
const INPUTS: [usize; 2] = [5, 6];
/// Log-probabilities not above this mark an unused slot.
const UNUSED: f64 = -1e38;

/// T^2 KL(teacher || student) of each row and dz += weight * its gradient. `lse` `[R]` is the chunk's
/// [`super::log_sum_exp`] at the target's temperature, `weights` is `[N]`. The stored masses are brought to sum 1,
/// which undoes their rounding, so the value is a true divergence: never negative, 0 where the distributions agree.
/// A row that stores no mass counts as one of weight 0. For [`Missing::Ghost`] and [`Missing::Zero`]; what else there
/// is goes by [`super::buckets()`] or [`super::teacher_row()`].
pub fn sparse_kl(
    g: &mut Graph,
    chunk: Chunk,
    lse: Tensor,
    target: SparseTarget,
    weights: Tensor,
    into: LossInto,
) -> LossInto {
    let SparseTarget { ids, log_probs, missing, temperature } = target;
    let batch = into.loss_rows.shape.numel();
    chunk.check(batch);
    assert!(ids.shape == log_probs.shape && ids.shape.rows() == batch, "sparse_kl: {ids:?} {log_probs:?}");
    assert!(weights.shape.numel() == batch && temperature > 0.0, "sparse_kl: {weights:?}");
    assert!(into.dz.is_none_or(|dz| dz.shape == chunk.z.shape), "sparse_kl: gradient of another shape");
    let mut inputs = vec![chunk.z, lse, ids, log_probs, weights];
    if let Missing::Ghost { tail } = missing {
        assert_eq!(tail.shape.numel(), batch, "sparse_kl: {tail:?}");
        inputs.push(tail);
    }
    let (first_row, vocab) = (chunk.first_row, chunk.vocab);
    let ghost = matches!(missing, Missing::Ghost { .. });
    assert!(ghost || matches!(missing, Missing::Zero), "sparse_kl: {missing:?}");
    let op = SparseKl { first_row, vocab, ghost, temperature, gradient: into.dz.is_some() };
    into.record(g, op, &inputs)
}

impl Op for SparseKl {
    fn name(&self) -> &'static str {
        "sparse_kl"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        in_place(INPUTS[self.ghost as usize], self.gradient)
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let (z, k) = (node.inputs[0].shape, node.inputs[2].shape.cols());
        // Without a ghost bucket nothing reads the tails; the weights stand in for them.
        let tail = Bind::In(if self.ghost { 5 } else { 4 });
        let mut binds = vec![Bind::Out(0), Bind::In(0), Bind::In(1), Bind::In(2), Bind::In(3), tail, Bind::In(4)];
        binds.extend(self.gradient.then_some(Bind::Out(1)));
        let mut params = Chunk::params(z.rows(), z.cols(), self.vocab, self.first_row);
        params.extend([k as u32, self.temperature.to_bits(), (1.0 / self.temperature).to_bits()]);
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: if self.gradient { "gradient" } else { "value" },
            constants: vec![("GHOST", self.ghost.to_string())],
            binds,
            params,
            groups: grid(z.rows(), caps),
        }])
    }
}

impl Twin for SparseKl {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (z, lse, ids, log_probs, weights) = (io.f(0), io.f(1), io.u(2), io.f(3), io.f(4));
        let tails = self.ghost.then(|| io.f(5));
        let (rows, stride, k) = (io.in_shape(0).rows(), io.in_shape(0).cols(), io.in_shape(2).cols());
        let (losses, dz) = (io.out(0), self.gradient.then(|| io.out(1)));
        each_row((rows, stride, self.first_row), losses, dz, |r, n, loss, dz| {
            *loss = F::ZERO;
            if weights[n] == F::ZERO {
                return;
            }
            let slots = n * k..(n + 1) * k;
            let stored = stored_of(&ids[slots.clone()], &log_probs[slots], self.vocab);
            let row = Row { z: &z[r * stride..][..self.vocab], lse: lse[r], stored, temperature: self.temperature };
            *loss = row.loss(tails.map(|t| t[n]), weights[n], dz);
        });
    }
}

/// A row's used slots as (id, log-probability), by ascending id.
pub(crate) fn stored_of<F: Real>(ids: &[u32], log_probs: &[F], vocab: usize) -> Vec<(usize, F)> {
    let mut stored: Vec<(usize, F)> = ids.iter().zip(log_probs).map(|(&id, &l)| (id as usize, l)).collect();
    stored.retain(|&(id, l)| id < vocab && l > F::of(UNUSED));
    stored.sort_unstable_by_key(|&(id, _)| id);
    stored
}

/// One row of logits with what the teacher stored for it, by ascending id.
struct Row<'a, F> {
    z: &'a [F],
    lse: F,
    stored: Vec<(usize, F)>,
    temperature: f32,
}

impl<F: Real> Row<'_, F> {
    /// The loss; adds weight * gradient to `dz` unless that is empty.
    fn loss(&self, tail: Option<F>, weight: F, dz: &mut [F]) -> F {
        let (t, scale) = (F::of(self.temperature as f64), F::ONE / F::of(self.temperature as f64));
        let off_lse = tail.and_then(|_| self.off_lse(scale));
        let tail = if off_lse.is_some() { tail.unwrap_or(F::ZERO).larger(F::ZERO) } else { F::ZERO };
        let mass = self.stored.iter().fold(tail, |sum, &(_, l)| sum + l.exp());
        if mass == F::ZERO {
            return F::ZERO;
        }
        let (log_mass, tail) = (mass.ln(), tail / mass);
        let log_q = |id: usize| scale * self.z[id] - self.lse;
        let mut value = F::ZERO;
        for &(id, l) in &self.stored {
            let log_p = l - log_mass;
            value += log_p.exp() * (log_p - log_q(id));
        }
        if let (Some(off), true) = (off_lse, tail > F::ZERO) {
            value += tail * (tail.ln() - (off - self.lse));
        }
        if !dz.is_empty() {
            let factor = t * weight;
            // Off the support: the student's mass there less the tail, spread as the student spreads it.
            let (off_factor, shift) = match off_lse {
                Some(off) => (factor * ((off - self.lse).exp() - tail), off),
                None => (factor, self.lse),
            };
            for gap in gaps(self.stored.iter().map(|s| s.0), self.z.len()) {
                F::add_exp(&mut dz[gap.clone()], &self.z[gap], off_factor, scale, shift);
            }
            for &(id, l) in &self.stored {
                dz[id] += factor * (log_q(id).exp() - (l - log_mass).exp());
            }
        }
        t * t * value
    }

    /// Log-sum-exp of z / T outside the support; `None` if nothing is outside.
    fn off_lse(&self, scale: F) -> Option<F> {
        let ids = || self.stored.iter().map(|s| s.0);
        (ids().count() < self.z.len()).then(|| log_sum_exp_off(self.z, ids(), scale))
    }
}

/// Log-sum-exp of `scale` * z outside the ascending `ids`, summed directly: 1 - the mass inside would cancel.
pub(crate) fn log_sum_exp_off<F: Real>(z: &[F], ids: impl Iterator<Item = usize> + Clone, scale: F) -> F {
    let high = gaps(ids.clone(), z.len()).fold(F::LOWEST, |high, gap| high.larger(F::max_of(&z[gap])));
    let sum = gaps(ids, z.len()).fold(F::ZERO, |sum, gap| sum + F::sum_exp(&z[gap], scale, scale * high));
    scale * high + sum.ln()
}

/// The ranges of 0..len between ascending `ids`.
pub(crate) fn gaps(ids: impl Iterator<Item = usize>, len: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    let ends = ids.chain([len]);
    ends.map(move |end| {
        let gap = start..end.max(start);
        start = end + 1;
        gap
    })
}
