//! Softmax attention over ranges of keys, with grouped key/value heads, tile by tile: no tensor of queries x keys
//! exists (Dao, FlashAttention-2, 2023). The gradient is `attention_grad`.

use super::{add_grad, attention_grad, shader};
use crate::device::gemm::{Layout, gemm};
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;
use crate::{Error, Result};
use std::ops::Range;

pub(crate) const SHADER: Shader = shader!("attention");
/// Queries or keys of a GPU tile, as in the shaders.
pub(super) const TILE: usize = 32;
/// The widest head that the shaders' accumulators hold.
const MAX_HEAD: usize = 256;
/// Up to so many query rows, the kernel that splits the keys of a row among threads is the faster one.
const FEW: usize = 16;
/// Keys that a CPU task multiplies at a time: its scores stay in the second-level cache.
const KEYS: usize = 256;

/// Which keys a query row sees, and which query rows see a key. The batch packer makes both; documents, the
/// sequences of a batch and sliding windows are all expressed by them. Both columns never decrease from one row
/// to the next, and the two tensors state the same relation.
#[derive(Debug, Clone, Copy)]
pub struct Ranges {
    /// u32 \[N, 2]: first key row, one past the last. A row with nothing to see has both equal and gets output 0.
    pub query: Tensor,
    /// u32 \[M, 2]: first query row, one past the last. Needed for gradients only.
    pub key: Option<Tensor>,
}

/// softmax over the visible keys of `scale` * q . k, applied to v; `softcap` c > 0 makes the scores
/// c * tanh(score / c) first (Gemma 2), 0 leaves them.
///
/// q is \[N, H, D], k and v are \[M, HKV, D]; query head h reads key/value head h / (H / HKV). Returns \[N, H, D].
/// M is N in training and the cache's length in decoding. D is at most 256.
pub fn attention(g: &mut Graph, q: Tensor, k: Tensor, v: Tensor, ranges: Ranges, scale: f32, softcap: f32) -> Tensor {
    assert!(q.shape.len() == 3 && k.shape.len() == 3 && k.shape == v.shape, "attention: {q:?}, {k:?}, {v:?}");
    let dims = Dims::of(q, k);
    assert!(k.shape[2] == dims.d && dims.h.is_multiple_of(dims.hkv) && dims.d <= MAX_HEAD, "attention: {q:?}, {k:?}");
    assert_eq!((&ranges.query.shape[..], ranges.query.dtype), (&[dims.n, 2][..], DType::U32), "query ranges");
    assert!(scale > 0.0 && softcap >= 0.0, "attention: scale {scale}, softcap {softcap}");
    let mut inputs = vec![q, k, v, ranges.query];
    if let Some(key) = ranges.key {
        assert_eq!((&key.shape[..], key.dtype), (&[dims.m, 2][..], DType::U32), "key ranges");
        inputs.push(key);
    }
    let lse = [dims.n, dims.h].into();
    g.record(Attention { scale, softcap }, &inputs, [(q.shape, DType::F32), (lse, DType::F32)])[0]
}

/// The op. Its second output is the log-sum-exp of each query's scores, \[N, H], which the gradient needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention {
    pub scale: f32,
    pub softcap: f32,
}

/// The sizes of one attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dims {
    /// Query rows.
    pub n: usize,
    /// Key rows.
    pub m: usize,
    /// Query heads.
    pub h: usize,
    /// Key/value heads.
    pub hkv: usize,
    /// Channels of a head.
    pub d: usize,
}

impl Dims {
    pub fn of(q: Tensor, k: Tensor) -> Dims {
        Dims { n: q.shape[0], m: k.shape[0], h: q.shape[1], hkv: k.shape[1], d: q.shape[2] }
    }

    /// Query heads that share a key/value head.
    pub fn group(&self) -> usize {
        self.h / self.hkv
    }

    /// Head `head` of the query rows from `row` on: the layout of q, o and their gradients.
    pub fn query(&self, row: usize, head: usize) -> Layout {
        Layout { offset: (row * self.h + head) * self.d, row: self.h * self.d, col: 1 }
    }

    /// Head `kv` of the key rows from `row` on: the layout of k, v and their gradients.
    pub fn key(&self, row: usize, kv: usize) -> Layout {
        Layout { offset: (row * self.hkv + kv) * self.d, row: self.hkv * self.d, col: 1 }
    }

    /// The uniform block that all kernels share.
    pub fn params(&self, scale: f32, softcap: f32) -> Vec<u32> {
        vec![self.n as u32, self.m as u32, self.h as u32, self.hkv as u32, scale.to_bits(), softcap.to_bits()]
    }

    /// The constants that all kernels share: the head's width, and threads so that each holds 8 x 4 accumulators.
    pub fn constants(&self) -> Vec<(&'static str, String)> {
        let threads = self.d.next_power_of_two().max(64);
        vec![("D", format!("{}u", self.d)), ("THREADS", format!("{threads}u"))]
    }
}

/// Rows that a CPU task handles: enough to multiply well, few enough to give every thread some.
pub(super) fn rows_of_a_task(rows: usize) -> usize {
    (rows / 16).clamp(16, 64)
}

