use super::losses::{SIZES, Size, chunk, claim, into, logits, size, stored, weights};
use crate::Result;
use crate::graph::Tensor;
use crate::ops::{self, Buckets, Chunk, DenseTarget, Divergence, LossInto, Missing, Ranking, SparseTarget};
use crate::selftest::{Case, Setup};

/// Each with its parameters.
const KINDS: [(Divergence, [f64; 2]); 14] = [
    (Divergence::Kl, [0.0; 2]),
    (Divergence::ReverseKl, [0.0; 2]),
    (Divergence::Jeffreys, [0.0; 2]),
    (Divergence::Jsd, [0.25, 0.0]),
    (Divergence::ScaledJsd, [0.0, 0.0]),
    (Divergence::ScaledJsd, [0.0078125, 0.0]),
    (Divergence::ScaledJsd, [0.75, 0.0]),
    (Divergence::ScaledJsd, [1.0, 0.0]),
    (Divergence::SkewKl, [0.125, 0.0]),
    (Divergence::SkewReverseKl, [0.125, 0.0]),
    (Divergence::Tvd, [0.0; 2]),
    (Divergence::AdaptiveKl, [0.5, 0.0]),
    (Divergence::AlphaBeta, [0.25, 0.75]),
    (Divergence::LogitMse, [0.0; 2]),
];

/// Those that stored rows are tried with.
const STORED: [(Divergence, [f64; 2]); 4] = [
    (Divergence::ReverseKl, [0.0; 2]),
    (Divergence::Jsd, [0.5, 0.0]),
    (Divergence::SkewKl, [0.125, 0.0]),
    (Divergence::Tvd, [0.0; 2]),
];

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    for at in SIZES {
        for (kind, parameters) in KINDS {
            // Of a single token every divergence is 0, at other temperatures up to rounding.
            let t = if at.vocab == 1 || kind == Divergence::LogitMse { 1.0 } else { 1.7 };
            let what = format!("{kind:?} {parameters:?}, T = {t}, {at:?}");
            rows.push(Case::new("divergence", what, move |s| whole(s, at, kind, parameters, t)));
        }
        for k in [1, 5.min(at.vocab), at.vocab.min(300)] {
            let of = move |what: &str| format!("{what} of {k}, {at:?}");
            rows.push(Case::new("teacher_row", of("uniform"), move |s| teacher_row(s, at, k, true)));
            rows.push(Case::new("teacher_row", of("zero"), move |s| teacher_row(s, at, k, false)));
            for (ghost, name) in [(true, "ghost"), (false, "both renormalised")] {
                rows.push(Case::new("buckets", of(name), move |s| buckets(s, at, k, ghost)));
            }
        }
        let k = 5.min(at.vocab);
        if k > 1 {
            for ((kind, parameters), ghost) in STORED.into_iter().zip([true, false, true, false]) {
                let what = format!("{kind:?} of {k} buckets, ghost {ghost}, {at:?}");
                rows.push(Case::new("buckets_grad", what, move |s| bucketed(s, at, k, ghost, kind, parameters)));
            }
            for ranking in [Ranking::Hinge { margin: 0.0625 }, Ranking::Logistic] {
                let what = format!("{ranking:?}, {k} of {at:?}");
                rows.push(Case::new("ranking", what, move |s| rank(s, at, k, ranking)));
            }
        }
        rows.push(Case::new("blend", format!("{at:?}"), move |s| blend(s, at)));
    }
    let wide = size(3, 1, 2, 700, 701);
    rows.push(Case::new("ranking", "300 slots", move |s| rank(s, wide, 300, Ranking::Logistic)));
    rows.push(Case::new("divergence", "a head of equal tokens", ties));
    rows
}

fn parameters(s: &mut Setup, values: [f64; 2]) -> Option<Tensor> {
    Some(s.floats([2], values.to_vec(), false))
}

fn whole(s: &mut Setup, at: Size, kind: Divergence, values: [f64; 2], temperature: f32) -> Result<()> {
    let (chunk, weights) = (chunk(s, at, 4.0), weights(s, at));
    let teacher = logits(s, Size { padded: at.padded + 3, ..at }, 4.0);
    let parameters = parameters(s, values);
    let record = |s: &mut Setup, into: LossInto| {
        let g = &mut s.graph;
        let lse = ops::log_sum_exp(g, chunk.z, at.vocab, temperature);
        let teacher_lse = ops::log_sum_exp(g, teacher, at.vocab, temperature);
        let target = DenseTarget { z: teacher, lse: teacher_lse, temperature };
        ops::divergence(g, kind, parameters, chunk, lse, target, weights, into)
    };
    if kind != Divergence::AdaptiveKl {
        claim(s, at, chunk.z, weights, record);
        return Ok(());
    }
    // Its gradient takes a weight as constant that is none.
    let empty = into(s, at);
    let found = record(s, empty);
    s.result(found.loss_rows);
    s.result(found.dz.expect("given"));
    Ok(())
}

