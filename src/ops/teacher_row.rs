//! A stored, sparse teacher row written out over the whole vocabulary, for losses that read every column of it.

use super::sparse_kl::{Missing, SparseTarget, stored_of};
use super::{Chunk, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("teacher_row");
/// Stands for log 0 on the teacher's side alone: its exponential underflows, and times the least float it is still
/// nothing.
const NEVER: f64 = -1e6;
/// The least tail mass. A stored tail of exactly 0 would make a divergence that takes its logarithm infinite.
pub(crate) const LEAST_TAIL: f64 = 1e-30;

#[derive(Debug, Clone, Copy)]
struct TeacherRow {
    first_row: usize,
    vocab: usize,
    temperature: f32,
    uniform: bool,
}

/// T times the log-probabilities of the chunk's teacher rows, `[R, vocab]`: logits that a softmax at the target's
/// temperature T turns into the stored distribution. Off the stored tokens [`Missing::Zero`] has probability 0 and
/// [`Missing::Uniform`] an equal share of the tail mass. A row that stores no token gets the student's logits, from
/// which it diverges by nothing.
pub fn teacher_row(g: &mut Graph, chunk: Chunk, target: SparseTarget) -> Tensor {
    let batch = target.ids.shape.rows();
    chunk.check(batch);
    assert_eq!(target.ids.shape, target.log_probs.shape, "teacher_row");
    let mut inputs = vec![chunk.z, target.ids, target.log_probs];
    match target.missing {
        Missing::Zero => {}
        Missing::Uniform { tail } => inputs.push(tail),
        Missing::Ghost { .. } | Missing::BothRenormalised => panic!("teacher_row: {:?} is a bucket", target.missing),
    }
    let op = TeacherRow {
        first_row: chunk.first_row,
        vocab: chunk.vocab,
        temperature: target.temperature,
        uniform: inputs.len() == 4,
    };
    g.record(op, &inputs, [([chunk.z.shape.rows(), chunk.vocab].into(), DType::F32)])[0]
}

impl Op for TeacherRow {
    fn name(&self) -> &'static str {
        "teacher_row"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let (z, k) = (node.inputs[0].shape, node.inputs[1].shape.cols());
        // Nothing reads tails where there are none.
        let tail = Bind::In(if self.uniform { 3 } else { 2 });
        let mut params = Chunk::params(z.rows(), z.cols(), self.vocab, self.first_row);
        params.extend([k as u32, self.temperature.to_bits()]);
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: "main",
            constants: vec![("UNIFORM", self.uniform.to_string())],
            binds: vec![Bind::Out(0), Bind::In(0), Bind::In(1), Bind::In(2), tail],
            params,
            groups: grid(z.rows(), caps),
        }])
    }
}

impl Twin for TeacherRow {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (z, ids, log_probs) = (io.f(0), io.u(1), io.f(2));
        let tails = self.uniform.then(|| io.f(3));
        let (stride, k, t) = (io.in_shape(0).cols(), io.in_shape(1).cols(), F::of(f64::from(self.temperature)));
        io.out(0).par_chunks_mut(self.vocab).enumerate().for_each(|(r, out)| {
            let n = self.first_row + r;
            let stored = stored_of(&ids[n * k..][..k], &log_probs[n * k..][..k], self.vocab);
            if stored.is_empty() {
                return out.copy_from_slice(&z[r * stride..][..self.vocab]);
            }
            let off = self.vocab - stored.len();
            let tail = tails.filter(|_| off > 0).map_or(F::ZERO, |tails| tails[n].larger(F::of(LEAST_TAIL)));
            let log_mass = stored.iter().fold(tail, |sum, &(_, l)| sum + l.exp()).ln();
            let rest =
                if tail > F::ZERO { t * (tail.ln() - log_mass - F::of(off as f64).ln()) } else { t * F::of(NEVER) };
            out.fill(rest);
            stored.iter().for_each(|&(id, l)| out[id] = t * (l - log_mass));
        });
    }
}
