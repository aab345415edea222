//! A divergence between teacher and student, whatever the teacher is: every one of them goes by one of three ways.
//!
//! - *Whole rows.* A live teacher's logits, or a stored row written out over the vocabulary ([`ops::teacher_row`]).
//! - *Buckets.* A stored row's tokens and the rest ([`ops::buckets()`]), as a small vocabulary of its own.
//! - *Plain KL from stored rows* has a kernel of its own, [`ops::sparse_kl`], which reads nothing but them.

use super::head::{Live, Normalisers, check_rows, check_temperature};
use crate::graph::{Graph, Tensor};
use crate::ops::{self, Buckets, Chunk, DenseTarget, Divergence, LossInto, Missing, Power, SparseTarget};
use crate::{Error, Result};
use std::ops::Range;

/// T^2 times a divergence between a teacher's rows and the student's.
#[derive(Debug, Clone, Copy)]
pub struct Divergent<'a> {
    /// Which.
    pub divergence: Divergence,
    /// Its parameters, f32 `[2]`; `None` if it has none.
    pub parameters: Option<Tensor>,
    /// TAID's t, f32 `[1]`: the teacher is softmax((1 - t) z + t v) of the student's logits z, taken as constant, and
    /// the teacher's v. `None`: the teacher itself.
    pub blend: Option<Tensor>,
    /// The teacher.
    pub target: Target<'a>,
    /// Weight of each row, `[N]`.
    pub weights: Tensor,
}

/// Where the teacher's rows come from.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// A teacher on the same device, over the tokens that both have.
    Live(Live<'a>, Temperature),
    /// Stored rows, at their own temperature.
    Stored(SparseTarget),
}

/// Softmax temperature of both sides.
#[derive(Debug, Clone, Copy)]
pub enum Temperature {
    /// The same in every step.
    Fixed(f32),
    /// f32 `[1]`, which the host sets between replays. Costs a copy of each side's logits.
    Scalar(Tensor),
}

/// Whether a divergence takes the logarithm of the teacher's probability of tokens that only the student expects.
pub(super) fn needs_support(divergence: Divergence) -> bool {
    matches!(divergence, Divergence::ReverseKl | Divergence::Jeffreys | Divergence::AdaptiveKl)
}

