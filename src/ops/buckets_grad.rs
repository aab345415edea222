//! The gradient of [`super::buckets()`] by the logits.

use super::buckets::params;
use super::cross_entropy::each_row;
use super::sparse_kl::{SparseTarget, gaps, stored_of};
use super::{Chunk, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{CpuIo, DType, Graph, Node, Op, Tensor, Twin};

pub(crate) const SHADER: Shader = shader!("buckets_grad");
/// Logits not above this are of buckets that hold nothing.
const EMPTY: f64 = -1e29;

/// (z, ids, log-probabilities, student's buckets, their gradient, dz) -> dz.
#[derive(Debug, Clone, Copy)]
struct FromBuckets {
    first_row: usize,
    vocab: usize,
    temperature: f32,
}

/// Adds to `dz`, the shape of the chunk's logits, what `d_student`, the gradient by [`Buckets::student`], means for
/// them: a stored token's own, and for the others their share exp(z / T) in the rest. Returns dz's new handle.
pub fn add_bucket_grad(
    g: &mut Graph,
    chunk: Chunk,
    target: SparseTarget,
    student: Tensor,
    d_student: Tensor,
    dz: Tensor,
) -> Tensor {
    assert!(student.shape == d_student.shape && dz.shape == chunk.z.shape, "add_bucket_grad");
    let op = FromBuckets { first_row: chunk.first_row, vocab: chunk.vocab, temperature: target.temperature };
    let inputs = [chunk.z, target.ids, target.log_probs, student, d_student, dz];
    g.record(op, &inputs, [(dz.shape, DType::F32)])[0]
}

impl Op for FromBuckets {
    fn name(&self) -> &'static str {
        "buckets_grad"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, 5)]
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: "main",
            constants: vec![],
            binds: vec![Bind::Out(0), Bind::In(3), Bind::In(4), Bind::In(0), Bind::In(1), Bind::In(2)],
            params: params(node, self.vocab, self.first_row, self.temperature),
            groups: grid(node.inputs[0].shape.rows(), caps),
        }])
    }
}

impl Twin for FromBuckets {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (z, ids, log_probs, student, d_student) = (io.f(0), io.u(1), io.f(2), io.f(3), io.f(4));
        let (stride, k) = (io.in_shape(0).cols(), io.in_shape(1).cols());
        let (rows, scale) = (io.in_shape(0).rows(), F::ONE / F::of(f64::from(self.temperature)));
        let mut untouched = vec![F::ZERO; rows];
        each_row((rows, stride, 0), &mut untouched, Some(io.out(0)), |r, _, _, dz| {
            let (n, z) = (self.first_row + r, &z[r * stride..][..self.vocab]);
            let (ids, log_probs) = (&ids[n * k..][..k], &log_probs[n * k..][..k]);
            let stored = stored_of(ids, log_probs, self.vocab);
            let (student, d_student) = (&student[r * (k + 1)..][..k + 1], &d_student[r * (k + 1)..][..k + 1]);
            if student[k] > F::of(EMPTY) && !(stored.is_empty() && d_student[k] == F::ZERO) {
                for gap in gaps(stored.iter().map(|s| s.0), self.vocab) {
                    F::add_exp(&mut dz[gap.clone()], &z[gap], d_student[k], scale, scale * student[k]);
                }
            }
            for (i, &id) in ids.iter().enumerate() {
                if student[i] > F::of(EMPTY) {
                    dz[id as usize] += d_student[i];
                }
            }
        });
    }
}
