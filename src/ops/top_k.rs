//! The k most probable tokens of each row.

use super::shader;
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;
use std::cmp::Ordering;

pub(crate) const SHADER: Shader = shader!("top_k");
/// Largest k: the shader sorts the best in one workgroup.
pub const MAX_K: usize = 256;
/// Columns whose maximum is compared with the threshold at once.
const BLOCK: usize = 256;

#[derive(Debug, Clone, Copy)]
struct TopK {
    vocab: usize,
    k: usize,
}

/// Ids (u32 `[R, k]`) and logits (`[R, k]`) of the `k` largest of the first `vocab` columns of each row of `z`
/// `[R, V_padded]`, best first, equal ones by lower id. `k` is 1 to [`MAX_K`], V_padded below 2^24. Slots that the
/// vocabulary does not fill hold id `u32::MAX` and -3.4e38.
pub fn top_k(g: &mut Graph, z: Tensor, vocab: usize, k: usize) -> (Tensor, Tensor) {
    assert!((1..=z.shape.cols()).contains(&vocab) && z.shape.cols() < 1 << 24, "top_k: {z:?}");
    assert!((1..=MAX_K).contains(&k), "top_k: k = {k}");
    let shape = [z.shape.rows(), k].into();
    let [ids, values] = g.record(TopK { vocab, k }, &[z], [(shape, DType::U32), (shape, DType::F32)]);
    (ids, values)
}

impl Op for TopK {
    fn name(&self) -> &'static str {
        "top_k"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let z = node.inputs[0].shape;
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: "main",
            constants: vec![],
            binds: vec![Bind::Out(0), Bind::Out(1), Bind::In(0)],
            params: vec![z.rows() as u32, z.cols() as u32, self.vocab as u32, self.k as u32],
            groups: grid(z.rows(), caps),
        }])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        // Five passes over the logits; eight when logits tie at the border.
        let logits = node.inputs[0].shape.numel() as u64;
        Cost { flops: 10 * logits, bytes: 20 * logits }
    }
}

impl Twin for TopK {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (z, stride) = (io.f(0), io.in_shape(0).cols());
        let (ids, values) = (io.out_u(0), io.out(1));
        let slots = ids.par_chunks_mut(self.k).zip(values.par_chunks_mut(self.k));
        slots.zip(z.par_chunks(stride)).for_each_init(Vec::new, |best, ((ids, values), row)| {
            best_of(&row[..self.vocab], self.k, best);
            ids.fill(u32::MAX);
            values.fill(F::LOWEST);
            for ((id, value), &(z, column)) in ids.iter_mut().zip(values).zip(best.iter()) {
                (*id, *value) = (column, z);
            }
        });
    }
}

/// Larger logit first, then lower column. A NaN never gets here.
fn by_rank<F: Real>(a: &(F, u32), b: &(F, u32)) -> Ordering {
    b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1))
}

/// Fills `best` with the `k` best (logit, column), best first. Candidates gather in `best` and are cut back to `k`
/// whenever they have doubled; the worst kept is the threshold below which whole blocks are skipped.
fn best_of<F: Real>(row: &[F], k: usize, best: &mut Vec<(F, u32)>) {
    best.clear();
    let mut threshold = None;
    for (number, block) in row.chunks(BLOCK).enumerate() {
        // Columns come in rising order, so one that equals the threshold ranks after it.
        if threshold.is_some_and(|least| F::max_of(block) <= least) {
            continue;
        }
        for (column, &z) in (number * BLOCK..).zip(block) {
            if threshold.is_none_or(|least| z > least) {
                best.push((F::LOWEST.larger(z), column as u32));
            }
        }
        if best.len() >= k.max(BLOCK / 2) * 2 || (threshold.is_none() && best.len() >= k) {
            best.select_nth_unstable_by(k - 1, by_rank);
            best.truncate(k);
            threshold = Some(best[k - 1].0);
        }
    }
    best.sort_unstable_by(by_rank);
    best.truncate(k);
}
