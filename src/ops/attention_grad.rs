//! The gradient of `attention` in three passes, none of which adds to another's sums: per query row
//! delta = sum of dO * O, then dQ tile of queries by tile of queries, then dK and dV tile of keys by tile of keys.
//! The weights P are computed again from the log-sum-exp, twice (Dao, FlashAttention-2, 2023).

use super::attention::{Attention, Dims, TILE, clip, cost, packed, reach, rows_of_a_task, transposed};
use super::shader;
use crate::Result;
use crate::device::gemm::gemm;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("attention_grad");
/// Keys a CPU task of the dQ pass multiplies at a time, and queries one of the dK/dV pass.
const STEP: usize = 128;

/// Inputs q, k, v, query ranges, key ranges, o, lse, dO; outputs dQ, dK, dV and, for the later passes,
/// the pair (lse, delta) of each query \[N, H, 2].
#[derive(Debug)]
struct AttentionGrad(Attention);

/// Records the gradients with respect to q, k and v. `inputs` are q, k, v, query ranges and key ranges, `outputs`
/// the output and the log-sum-exp of the forward pass, `dy` the output's gradient.
pub(super) fn record(g: &mut Graph, op: Attention, inputs: [Tensor; 5], outputs: &[Tensor], dy: Tensor) -> [Tensor; 3] {
    let [q, k, v, ..] = inputs;
    let stats = [q.shape[0], q.shape[1], 2].into();
    let inputs: Vec<Tensor> = inputs.iter().chain(outputs).copied().chain([dy]).collect();
    let shapes = [(q.shape, DType::F32), (k.shape, DType::F32), (v.shape, DType::F32), (stats, DType::F32)];
    let [dq, dk, dv, _] = g.record(AttentionGrad(op), &inputs, shapes);
    [dq, dk, dv]
}

impl Op for AttentionGrad {
    fn name(&self) -> &'static str {
        "attention_grad"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let dims = Dims::of(node.inputs[0], node.inputs[1]);
        let dispatch = |entry, groups: usize, binds: Vec<Bind>| Dispatch {
            shader: SHADER,
            entry,
            constants: dims.constants(),
            binds,
            params: dims.params(self.0.scale, self.0.softcap),
            groups: grid(groups, caps),
        };
        let [q, k, v, query, key, o, lse, dy] = std::array::from_fn(Bind::In);
        let [dq, dk, dv, stats] = std::array::from_fn(Bind::Out);
        let tiles = |rows: usize, heads: usize| rows.div_ceil(TILE) * heads;
        Ok(vec![
            dispatch("delta", (dims.n * dims.h).div_ceil(64), vec![dy, o, lse, stats]),
            dispatch("queries", tiles(dims.n, dims.h), vec![dy, q, k, v, query, stats, dq]),
            dispatch("keys", tiles(dims.m, dims.hkv), vec![dy, q, k, v, key, stats, dk, dv]),
        ])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        cost(node, 7)
    }
}

/// What a CPU task reads.
struct Inputs<'a, F> {
    op: Attention,
    dims: Dims,
    q: &'a [F],
    k: &'a [F],
    v: &'a [F],
    /// Of each query row.
    ranges: &'a [[u32; 2]],
    /// Of each key row.
    seen_by: &'a [[u32; 2]],
    dy: &'a [F],
    /// (lse, delta) of each query.
    stats: &'a [[F; 2]],
}

impl Twin for AttentionGrad {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let dims = Dims::of(io.node.inputs[0], io.node.inputs[1]);
        let Dims { h, hkv, d, .. } = dims;
        let [dq, dk, dv, stats] = std::array::from_fn(|i| io.out(i));
        let (o, lse, dy) = (io.f(5), io.f(6), io.f(7));
        let stats = stats.as_chunks_mut::<2>().0;
        let rows = stats.par_iter_mut().zip(lse).zip(o.par_chunks(d).zip(dy.par_chunks(d))).with_min_len(64);
        rows.for_each(|((stats, &lse), (o, dy))| *stats = [lse, F::dot(o, dy)]);

        let (ranges, seen_by) = (io.u(3).as_chunks::<2>().0, io.u(4).as_chunks::<2>().0);
        let inputs = Inputs { op: self.0, dims, q: io.f(0), k: io.f(1), v: io.f(2), ranges, seen_by, dy, stats };
        let rows = rows_of_a_task(dims.n);
        let tasks = dq.par_chunks_mut(rows * h * d).with_max_len(1).enumerate();
        tasks.for_each(|(task, dq)| inputs.queries(task * rows, dq));
        let rows = rows_of_a_task(dims.m);
        let tasks = dk.par_chunks_mut(rows * hkv * d).zip(dv.par_chunks_mut(rows * hkv * d)).with_max_len(1);
        tasks.enumerate().for_each(|(task, (dk, dv))| inputs.keys(task * rows, dk, dv));
    }
}

