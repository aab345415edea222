use crate::Result;
use crate::graph::{DType, Tensor};
use crate::ops::{self, Chunk, DenseTarget, LossInto, Missing, RowsInto, Smoothing, SparseTarget};
use crate::selftest::{Case, Setup};

/// Sizes of a chunk of logits in its batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Rows of the batch.
    pub batch: usize,
    /// First row of the chunk and how many it has.
    pub first: usize,
    pub rows: usize,
    /// Real vocabulary and columns.
    pub vocab: usize,
    pub padded: usize,
}

pub(super) const fn size(batch: usize, first: usize, rows: usize, vocab: usize, padded: usize) -> Size {
    Size { batch, first, rows, vocab, padded }
}

pub(super) const SIZES: [Size; 7] = [
    size(1, 0, 1, 1, 1),
    size(3, 0, 3, 2, 3),
    size(5, 1, 3, 37, 37),
    size(9, 2, 7, 255, 260),
    size(4, 3, 1, 256, 256),
    size(300, 10, 287, 67, 71),
    size(6, 0, 5, 1031, 1040),
];

/// More rows than workgroups fit in one dimension.
const MANY: Size = size(65_545, 4, 65_541, 3, 4);

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    for at in SIZES {
        rows.extend(statistics_of(at));
        rows.extend(losses_of(at));
        for k in [1, 3, 50, 256] {
            rows.push(Case::new("top_k", format!("{k} of {at:?}"), move |s| top_k(s, at, k, 3.0)));
        }
    }
    rows.push(Case::new("top_k", "thousands of ties", |s| top_k(s, size(4, 0, 4, 2111, 2112), 70, 0.0)));
    rows.push(Case::new("losses", "two losses add to one gradient", two_losses));
    rows.push(Case::new("losses", "logits of +-1e4", |s| extremes(s, 1e4)));
    // Every op here numbers its rows in the same way. This one needs no barriers, which take a software driver long.
    rows.push(Case::new("cross_entropy", format!("{MANY:?}"), many_rows).heavy());
    rows
}

fn statistics_of(at: Size) -> impl Iterator<Item = Case> {
    let one = move |op, build: fn(&mut Setup, Size) -> Result<()>| {
        Case::new(op, format!("{at:?}"), move |s: &mut Setup| build(s, at))
    };
    [
        one("log_sum_exp", log_sum_exp),
        one("entropy", entropy),
        one("tail_mass", tail_mass),
        one("agreement", agreement),
        one("sample_rows", sample_rows),
        one("put_rows", put_rows),
    ]
    .into_iter()
}

fn losses_of(at: Size) -> impl Iterator<Item = Case> {
    // Of a single token every divergence is 0, at other temperatures up to rounding.
    let temperatures: &[f32] = if at.vocab == 1 { &[1.0] } else { &[1.0, 1.7] };
    let plain = temperatures.iter().flat_map(move |&t| {
        [
            Case::new("dense_kl", format!("T = {t}, {at:?}"), move |s: &mut Setup| dense_kl(s, at, t)),
            Case::new("sparse_kl", format!("ghost, T = {t}, {at:?}"), move |s: &mut Setup| {
                sparse_kl(s, at, 5.min(at.vocab), true, t)
            }),
            Case::new("sparse_kl", format!("zero, T = {t}, {at:?}"), move |s: &mut Setup| {
                sparse_kl(s, at, 5.min(at.vocab), false, t)
            }),
        ]
    });
    let whole = Case::new("sparse_kl", format!("ghost with every token stored, {at:?}"), move |s: &mut Setup| {
        sparse_kl(s, at, at.vocab, true, 1.0)
    });
    let cross_entropies = [(0.0, 0.0), (0.1, 0.0), (0.1, 1e-2)].map(|(label_smoothing, z_loss)| {
        let smoothing = Smoothing { label_smoothing, z_loss };
        Case::new("cross_entropy", format!("{smoothing:?}, {at:?}"), move |s: &mut Setup| {
            cross_entropy(s, at, smoothing)
        })
    });
    // Of a single token smoothing takes away what it gives, up to rounding.
    let cross_entropies = cross_entropies.into_iter().take(if at.vocab == 1 { 1 } else { 3 });
    plain.chain([whole]).chain(cross_entropies)
}