/// The transpose of a matrix.
pub(super) fn transposed(Layout { offset, row, col }: Layout) -> Layout {
    Layout { offset, row: col, col: row }
}

/// A row-major matrix of `n` columns.
pub(super) fn packed(n: usize) -> Layout {
    Layout { offset: 0, row: n, col: 1 }
}

/// From the first to the last row that any of these ranges reaches.
pub(super) fn reach(ranges: &[[u32; 2]], limit: usize) -> Range<usize> {
    let start = ranges.first().map_or(0, |r| r[0] as usize);
    start..ranges.last().map_or(0, |r| r[1] as usize).min(limit)
}

/// The part of `range` within the `n` columns from `start` on, counted from there.
pub(super) fn clip(range: [u32; 2], start: usize, n: usize) -> Range<usize> {
    let end = (range[1] as usize).clamp(start, start + n) - start;
    ((range[0] as usize).clamp(start, start + n) - start).min(end)..end
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn backward(&self, g: &mut Graph, node: &Node<'_>, dy: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = dy[0] else { return Ok(()) };
        let &[q, k, v, query, key] = node.inputs else {
            return Err(Error::internal("the gradient of attention needs the key ranges"));
        };
        let gradients = attention_grad::record(g, *self, [q, k, v, query, key], node.outputs, dy);
        for (tensor, gradient) in [q, k, v].into_iter().zip(gradients) {
            add_grad(g, tensor, gradient);
        }
        Ok(())
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let dims = Dims::of(node.inputs[0], node.inputs[1]);
        let few = dims.n <= FEW;
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: if few { "few" } else { "tiles" },
            constants: dims.constants(),
            binds: vec![Bind::In(0), Bind::In(1), Bind::In(2), Bind::In(3), Bind::Out(0), Bind::Out(1)],
            params: dims.params(self.scale, self.softcap),
            groups: grid(if few { dims.n } else { dims.n.div_ceil(TILE) } * dims.h, caps),
        }])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        cost(node, 2)
    }
}

/// The cost of `products` matrix products between all queries and keys, half of them visible.
pub(super) fn cost(node: &Node<'_>, products: u64) -> Cost {
    let dims = Dims::of(node.inputs[0], node.inputs[1]);
    let elements = |tensors: &[Tensor]| tensors.iter().map(|t| t.shape.numel() as u64).sum::<u64>();
    Cost {
        flops: [dims.n, dims.m, dims.h, dims.d].iter().fold(products, |flops, &size| flops * size as u64),
        bytes: 4 * (elements(node.inputs) + elements(node.outputs)),
    }
}

/// Queries that a CPU task handles together against one key/value head: rows of one head or, when there are only
/// few rows, the heads of one row.
struct Strip<'a> {
    queries: Layout,
    ranges: &'a [[u32; 2]],
    kv: usize,
}

impl Twin for Attention {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let dims = Dims::of(io.node.inputs[0], io.node.inputs[1]);
        let (o, lse) = (io.out(0), io.out(1));
        let (inputs, ranges) = ([io.f(0), io.f(1), io.f(2)], io.u(3).as_chunks::<2>().0);
        let Dims { h, d, .. } = dims;
        if dims.n <= FEW {
            let group = dims.group();
            let tasks = o.par_chunks_mut(group * d).zip(lse.par_chunks_mut(group)).with_max_len(1);
            tasks.enumerate().for_each(|(task, (o, lse))| {
                let (row, kv) = (task / dims.hkv, task % dims.hkv);
                let queries = Layout { offset: task * group * d, row: d, col: 1 };
                let strip = Strip { queries, ranges: &vec![ranges[row]; group], kv };
                self.attend(dims, inputs, &strip, (o, packed(d)), (lse, 1));
            });
            return;
        }
        let rows = rows_of_a_task(dims.n);
        let tasks = o.par_chunks_mut(rows * h * d).zip(lse.par_chunks_mut(rows * h)).with_max_len(1);
        tasks.zip(ranges.par_chunks(rows)).enumerate().for_each(|(task, ((o, lse), ranges))| {
            for head in 0..h {
                let strip = Strip { queries: dims.query(task * rows, head), ranges, kv: head / dims.group() };
                self.attend(dims, inputs, &strip, (o, dims.query(0, head)), (&mut lse[head..], h));
            }
        });
    }
}