impl<F: Real> Inputs<'_, F> {
    /// dQ of the query rows from `first` on.
    fn queries(&self, first: usize, dq: &mut [F]) {
        let Dims { m, h, d, .. } = self.dims;
        let rows = dq.len() / (h * d);
        let keys = reach(&self.ranges[first..first + rows], m);
        if keys.is_empty() {
            return dq.fill(F::ZERO);
        }
        let mut tile = Tile::new(rows * STEP.min(keys.len()));
        for head in 0..h {
            for start in keys.clone().step_by(STEP) {
                let n = STEP.min(keys.end - start);
                self.weights(&mut tile, (first, rows), head, (start, n));
                let k_at = self.dims.key(start, head / self.dims.group());
                let add = start > keys.start;
                gemm((rows, n, d), dq, self.dims.query(0, head), add, &tile.ds, packed(n), self.k, k_at, false);
            }
        }
    }

    /// dK and dV of the key rows from `first` on, summed over the query heads that read them.
    fn keys(&self, first: usize, dk: &mut [F], dv: &mut [F]) {
        let Dims { n, h, hkv, d, .. } = self.dims;
        let keys = dk.len() / (hkv * d);
        let queries = reach(&self.seen_by[first..first + keys], n);
        if queries.is_empty() {
            dk.fill(F::ZERO);
            return dv.fill(F::ZERO);
        }
        let mut tile = Tile::new(keys * STEP.min(queries.len()));
        for head in 0..h {
            let kv = head / self.dims.group();
            let at = self.dims.key(0, kv);
            for start in queries.clone().step_by(STEP) {
                let rows = STEP.min(queries.end - start);
                self.weights(&mut tile, (start, rows), head, (first, keys));
                let add = start > queries.start || head % self.dims.group() > 0;
                let (across, from) = (transposed(packed(keys)), self.dims.query(start, head));
                gemm((keys, rows, d), dv, at, add, &tile.p, across, self.dy, from, false);
                gemm((keys, rows, d), dk, at, add, &tile.ds, across, self.q, from, false);
            }
        }
    }

    /// P and dS between `rows` queries from `first` on and `n` keys from `start` on, for one query head.
    fn weights(&self, tile: &mut Tile<F>, (first, rows): (usize, usize), head: usize, (start, n): (usize, usize)) {
        let Dims { h, d, .. } = self.dims;
        let (q_at, k_at) = (self.dims.query(first, head), transposed(self.dims.key(start, head / self.dims.group())));
        gemm((rows, d, n), &mut tile.p, packed(n), false, self.q, q_at, self.k, k_at, false);
        gemm((rows, d, n), &mut tile.ds, packed(n), false, self.dy, q_at, self.v, k_at, false);
        let (scale, cap) = (F::of(self.op.scale as f64), F::of(self.op.softcap as f64));
        let lines = tile.p.chunks_exact_mut(n).zip(tile.ds.chunks_exact_mut(n)).take(rows);
        for (row, (p, ds)) in lines.enumerate() {
            let seen = clip(self.ranges[first + row], start, n);
            for line in [&mut *p, &mut *ds] {
                line[..seen.start].fill(F::ZERO);
                line[seen.end..].fill(F::ZERO);
            }
            let (p, ds) = (&mut p[seen.clone()], &mut ds[seen]);
            let [lse, delta] = self.stats[(first + row) * h + head];
            if self.op.softcap == 0.0 {
                F::exp_in_place(p, scale, lse);
                F::softmax_grad(ds, p, delta, scale);
                continue;
            }
            // d (cap * tanh(x / cap)) / dx = 1 - tanh(x / cap)^2
            for (s, ds) in p.iter_mut().zip(&mut *ds) {
                let t = (scale * *s / cap).tanh();
                (*s, *ds) = (cap * t, (*ds - delta) * (F::ONE - t * t));
            }
            F::exp_in_place(p, F::ONE, lse);
            F::softmax_grad(ds, p, F::ZERO, scale);
        }
    }
}

/// A tile of weights and of their scores' gradients, row-major.
struct Tile<F> {
    p: Vec<F>,
    ds: Vec<F>,
}

impl<F: Real> Tile<F> {
    fn new(len: usize) -> Tile<F> {
        Tile { p: vec![F::ZERO; len], ds: vec![F::ZERO; len] }
    }
}