/// Logits in [-scale, scale), the surplus columns far above them.
pub(super) fn logits(s: &mut Setup, at: Size, scale: f64) -> Tensor {
    let mut values = s.randoms(at.rows * at.padded);
    values.iter_mut().for_each(|x| *x = (*x * scale) as f32 as f64);
    for row in values.chunks_mut(at.padded) {
        row[at.vocab..].fill(1000.0);
    }
    s.floats([at.rows, at.padded], values, false)
}

pub(super) fn chunk(s: &mut Setup, at: Size, scale: f64) -> Chunk {
    Chunk { z: logits(s, at, scale), first_row: at.first, vocab: at.vocab }
}

/// Random row weights, every fourth 0.
pub(super) fn weights(s: &mut Setup, at: Size) -> Tensor {
    let mut values = s.randoms(at.batch);
    values.iter_mut().skip(3).step_by(4).for_each(|w| *w = 0.0);
    s.floats([at.batch], values, false)
}

/// Row losses and a gradient to add to, both zero, as two inputs.
pub(super) fn into(s: &mut Setup, at: Size) -> LossInto {
    let loss_rows = s.floats([at.batch], vec![0.0; at.batch], false);
    let dz = s.floats([at.rows, at.padded], vec![0.0; at.rows * at.padded], false);
    LossInto { loss_rows, dz: Some(dz) }
}

/// Claims that `into.dz` is the gradient of the weighted row losses, and compares the losses computed alone.
pub(super) fn claim(
    s: &mut Setup,
    at: Size,
    z: Tensor,
    weights: Tensor,
    loss: impl Fn(&mut Setup, LossInto) -> LossInto,
) {
    let both = into(s, at);
    let both = loss(s, both);
    s.claim(both.loss_rows, weights, z, both.dz.expect("asked for"));
    let loss_rows = s.floats([at.batch], vec![0.0; at.batch], false);
    let alone = loss(s, LossInto { loss_rows, dz: None });
    s.result(alone.loss_rows);
}

pub(super) fn labels(s: &mut Setup, at: Size) -> Tensor {
    let mut values: Vec<u32> = (0..at.batch).map(|n| (n * 31 % at.vocab) as u32).collect();
    values.iter_mut().skip(2).step_by(5).for_each(|label| *label = u32::MAX);
    s.ints([at.batch], values)
}

