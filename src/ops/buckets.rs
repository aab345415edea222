//! A sparse teacher row and the student's row as distributions over K + 1 buckets: the stored tokens, and the rest of
//! the vocabulary as one.

use super::sparse_kl::{Missing, SparseTarget, log_sum_exp_off, stored_of};
use super::teacher_row::LEAST_TAIL;
use super::{Chunk, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("buckets");
/// Stands for log 0 on both sides: finite, and 0 times a difference of two such is 0.
const NEVER: f64 = -1e30;

/// Both sides' rows of a chunk over the K + 1 buckets, `[R, K + 1]`: T times the log of unnormalised probabilities, so
/// that a softmax at the target's temperature T makes distributions of them. The last bucket is the rest. Buckets
/// that hold nothing (unused slots; the rest if every token is stored, or if both sides are renormalised over the
/// stored tokens) have probability 0 on both sides.
#[derive(Debug, Clone, Copy)]
pub struct Buckets {
    /// The student's.
    pub student: Tensor,
    /// The teacher's.
    pub teacher: Tensor,
}

#[derive(Debug, Clone, Copy)]
struct ToBuckets {
    first_row: usize,
    vocab: usize,
    temperature: f32,
    ghost: bool,
}

/// The buckets of a chunk's rows. For [`Missing::Ghost`] the rest has the teacher's tail mass (1e-30 at least) and
/// the student's mass off the stored tokens, summed there; for [`Missing::BothRenormalised`] it holds nothing. A row
/// that stores no token gets equal distributions.
pub fn buckets(g: &mut Graph, chunk: Chunk, target: SparseTarget) -> Buckets {
    chunk.check(target.ids.shape.rows());
    assert_eq!(target.ids.shape, target.log_probs.shape, "buckets");
    let mut inputs = vec![chunk.z, target.ids, target.log_probs];
    match target.missing {
        Missing::Ghost { tail } => inputs.push(tail),
        Missing::BothRenormalised => {}
        Missing::Zero | Missing::Uniform { .. } => panic!("buckets: {:?} is over the vocabulary", target.missing),
    }
    let Chunk { first_row, vocab, .. } = chunk;
    let op = ToBuckets { first_row, vocab, temperature: target.temperature, ghost: inputs.len() == 4 };
    let shape = ([chunk.z.shape.rows(), target.ids.shape.cols() + 1].into(), DType::F32);
    let [student, teacher] = g.record(op, &inputs, [shape, shape]);
    Buckets { student, teacher }
}

/// The uniform block: rows, stride, vocabulary, first row, k, temperature, its inverse.
pub(super) fn params(node: &Node<'_>, vocab: usize, first_row: usize, temperature: f32) -> Vec<u32> {
    let z = node.inputs[0].shape;
    let mut params = Chunk::params(z.rows(), z.cols(), vocab, first_row);
    params.extend([node.inputs[1].shape.cols() as u32, temperature.to_bits(), (1.0 / temperature).to_bits()]);
    params
}

impl Op for ToBuckets {
    fn name(&self) -> &'static str {
        "buckets"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        // Nothing reads tails where there are none.
        let tail = Bind::In(if self.ghost { 3 } else { 2 });
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: "main",
            constants: vec![("GHOST", self.ghost.to_string())],
            binds: vec![Bind::Out(0), Bind::Out(1), Bind::In(0), Bind::In(1), Bind::In(2), tail],
            params: params(node, self.vocab, self.first_row, self.temperature),
            groups: grid(node.inputs[0].shape.rows(), caps),
        }])
    }
}

impl Twin for ToBuckets {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (z, ids, log_probs) = (io.f(0), io.u(1), io.f(2));
        let tails = self.ghost.then(|| io.f(3));
        let (stride, k, t) = (io.in_shape(0).cols(), io.in_shape(1).cols(), F::of(f64::from(self.temperature)));
        let (student, teacher) = (io.out(0), io.out(1));
        let rows = student.par_chunks_mut(k + 1).zip(teacher.par_chunks_mut(k + 1)).enumerate();
        rows.for_each(|(r, (student, teacher))| {
            let (n, z) = (self.first_row + r, &z[r * stride..][..self.vocab]);
            let (ids, log_probs) = (&ids[n * k..][..k], &log_probs[n * k..][..k]);
            let stored = stored_of(ids, log_probs, self.vocab);
            student.fill(F::of(NEVER));
            teacher.fill(F::of(NEVER));
            let off = self.ghost && stored.len() < self.vocab;
            let tail = tails.filter(|_| off).map_or(F::ZERO, |tails| tails[n].larger(F::of(LEAST_TAIL)));
            if stored.is_empty() && !self.ghost {
                (student[k], teacher[k]) = (F::ZERO, F::ZERO);
                return;
            }
            let log_mass = stored.iter().fold(tail, |sum, &(_, l)| sum + l.exp()).ln();
            if off {
                student[k] = t * log_sum_exp_off(z, stored.iter().map(|s| s.0), F::ONE / t);
                teacher[k] = t * (tail.ln() - log_mass);
            }
            for (i, (&id, &l)) in ids.iter().zip(log_probs).enumerate() {
                if stored.binary_search_by_key(&(id as usize), |s| s.0).is_ok_and(|at| stored[at].1 == l) {
                    (student[i], teacher[i]) = (z[id as usize], t * (l - log_mass));
                }
            }
        });
    }
}
