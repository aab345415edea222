//! The divergence of the student's self-relations of queries, keys or values from the teacher's (MiniLMv2, Wang et al.
//! 2021, arXiv 2012.15828). No tensor of rows x rows exists.

use super::{add_grad, shader};
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::ops::Ranges;
use crate::platform::parallel::*;
use crate::{Error, Result};

pub(crate) const SHADER: Shader = shader!("relation_kl");
/// Lanes of a workgroup of the shader.
const LANES: usize = 64;

/// (a, b, query ranges, maybe key ranges) -> loss rows, log-sum-exps, each head's divergence.
#[derive(Debug, Clone, Copy)]
struct RelationKl {
    heads: usize,
}

/// (a, b, query ranges, key ranges, log-sum-exps, dy) -> da.
#[derive(Debug, Clone, Copy)]
struct RelationKlGrad(RelationKl);

/// For each row, `[N]`, the mean over `heads` relation heads of KL(softmax(b b'/sqrt(d_b)) || softmax(a a'/sqrt(d_a)))
/// over the rows that the row's range names. a `[N, ..]` are the student's vectors and b `[N, ..]` the teacher's: all
/// channels of a row, cut anew into `heads` equal parts of d_a and d_b channels, so that head counts and widths may
/// differ. Differentiable in a, which needs `ranges.key`; b is a constant.
pub fn relation_kl(g: &mut Graph, a: Tensor, b: Tensor, ranges: Ranges, heads: usize) -> Tensor {
    let (n, channels) = (a.shape[0], [a, b].map(|t| t.shape[1..].iter().product::<usize>()));
    let fits = b.shape[0] == n && heads > 0 && channels.iter().all(|c| *c > 0 && c.is_multiple_of(heads));
    assert!(fits, "relation_kl: {a:?} and {b:?} in {heads} heads");
    assert_eq!((&ranges.query.shape[..], ranges.query.dtype), (&[n, 2][..], DType::U32), "query ranges");
    let inputs: Vec<Tensor> = [a, b, ranges.query].into_iter().chain(ranges.key).collect();
    let shapes = [[n].into(), [n, heads, 2].into(), [n, heads].into()].map(|shape| (shape, DType::F32));
    g.record(RelationKl { heads }, &inputs, shapes)[0]
}

impl RelationKl {
    /// Channels of a head on both sides.
    fn dims(&self, node: &Node<'_>) -> [usize; 2] {
        [0, 1].map(|i| node.inputs[i].shape.numel() / node.inputs[i].shape[0].max(1) / self.heads)
    }

    fn dispatch(&self, entry: &'static str, node: &Node<'_>, binds: Vec<Bind>, groups: [u32; 3]) -> Dispatch {
        let dims = self.dims(node);
        let [a_scale, b_scale] = dims.map(|d| (1.0 / (d as f64).sqrt()) as f32);
        let constants = [("A_DIM", dims[0]), ("B_DIM", dims[1]), ("OWN", dims[0].div_ceil(LANES))];
        Dispatch {
            shader: SHADER,
            entry,
            constants: constants.map(|(name, value)| (name, format!("{value}u"))).to_vec(),
            binds,
            params: vec![node.inputs[0].shape[0] as u32, self.heads as u32, a_scale.to_bits(), b_scale.to_bits()],
            groups,
        }
    }

    /// Half of the scores of all rows with all rows, computed `times` times.
    fn cost(&self, node: &Node<'_>, times: u64) -> Cost {
        let n = node.inputs[0].shape[0] as u64;
        let width = (self.dims(node).iter().sum::<usize>() * self.heads) as u64;
        Cost { flops: times * n * n * width, bytes: 4 * times * n * width }
    }
}

impl Op for RelationKl {
    fn name(&self) -> &'static str {
        "relation_kl"
    }

    fn backward(&self, g: &mut Graph, node: &Node<'_>, dy: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = dy[0] else { return Ok(()) };
        let &[a, b, query, key] = node.inputs else {
            return Err(Error::internal("the gradient of `relation_kl` needs the key ranges"));
        };
        if g.requires_grad(b) {
            return Err(Error::internal("`relation_kl` has no gradient for the target"));
        }
        let inputs = [a, b, query, key, node.outputs[1], dy];
        let [da] = g.record(RelationKlGrad(*self), &inputs, [(a.shape, DType::F32)]);
        add_grad(g, a, da);
        Ok(())
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let n = node.inputs[0].shape[0];
        let forward = vec![Bind::In(0), Bind::In(1), Bind::In(2), Bind::Out(2), Bind::Out(1)];
        Ok(vec![
            self.dispatch("forward", node, forward, grid(n * self.heads, caps)),
            self.dispatch("rows", node, vec![Bind::Out(2), Bind::Out(0)], grid(n.div_ceil(LANES), caps)),
        ])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        RelationKl::cost(self, node, 1)
    }
}