/// Teachers whose most probable tokens, or those at the head's border, are equally probable.
fn ties(s: &mut Setup) -> Result<()> {
    let at = size(4, 0, 4, 300, 300);
    let (chunk, weights) = (chunk(s, at, 4.0), s.floats([4], vec![1.0; 4], false));
    let row = |r: usize, j: usize| match r {
        0 => 0.0,
        1 => [0.0, 6.0][usize::from(j.is_multiple_of(7))],
        2 => [6.0, 5.0, 0.0][(j % 7).min(2)],
        _ => [20.0, 0.0][usize::from(j != 9)],
    };
    let teacher = s.floats([4, 300], (0..1200).map(|i| row(i / 300, i % 300)).collect(), false);
    let (parameters, into) = (parameters(s, [0.5, 0.0]), into(s, at));
    let g = &mut s.graph;
    let lse = ops::log_sum_exp(g, chunk.z, 300, 1.0);
    let target = DenseTarget { z: teacher, lse: ops::log_sum_exp(g, teacher, 300, 1.0), temperature: 1.0 };
    let found = ops::divergence(g, Divergence::AdaptiveKl, parameters, chunk, lse, target, weights, into);
    s.result(found.loss_rows);
    s.result(found.dz.expect("given"));
    Ok(())
}

/// Stored rows, one tail in three exactly 0.
fn target(s: &mut Setup, at: Size, k: usize, missing: impl Fn(Tensor) -> Missing) -> SparseTarget {
    let (ids, log_probs) = stored(s, at, k);
    let tails = (0..at.batch).map(|n| if n % 3 == 0 { 0.0 } else { (s.random() * 0.1 + 0.1) as f32 as f64 }).collect();
    let missing = missing(s.floats([at.batch], tails, false));
    SparseTarget { ids, log_probs, missing, temperature: 1.5 }
}

fn teacher_row(s: &mut Setup, at: Size, k: usize, uniform: bool) -> Result<()> {
    let chunk = chunk(s, at, 4.0);
    let target = target(s, at, k, |tail| if uniform { Missing::Uniform { tail } } else { Missing::Zero });
    let row = ops::teacher_row(&mut s.graph, chunk, target);
    // Between it and the student: what stands for log 0 would hide the rest, and alone it sums to 1.
    let half = s.floats([1], vec![0.5], false);
    let between = ops::blend(&mut s.graph, chunk, row, half);
    let lse = ops::log_sum_exp(&mut s.graph, between, at.vocab, 1.0);
    s.result(lse);
    if uniform {
        s.result(between);
    }
    Ok(())
}

fn buckets(s: &mut Setup, at: Size, k: usize, ghost: bool) -> Result<()> {
    let chunk = chunk(s, at, 4.0);
    let target = target(s, at, k, |tail| if ghost { Missing::Ghost { tail } } else { Missing::BothRenormalised });
    let Buckets { student, teacher } = ops::buckets(&mut s.graph, chunk, target);
    // As above; the losses of them below compare the values themselves.
    let half = s.floats([1], vec![0.5], false);
    let inner = Chunk { z: student, vocab: k + 1, ..chunk };
    let between = ops::blend(&mut s.graph, inner, teacher, half);
    for row in [student, between] {
        let lse = ops::log_sum_exp(&mut s.graph, row, k + 1, 1.5);
        s.result(lse);
    }
    Ok(())
}

fn bucketed(s: &mut Setup, at: Size, k: usize, ghost: bool, kind: Divergence, values: [f64; 2]) -> Result<()> {
    let (chunk, weights) = (chunk(s, at, 4.0), weights(s, at));
    let target = target(s, at, k, |tail| if ghost { Missing::Ghost { tail } } else { Missing::BothRenormalised });
    let parameters = parameters(s, values);
    let t = target.temperature;
    claim(s, at, chunk.z, weights, |s, into| {
        let g = &mut s.graph;
        let Buckets { student, teacher } = ops::buckets(g, chunk, target);
        let inner = Chunk { z: student, vocab: k + 1, ..chunk };
        let lse = ops::log_sum_exp(g, student, k + 1, t);
        let other = DenseTarget { z: teacher, lse: ops::log_sum_exp(g, teacher, k + 1, t), temperature: t };
        let dz = into.dz.map(|_| ops::zeros(g, student.shape));
        let own = LossInto { dz, ..into };
        let found = ops::divergence(g, kind, parameters, inner, lse, other, weights, own);
        let dz = into.dz.zip(found.dz);
        let dz = dz.map(|(dz, own)| ops::add_bucket_grad(g, chunk, target, student, own, dz));
        LossInto { loss_rows: found.loss_rows, dz }
    });
    Ok(())
}

fn rank(s: &mut Setup, at: Size, k: usize, ranking: Ranking) -> Result<()> {
    let (chunk, weights) = (chunk(s, at, 2.0), weights(s, at));
    let target = target(s, at, k, |_| Missing::Zero);
    claim(s, at, chunk.z, weights, |s, into| {
        let lse = ops::log_sum_exp(&mut s.graph, chunk.z, at.vocab, 1.0);
        ops::ranking(&mut s.graph, ranking, chunk, lse, target, weights, into)
    });
    Ok(())
}

fn blend(s: &mut Setup, at: Size) -> Result<()> {
    let chunk = chunk(s, at, 4.0);
    let v = logits(s, Size { padded: at.padded + 3, ..at }, 4.0);
    let share = s.floats([1], vec![0.375], false);
    let mixed = ops::blend(&mut s.graph, chunk, v, share);
    s.result(mixed);
    Ok(())
}