impl Divergent<'_> {
    pub(super) fn check(&self, batch: usize) -> Result<()> {
        check_rows(batch, &[self.weights])?;
        let scalar = |t: Option<Tensor>, count: usize| t.is_none_or(|t| t.shape.numel() == count);
        if !scalar(self.parameters, 2) || (self.divergence.parameters() > 0 && self.parameters.is_none()) {
            return Err(Error::internal(format!("parameters {:?} for {:?}", self.parameters, self.divergence)));
        }
        if !scalar(self.blend, 1) {
            return Err(Error::internal(format!("a blend {:?}", self.blend)));
        }
        match self.target {
            Target::Live(teacher, temperature) => {
                match temperature {
                    Temperature::Fixed(t) => check_temperature(t)?,
                    Temperature::Scalar(t) => check_rows(1, &[t])?,
                }
                check_rows(teacher.head.check(teacher.hidden)?, &[self.weights])
            }
            Target::Stored(target) => {
                check_temperature(target.temperature)?;
                check_stored(batch, &target)?;
                let infinite = needs_support(self.divergence) && self.blend.is_none();
                if self.divergence == Divergence::LogitMse || (infinite && matches!(target.missing, Missing::Zero)) {
                    return Error::at("losses")
                        .expected("a teacher that leaves no token without probability")
                        .found(format!("{:?} from stored rows that leave some out", self.divergence))
                        .help("it would be infinite: take another handling of missing probability or a live teacher")
                        .err();
                }
                Ok(())
            }
        }
    }

    /// What the loss is recorded with, once for all chunks: with a scheduled temperature T the divergence is computed
    /// of z / T, so that its gradient lacks a factor T^2 / T and its value T^2.
    pub(super) fn prepared(self, g: &mut Graph) -> Self {
        match self.target {
            Target::Live(_, Temperature::Scalar(t)) => {
                Divergent { weights: ops::scale_by(g, self.weights, t, Power::One), ..self }
            }
            _ => self,
        }
    }

    /// The row values once all chunks are in.
    pub(super) fn finished(&self, g: &mut Graph, loss_rows: Tensor) -> Tensor {
        match self.target {
            Target::Live(_, Temperature::Scalar(t)) => ops::scale_by(g, loss_rows, t, Power::Square),
            _ => loss_rows,
        }
    }

    /// Records one chunk.
    pub(super) fn record(
        &self,
        g: &mut Graph,
        chunk: Chunk,
        normalisers: &mut Normalisers,
        rows: &Range<usize>,
        into: LossInto,
    ) -> LossInto {
        match self.target {
            Target::Live(teacher, temperature) => {
                let chunk = Chunk { vocab: chunk.vocab.min(teacher.head.vocab), ..chunk };
                let v = teacher.head.logits(g, teacher.hidden, rows);
                match temperature {
                    Temperature::Fixed(t) => {
                        let lse = normalisers.get(g, chunk.vocab, t);
                        self.whole(g, chunk, lse, v, t, into)
                    }
                    Temperature::Scalar(t) => {
                        let z = ops::scale_by(g, chunk.z, t, Power::Inverse);
                        let v = ops::scale_by(g, v, t, Power::Inverse);
                        let lse = ops::log_sum_exp(g, z, chunk.vocab, 1.0);
                        self.whole(g, Chunk { z, ..chunk }, lse, v, 1.0, into)
                    }
                }
            }
            Target::Stored(target) => self.stored(g, chunk, normalisers, target, into),
        }
    }

    fn stored(
        &self,
        g: &mut Graph,
        chunk: Chunk,
        normalisers: &mut Normalisers,
        target: SparseTarget,
        into: LossInto,
    ) -> LossInto {
        let t = target.temperature;
        let plain = self.divergence == Divergence::Kl && self.blend.is_none();
        match target.missing {
            Missing::Ghost { .. } | Missing::Zero if plain => {
                let lse = normalisers.get(g, chunk.vocab, t);
                ops::sparse_kl(g, chunk, lse, target, self.weights, into)
            }
            Missing::Zero | Missing::Uniform { .. } => {
                let lse = normalisers.get(g, chunk.vocab, t);
                let v = ops::teacher_row(g, chunk, target);
                self.whole(g, chunk, lse, v, t, into)
            }
            Missing::Ghost { .. } | Missing::BothRenormalised => {
                let Buckets { student, teacher } = ops::buckets(g, chunk, target);
                let buckets = Chunk { z: student, vocab: student.shape.cols(), ..chunk };
                let lse = ops::log_sum_exp(g, student, buckets.vocab, t);
                let d_student = into.dz.map(|_| ops::zeros(g, student.shape));
                let of_buckets = LossInto { loss_rows: into.loss_rows, dz: d_student };
                let found = self.whole(g, buckets, lse, teacher, t, of_buckets);
                let grads = into.dz.zip(found.dz);
                let dz = grads.map(|(dz, own)| ops::add_bucket_grad(g, chunk, target, student, own, dz));
                LossInto { loss_rows: found.loss_rows, dz }
            }
        }
    }

    /// Against the teacher's logits `v` `[R, V]` of every column of the chunk.
    fn whole(&self, g: &mut Graph, chunk: Chunk, lse: Tensor, v: Tensor, t: f32, into: LossInto) -> LossInto {
        let z = self.blend.map_or(v, |share| ops::blend(g, chunk, v, share));
        let target = DenseTarget { z, lse: ops::log_sum_exp(g, z, chunk.vocab, t), temperature: t };
        match self.divergence {
            Divergence::Kl => ops::dense_kl(g, chunk, lse, target, self.weights, into),
            other => ops::divergence(g, other, self.parameters, chunk, lse, target, self.weights, into),
        }
    }
}

/// Refuses stored rows that are not as many as the batch's.
pub(super) fn check_stored(batch: usize, target: &SparseTarget) -> Result<()> {
    if let Missing::Ghost { tail } | Missing::Uniform { tail } = target.missing {
        check_rows(batch, &[tail])?;
    }
    check_rows(batch, &[target.ids, target.log_probs])
}