impl Attention {
    /// The CPU's loop over tiles of keys, with the running maximum and sum of each row (online softmax).
    fn attend<F: Real>(
        &self,
        dims: Dims,
        [q, k, v]: [&[F]; 3],
        strip: &Strip<'_>,
        (o, at): (&mut [F], Layout),
        (lse, lse_step): (&mut [F], usize),
    ) {
        let (rows, d) = (strip.ranges.len(), dims.d);
        let keys = reach(strip.ranges, dims.m);
        let mut scores = vec![F::ZERO; rows * KEYS.min(keys.len())];
        let mut top = vec![F::LOWEST; rows];
        let mut sum = vec![F::ZERO; rows];
        for start in keys.clone().step_by(KEYS) {
            let n = KEYS.min(keys.end - start);
            let (keys_here, values_here) = (transposed(dims.key(start, strip.kv)), dims.key(start, strip.kv));
            gemm((rows, d, n), &mut scores, packed(n), false, q, strip.queries, k, keys_here, false);
            for (row, scores) in scores.chunks_exact_mut(n).take(rows).enumerate() {
                let seen = clip(strip.ranges[row], start, n);
                scores[..seen.start].fill(F::ZERO);
                scores[seen.end..].fill(F::ZERO);
                let scores = &mut scores[seen];
                let scale = self.cap(scores);
                let best = scale * F::max_of(scores);
                if !scores.is_empty() && best > top[row] {
                    let kept = (top[row] - best).exp();
                    if start > keys.start {
                        o[at.offset + row * at.row..][..d].iter_mut().for_each(|o| *o *= kept);
                    }
                    sum[row] *= kept;
                    top[row] = best;
                }
                sum[row] += F::exp_in_place(scores, scale, top[row]);
            }
            gemm((rows, n, d), o, at, start > keys.start, &scores, packed(n), v, values_here, false);
        }
        for row in 0..rows {
            let o = &mut o[at.offset + row * at.row..][..d];
            if clip(strip.ranges[row], 0, dims.m).is_empty() {
                o.fill(F::ZERO);
                lse[row * lse_step] = F::ZERO;
            } else {
                o.iter_mut().for_each(|o| *o *= F::ONE / sum[row]);
                lse[row * lse_step] = top[row] + sum[row].ln();
            }
        }
    }

    /// Caps scores if that is wanted. Returns what they must still be multiplied by.
    fn cap<F: Real>(&self, scores: &mut [F]) -> F {
        let (scale, cap) = (F::of(self.scale as f64), F::of(self.softcap as f64));
        if self.softcap == 0.0 {
            return scale;
        }
        scores.iter_mut().for_each(|s| *s = cap * (scale * *s / cap).tanh());
        F::ONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Values, evaluate};
    use std::collections::HashMap;

    /// Softmax attention as the formula says, one query and head at a time.
    fn plain([q, k, v]: [&[f64]; 3], dims: Dims, ranges: &[[u32; 2]], scale: f64, softcap: f64) -> Vec<f64> {
        let Dims { n, h, hkv, d, .. } = dims;
        let mut out = vec![0.0; n * h * d];
        for (at, o) in out.chunks_mut(d).enumerate() {
            let (row, kv) = (at / h, at % h / (h / hkv));
            let keys: Vec<usize> = (ranges[row][0] as usize..ranges[row][1] as usize).collect();
            let score = |&key: &usize| {
                let dot: f64 = (0..d).map(|c| q[at * d + c] * k[(key * hkv + kv) * d + c]).sum();
                if softcap > 0.0 { softcap * (scale * dot / softcap).tanh() } else { scale * dot }
            };
            let weights: Vec<f64> = keys.iter().map(|key| score(key).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (key, weight) in keys.iter().zip(weights) {
                (0..d).for_each(|c| o[c] += weight / sum * v[(key * hkv + kv) * d + c]);
            }
        }
        out
    }

    #[test]
    fn the_twin_computes_the_formula() {
        // Few rows and many; two documents with a row between them that sees nothing; more than one tile of keys.
        for (n, softcap) in [(7, 0.0), (7, 1.5), (600, 0.0), (600, 1.5)] {
            let dims = Dims { n, m: n, h: 6, hkv: 2, d: 5 };
            let middle = n as u32 / 3;
            let range = |i: u32| match i {
                _ if i < middle => [0, i + 1],
                _ if i == middle => [i, i],
                _ => [middle + 1, i + 1],
            };
            let ranges: Vec<[u32; 2]> = (0..n as u32).map(range).collect();
            let wave = |len: usize, step: f64| (0..len).map(|i| 2.0 * (i as f64 * step).sin()).collect::<Vec<f64>>();
            let (q, k, v) = (wave(n * 30, 0.37), wave(n * 10, 0.71), wave(n * 10, 1.93));
            let mut g = Graph::new();
            let tensors = [("q", [n, 6, 5]), ("k", [n, 2, 5]), ("v", [n, 2, 5])];
            let [tq, tk, tv] = tensors.map(|(name, shape)| g.external(name, shape, DType::F32));
            let query = g.external("ranges", [n, 2], DType::U32);
            let o = attention(&mut g, tq, tk, tv, Ranges { query, key: None }, 0.5, softcap);
            let expected = plain([&q, &k, &v], dims, &ranges, 0.5, softcap as f64);
            let values = [("q", q), ("k", k), ("v", v)].map(|(name, values)| (name.to_owned(), Values::F(values)));
            let mut values = HashMap::from(values);
            values.insert("ranges".to_owned(), Values::U(ranges.into_flattened()));
            let found = evaluate(&g, &mut values, &[o]).unwrap().swap_remove(0);
            let worst = expected.iter().zip(found.floats()).map(|(e, f)| (e - f).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-12 && found.floats().len() == expected.len(), "{n} rows, cap {softcap}: {worst}");
        }
    }
}