/// `k` distinct tokens a row with random log-probabilities; every seventh slot unused, by its id or its value.
pub(super) fn stored(s: &mut Setup, at: Size, k: usize) -> (Tensor, Tensor) {
    let (mut ids, mut log_probs) = (Vec::new(), Vec::new());
    for _ in 0..at.batch {
        let mut order: Vec<(f64, u32)> = (0..at.vocab as u32).map(|id| (s.random(), id)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        for &(_, id) in &order[..k] {
            let slot = ids.len();
            let log_prob = (s.random() * 3.0 - 4.0) as f32;
            ids.push(if slot % 7 == 6 && slot % 2 == 0 { u32::MAX } else { id });
            log_probs.push(if slot % 7 == 6 && slot % 2 == 1 { -3.4e38f32 } else { log_prob } as f64);
        }
    }
    (s.ints([at.batch, k], ids), s.floats([at.batch, k], log_probs, false))
}

fn cross_entropy(s: &mut Setup, at: Size, smoothing: Smoothing) -> Result<()> {
    let (chunk, labels, weights) = (chunk(s, at, 4.0), labels(s, at), weights(s, at));
    claim(s, at, chunk.z, weights, |s, into| {
        let lse = ops::log_sum_exp(&mut s.graph, chunk.z, at.vocab, 1.0);
        ops::smoothed_cross_entropy(&mut s.graph, chunk, lse, labels, weights, smoothing, into)
    });
    Ok(())
}

/// With a normaliser that is an input, not computed.
fn many_rows(s: &mut Setup) -> Result<()> {
    let (chunk, labels, weights) = (chunk(s, MANY, 4.0), labels(s, MANY), weights(s, MANY));
    let (lse, into) = (s.fixed([MANY.rows]), into(s, MANY));
    let found = ops::cross_entropy(&mut s.graph, chunk, lse, labels, weights, into);
    s.result(found.loss_rows);
    s.result(found.dz.expect("given"));
    Ok(())
}

fn sparse_kl(s: &mut Setup, at: Size, k: usize, ghost: bool, temperature: f32) -> Result<()> {
    let (chunk, weights) = (chunk(s, at, 4.0), weights(s, at));
    let (ids, log_probs) = stored(s, at, k);
    // Tails from 0 upwards, one in three exactly 0.
    let tails = (0..at.batch).map(|n| if n % 3 == 0 { 0.0 } else { (s.random() * 0.1 + 0.1) as f32 as f64 }).collect();
    let tail = s.floats([at.batch], tails, false);
    let missing = if ghost { Missing::Ghost { tail } } else { Missing::Zero };
    claim(s, at, chunk.z, weights, |s, into| {
        let lse = ops::log_sum_exp(&mut s.graph, chunk.z, at.vocab, temperature);
        let target = SparseTarget { ids, log_probs, missing, temperature };
        ops::sparse_kl(&mut s.graph, chunk, lse, target, weights, into)
    });
    Ok(())
}

fn dense_kl(s: &mut Setup, at: Size, temperature: f32) -> Result<()> {
    let (chunk, weights) = (chunk(s, at, 4.0), weights(s, at));
    let teacher = logits(s, Size { padded: at.padded + 3, ..at }, 4.0);
    claim(s, at, chunk.z, weights, |s, into| {
        let g = &mut s.graph;
        let lse = ops::log_sum_exp(g, chunk.z, at.vocab, temperature);
        let teacher_lse = ops::log_sum_exp(g, teacher, at.vocab, temperature);
        let target = DenseTarget { z: teacher, lse: teacher_lse, temperature };
        ops::dense_kl(g, chunk, lse, target, weights, into)
    });
    Ok(())
}

fn two_losses(s: &mut Setup) -> Result<()> {
    let at = size(9, 2, 5, 300, 301);
    let (chunk, labels, weights) = (chunk(s, at, 4.0), labels(s, at), weights(s, at));
    let teacher = logits(s, at, 4.0);
    let LossInto { loss_rows, dz } = into(s, at);
    let other_rows = s.fixed([at.batch]);
    let g = &mut s.graph;
    let lse = ops::log_sum_exp(g, chunk.z, at.vocab, 1.0);
    let teacher_lse = ops::log_sum_exp(g, teacher, at.vocab, 1.0);
    let first = ops::cross_entropy(g, chunk, lse, labels, weights, LossInto { loss_rows, dz });
    let target = DenseTarget { z: teacher, lse: teacher_lse, temperature: 1.0 };
    let second = ops::dense_kl(g, chunk, lse, target, weights, LossInto { loss_rows: other_rows, dz: first.dz });
    s.result(first.loss_rows);
    s.result(second.loss_rows);
    s.result(second.dz.expect("given"));
    Ok(())
}

/// Rows that are all but one-hot, on both sides, teacher tail 0 and 1.
fn extremes(s: &mut Setup, scale: f64) -> Result<()> {
    let at = size(4, 0, 4, 290, 290);
    let (chunk, weights) = (chunk(s, at, scale), weights(s, at));
    let (ids, log_probs) = stored(s, at, 5);
    let tail = s.floats([at.batch], vec![0.0, 1.0, 0.5, 1e-30], false);
    let into = into(s, at);
    let g = &mut s.graph;
    let lse = ops::log_sum_exp(g, chunk.z, at.vocab, 2.0);
    let target = SparseTarget { ids, log_probs, missing: Missing::Ghost { tail }, temperature: 2.0 };
    let found = ops::sparse_kl(g, chunk, lse, target, weights, into);
    s.result(found.loss_rows);
    s.result(found.dz.expect("given"));
    Ok(())
}

fn log_sum_exp(s: &mut Setup, at: Size) -> Result<()> {
    for (scale, temperature) in [(4.0, 1.0), (4.0, 0.6), (1e4, 2.0)] {
        let z = logits(s, at, scale);
        let lse = ops::log_sum_exp(&mut s.graph, z, at.vocab, temperature);
        s.result(lse);
    }
    Ok(())
}

fn entropy(s: &mut Setup, at: Size) -> Result<()> {
    let z = logits(s, at, 4.0);
    let lse = ops::log_sum_exp(&mut s.graph, z, at.vocab, 1.0);
    let entropy = ops::entropy(&mut s.graph, z, lse, at.vocab);
    s.result(entropy);
    Ok(())
}

fn tail_mass(s: &mut Setup, at: Size) -> Result<()> {
    let z = logits(s, at, 9.0);
    for (k, temperature) in [(1, 1.0), (5, 1.7), (200, 1.0)] {
        let lse = ops::log_sum_exp(&mut s.graph, z, at.vocab, temperature);
        let (ids, _) = ops::top_k(&mut s.graph, z, at.vocab, k);
        let tail = ops::tail_mass(&mut s.graph, z, lse, ids, at.vocab, temperature);
        s.result(tail);
    }
    Ok(())
}

fn agreement(s: &mut Setup, at: Size) -> Result<()> {
    // Rounded, so that many rows have their best logit more than once; half of the rows are equal.
    let mut a = s.randoms(at.rows * at.padded);
    a.iter_mut().for_each(|x| *x = (*x * 8.0).round());
    a.chunks_mut(at.padded).for_each(|row| row[at.vocab..].fill(1000.0));
    let mut b = a.clone();
    for row in b.chunks_mut(at.padded).step_by(2) {
        row.iter_mut().for_each(|x| *x = (s.random() * 8.0).round());
    }
    let a = s.floats([at.rows, at.padded], a, false);
    let b = s.floats([at.rows, at.padded], b, false);
    let same = ops::agreement(&mut s.graph, a, b, at.vocab);
    s.result(same);
    Ok(())
}

/// `scale` 0 makes all logits equal but a few.
fn top_k(s: &mut Setup, at: Size, k: usize, scale: f64) -> Result<()> {
    let mut values = s.randoms(at.rows * at.padded);
    // Coarse steps make ties.
    values.iter_mut().for_each(|x| *x = ((*x * 100.0).round() / 100.0 * scale) as f32 as f64);
    for (r, row) in values.chunks_mut(at.padded).enumerate() {
        row[at.vocab..].fill(1000.0);
        row[r * 7 % at.vocab] = 2.5;
    }
    let z = s.floats([at.rows, at.padded], values, false);
    let (ids, best) = ops::top_k(&mut s.graph, z, at.vocab, k);
    s.result(ids);
    s.result(best);
    Ok(())
}

/// Few draws a row: f32 and f64 agree on each unless a random number falls within rounding of a border.
fn sample_rows(s: &mut Setup, at: Size) -> Result<()> {
    let chunk = chunk(s, at, 4.0);
    // The row number crosses 2^32 inside the chunk.
    let key = s.ints([4], vec![0x1234_5678, 9, u32::MAX - 11, 1]);
    let lse = ops::log_sum_exp(&mut s.graph, chunk.z, at.vocab, 1.5);
    let ids = ops::sample_rows(&mut s.graph, chunk, lse, if at.rows > 1000 { 1 } else { 5 }, 1.5, key);
    s.result(ids);
    Ok(())
}

fn put_rows(s: &mut Setup, at: Size) -> Result<()> {
    let k = 3;
    let (low, high) = (s.fixed([at.first, k]), s.fixed([at.batch - at.first, k]));
    let shift = s.fixed([at.batch - at.first]);
    let ids = s.ints([at.batch], (0..at.batch as u32).map(|n| n.wrapping_mul(0x9e37_79b9)).collect());
    let g = &mut s.graph;
    let mut into = RowsInto::New(at.batch);
    if at.first > 0 {
        into = RowsInto::Old(ops::put_rows(g, into, 0, low));
    }
    let floats = ops::put_rows_minus(g, into, at.first, high, shift, 0.5);
    let copied = ops::put_rows(g, RowsInto::New(at.batch), 0, ids);
    assert_eq!((floats.dtype, copied.dtype), (DType::F32, DType::U32));
    s.result(floats);
    s.result(copied);
    Ok(())
}