/// Both sides' vectors, head by head.
struct Sides<'a, F> {
    a: &'a [F],
    b: &'a [F],
    dims: [usize; 2],
    heads: usize,
    query: &'a [[u32; 2]],
}

impl<F: Real> Sides<'_, F> {
    fn of<'a>(op: &RelationKl, io: &CpuIo<'a, F>) -> Sides<'a, F> {
        let query = io.u(2).as_chunks::<2>().0;
        Sides { a: io.f(0), b: io.f(1), dims: op.dims(&io.node), heads: op.heads, query }
    }

    /// The student's vector of a row.
    fn student(&self, row: usize, head: usize) -> &[F] {
        &self.a[(row * self.heads + head) * self.dims[0]..][..self.dims[0]]
    }

    /// Scores of two rows: the student's, the teacher's.
    fn scores(&self, i: usize, j: usize, head: usize) -> [F; 2] {
        let b = |row: usize| &self.b[(row * self.heads + head) * self.dims[1]..][..self.dims[1]];
        let scale = self.dims.map(|d| F::of(f64::from((1.0 / (d as f64).sqrt()) as f32)));
        [scale[0] * F::dot(self.student(i, head), self.student(j, head)), scale[1] * F::dot(b(i), b(j))]
    }

    /// The rows that a range names.
    fn range(&self, range: [u32; 2]) -> std::ops::Range<usize> {
        range[0] as usize..(range[1] as usize).min(self.query.len())
    }
}

impl Twin for RelationKl {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (rows, lse, kl) = (io.out(0), io.out(1), io.out(2));
        let sides = Sides::of(self, io);
        let heads = self.heads;
        let outputs = rows.par_iter_mut().zip(lse.par_chunks_mut(2 * heads)).zip(kl.par_chunks_mut(heads));
        outputs.enumerate().for_each(|(row, ((loss, lse), kl))| {
            let seen = sides.range(sides.query[row]);
            for (head, (lse, kl)) in lse.chunks_exact_mut(2).zip(&mut *kl).enumerate() {
                let scores: Vec<[F; 2]> = seen.clone().map(|j| sides.scores(row, j, head)).collect();
                let total = |side: usize| {
                    let top = scores.iter().fold(F::LOWEST, |top, s| top.larger(s[side]));
                    top + scores.iter().fold(F::ZERO, |sum, s| sum + (s[side] - top).exp()).ln()
                };
                if scores.is_empty() {
                    lse.fill(F::ZERO);
                    *kl = F::ZERO;
                    continue;
                }
                lse.copy_from_slice(&[total(0), total(1)]);
                let term = |sum: F, s: &[F; 2]| sum + (s[1] - lse[1]).exp() * (s[1] - s[0]);
                *kl = scores.iter().fold(F::ZERO, term) + lse[0] - lse[1];
            }
            *loss = F::sum_of(kl) / F::of(heads as f64);
        });
    }
}

impl Op for RelationKlGrad {
    fn name(&self) -> &'static str {
        "relation_kl"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let groups = grid(node.inputs[0].shape[0] * self.0.heads, caps);
        let binds = (0..6).map(Bind::In).chain([Bind::Out(0)]).collect();
        Ok(vec![self.0.dispatch("gradient", node, binds, groups)])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        self.0.cost(node, 3)
    }
}

impl Twin for RelationKlGrad {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let da = io.out(0);
        let sides = Sides::of(&self.0, io);
        let (key, lse, dy) = (io.u(3).as_chunks::<2>().0, io.f(4), io.f(5));
        let (heads, d) = (self.0.heads, sides.dims[0]);
        let scale = F::of(f64::from((1.0 / (d as f64).sqrt()) as f32)) / F::of(heads as f64);
        // G of a query row i and a row j that it sees.
        let slope = |i: usize, j: usize, head: usize| {
            let (s, lse) = (sides.scores(i, j, head), &lse[2 * (i * heads + head)..][..2]);
            dy[i] * scale * ((s[0] - lse[0]).exp() - (s[1] - lse[1]).exp())
        };
        da.par_chunks_mut(d).enumerate().for_each(|(at, da)| {
            let (row, head) = (at / heads, at % heads);
            da.fill(F::ZERO);
            for j in sides.range(sides.query[row]) {
                F::axpy(da, slope(row, j, head), sides.student(j, head));
            }
            for i in sides.range(key[row]) {
                F::axpy(da, slope(i, row, head), sides.student(i, head));
            }
        });
    }
}
