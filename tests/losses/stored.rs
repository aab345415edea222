//! Every loss from stored, sparse teacher rows.

use super::reference::{KINDS, divergence, is_its_formula, kl, live, of, ones, run, taid};
use super::{Bench, assert_close, gpus, random, softmax};
use potstill::device::Device;
use potstill::losses::{Loss, Target, Temperature};
use potstill::ops::{self, Divergence, Missing, Ranking, SparseTarget};

const N: usize = 4;
const V: usize = 37;
const K: usize = 6;

/// Which handling, without its tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Handling {
    Ghost,
    Zero,
    Uniform,
    Both,
}
use Handling::*;

/// Top-k rows of some logits at temperature t: ids, log-probabilities, tails. The last slot of row 2 is unused, and its
/// mass in the tail.
struct Stored {
    t: f64,
    k: usize,
    ids: Vec<u32>,
    log_probs: Vec<f64>,
    tails: Vec<f64>,
}

impl Stored {
    fn of(v: &[f64], k: usize, t: f64) -> Stored {
        let mut s = Stored { t, k, ids: Vec::new(), log_probs: Vec::new(), tails: Vec::new() };
        for (r, v) in v.chunks(v.len() / N).enumerate() {
            let p = softmax(v, t);
            let mut order: Vec<usize> = (0..p.len()).collect();
            order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
            let used = if r == 2 && k < p.len() { k - 1 } else { k };
            s.ids.extend(order[..used].iter().map(|&id| id as u32));
            s.log_probs.extend(order[..used].iter().map(|&id| p[id].ln()));
            s.ids.resize((r + 1) * k, u32::MAX);
            s.log_probs.resize((r + 1) * k, -3.4e38);
            s.tails.push(order[used..].iter().map(|&id| p[id]).sum());
        }
        s
    }

    fn target(&self, b: &mut Bench, handling: Handling) -> SparseTarget {
        let tail = b.floats("tail", [N], &self.tails);
        SparseTarget {
            ids: b.ints("ids", [N, self.k], &self.ids),
            log_probs: b.floats("log_probs", [N, self.k], &self.log_probs),
            missing: match handling {
                Ghost => Missing::Ghost { tail },
                Zero => Missing::Zero,
                Uniform => Missing::Uniform { tail },
                Both => Missing::BothRenormalised,
            },
            temperature: self.t as f32,
        }
    }

    fn row(&self, r: usize) -> Vec<(usize, f64)> {
        let slots = self.ids[r * self.k..][..self.k].iter().zip(&self.log_probs[r * self.k..][..self.k]);
        slots.filter(|(id, _)| **id != u32::MAX).map(|(&id, l)| (id as usize, l.exp())).collect()
    }

    /// Both sides' distributions over what the handling compares.
    fn sides(&self, handling: Handling, r: usize, z: &[f64]) -> [Vec<f64>; 2] {
        let (row, q, tail) = (self.row(r), softmax(z, self.t), self.tails[r]);
        let mass: f64 = row.iter().map(|(_, p)| p).sum();
        let on: Vec<f64> = row.iter().map(|&(id, _)| q[id]).collect();
        let on_mass: f64 = on.iter().sum();
        let spread = |rest: f64, scale: f64| {
            let mut p = vec![rest; z.len()];
            row.iter().for_each(|&(id, l)| p[id] = l * scale);
            p
        };
        match handling {
            Ghost => {
                let p = row.iter().map(|(_, p)| *p).chain([tail]).collect();
                [p, on.iter().copied().chain([1.0 - on_mass]).collect()]
            }
            Both => [row.iter().map(|(_, p)| p / mass).collect(), on.iter().map(|q| q / on_mass).collect()],
            Zero => [spread(0.0, 1.0 / mass), q],
            Uniform => [spread(tail / (z.len() - row.len()) as f64, 1.0), q],
        }
    }
}

fn logits(seed: u64) -> Vec<f64> {
    random(seed, N * V).iter().map(|x| 3.0 * x).collect()
}

fn is_finite(kind: Divergence, handling: Handling) -> bool {
    let logs = [Divergence::ReverseKl, Divergence::Jeffreys, Divergence::AdaptiveKl];
    kind != Divergence::LogitMse && !(handling == Zero && logs.contains(&kind))
}

fn pairs() -> impl Iterator<Item = ((Divergence, [f64; 2]), Handling)> {
    let handlings = [Ghost, Zero, Uniform, Both];
    let pairs = KINDS.into_iter().flat_map(move |kind| handlings.map(|handling| (kind, handling)));
    pairs.filter(|(kind, handling)| is_finite(kind.0, *handling))
}

/// The divergence from the stored rows.
fn loss(b: &mut Bench, stored: &Stored, kind: (Divergence, [f64; 2]), handling: Handling) -> Loss<'static> {
    let target = Target::Stored(stored.target(b, handling));
    Loss::Divergence(of(b, kind, None, target, N))
}

fn are_their_formulas(device: Option<&Device>, tolerance: f64) {
    let (z, v) = (logits(31), logits(32));
    for t in [1.0, 1.75] {
        let stored = Stored::of(&v, K, t);
        for (kind, handling) in pairs() {
            let formula = |r: usize, z: &[f64], at: &[f64]| {
                let ([p, q], [_, at]) = (stored.sides(handling, r, z), stored.sides(handling, r, at));
                t * t * divergence(kind.0, kind.1, &p, &q, &at)
            };
            let name = format!("{:?} with {handling:?}, T = {t}", kind.0);
            is_its_formula(&name, device, (&z, N), tolerance, formula, |b| loss(b, &stored, kind, handling));
        }
    }
}

#[test]
fn values_and_gradients_are_their_formulas() {
    are_their_formulas(None, 1e-9);
    are_their_formulas(Some(&Device::cpu()), 1e-5);
}

#[test]
fn values_and_gradients_are_their_formulas_on_every_gpu() {
    gpus().iter().for_each(|gpu| are_their_formulas(Some(gpu), 1e-5));
}

#[test]
fn taid_moves_between_the_buckets() {
    let (z, v) = (logits(33), logits(34));
    let stored = Stored::of(&v, K, 1.5);
    for handling in [Ghost, Zero, Uniform, Both] {
        let log = |p: Vec<f64>| -> Vec<f64> { p.iter().map(|p| 1.5 * p.max(1e-300).ln()).collect() };
        let formula = |r: usize, z: &[f64], at: &[f64]| {
            let [p, q] = stored.sides(handling, r, z);
            let [_, at] = stored.sides(handling, r, at);
            taid(0.375, &log(q), &log(p), 1.5, &log(at))
        };
        is_its_formula(&format!("taid with {handling:?}"), None, (&z, N), 1e-9, formula, |b| {
            let target = Target::Stored(stored.target(b, handling));
            Loss::Divergence(of(b, (Divergence::Kl, [0.0; 2]), Some(0.375), target, N))
        });
    }
}

#[test]
fn equal_distributions_cost_nothing_but_where_mass_is_dropped() {
    let z = logits(35);
    let stored = Stored::of(&z, K, 1.0);
    for (kind, handling) in pairs() {
        let [value, grad] = run(None, &z, N, 3, |b| loss(b, &stored, kind, handling));
        let worst = value.iter().chain(&grad).fold(0f64, |a, b| a.max(b.abs()));
        match handling {
            Ghost | Both => assert!(worst < 1e-12, "{:?} with {handling:?}: {worst}", kind.0),
            Zero | Uniform => assert!(value.iter().all(|x| *x > 1e-4), "{:?} with {handling:?}: {value:?}", kind.0),
        }
        if (kind.0, handling) == (Divergence::Kl, Zero) {
            let expected: Vec<f64> = (0..N).map(|r| -(1.0 - stored.tails[r]).ln()).collect();
            assert_close("-log S", &value, &expected, 1e-12);
        }
    }
}

#[test]
fn buckets_of_every_token_are_the_whole_row() {
    let (z, v) = (logits(36), logits(37));
    let stored = Stored::of(&v, V, 1.0);
    for (kind, handling) in pairs() {
        let found = run(None, &z, N, 3, |b| loss(b, &stored, kind, handling));
        let expected =
            run(None, &z, N, 3, |b| Loss::Divergence(live(b, kind, None, &v, N, |_| Temperature::Fixed(1.0))));
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(&format!("{:?} with {handling:?}", kind.0), found, expected, 1e-12);
        }
    }
}

/// A teacher sure of one token with a tail of 0, one that stores nothing, and students of +-1e4.
fn stay_finite(device: Option<&Device>) {
    let z: Vec<f64> = (0..N * V).map(|i| if i * 7 % 5 == 0 { 1e4 } else { -1e4 }).collect();
    let mut stored = Stored::of(&logits(38), K, 1.0);
    stored.tails = vec![0.0, 1.0, 0.0, 0.5];
    stored.log_probs[..K].copy_from_slice(&[0.0, -200.0, -1e3, -1e4, -3.4e38, -3.4e38]);
    stored.ids[K..2 * K].fill(u32::MAX);
    for (kind, handling) in pairs() {
        let found = run(device, &z, N, 3, |b| loss(b, &stored, kind, handling));
        let name = format!("{:?} with {handling:?}", kind.0);
        assert!(found.iter().flatten().all(|x| x.is_finite() && x.abs() < 1e7), "{name}: {found:?}");
        assert!(found[0].iter().all(|x| *x > -1e-3), "{name}: {:?}", found[0]);
        // A row that stores nothing teaches nothing.
        assert!(found[0][1].abs() < 1e-3 && found[1][V..2 * V].iter().all(|x| x.abs() < 1e-3), "{name}: {found:?}");
    }
}

#[test]
fn extreme_rows_stay_finite() {
    stay_finite(None);
    stay_finite(Some(&Device::cpu()));
}

#[test]
fn extreme_rows_stay_finite_on_every_gpu() {
    gpus().iter().for_each(|gpu| stay_finite(Some(gpu)));
}

#[test]
fn what_would_be_infinite_is_refused() {
    let z = logits(39);
    let stored = Stored::of(&z, K, 1.0);
    for kind in KINDS.into_iter().filter(|kind| !is_finite(kind.0, Zero)) {
        let mut b = Bench::default();
        let hidden = b.floats("logits", [N, V], &z);
        let weight = super::reference::identity(&mut b, V);
        let loss = loss(&mut b, &stored, kind, Zero);
        let head = potstill::losses::Head { weight: &[weight], vocab: V, softcap: None };
        let error = potstill::losses::fused_head(&mut b.g, hidden, &head, &[loss], 2, true).unwrap_err().to_string();
        assert!(error.contains("without probability") && error.contains("live teacher"), "{error}");
    }
}

/// DistillKit's ranking losses over all pairs of a row's tokens, with the mean over the pairs.
fn ranked(ranking: Ranking, row: &[(usize, f64)], z: &[f64]) -> f64 {
    let q = softmax(z, 1.0);
    let (mut sum, mut count) = (0.0, 0);
    for &(a, p_a) in row {
        for &(b, _) in row.iter().filter(|(_, p_b)| p_a > *p_b) {
            count += 1;
            sum += match ranking {
                Ranking::Hinge { margin } => (f64::from(margin) - (q[a] - q[b])).max(0.0),
                Ranking::Logistic => (1.0 + (z[b] - z[a]).exp()).ln(),
            };
        }
    }
    sum / count as f64
}

fn rank(device: Option<&Device>, tolerance: f64) {
    let (z, mut stored) = (logits(40), Stored::of(&logits(41), K, 1.0));
    // Two equally probable tokens are no pair.
    stored.log_probs[1] = stored.log_probs[0];
    for ranking in [Ranking::Hinge { margin: 0.0625 }, Ranking::Logistic] {
        let formula = |r: usize, z: &[f64], _: &[f64]| ranked(ranking, &stored.row(r), z);
        is_its_formula(&format!("{ranking:?}"), device, (&z, N), tolerance, formula, |b| Loss::Ranking {
            ranking,
            target: stored.target(b, Zero),
            weights: ones(b, N),
        });
    }
}

#[test]
fn ranking_losses_are_their_formulas() {
    rank(None, 1e-8);
    rank(Some(&Device::cpu()), 1e-5);
}

#[test]
fn ranking_losses_are_their_formulas_on_every_gpu() {
    gpus().iter().for_each(|gpu| rank(Some(gpu), 1e-5));
}

#[test]
fn draws_estimate_the_gradient_of_kl_without_bias() {
    const DRAWS: usize = 10_000;
    let (z, v) = (logits(42)[..V].to_vec(), logits(43)[..V].to_vec());
    let (p, q) = (softmax(&v, 1.0), softmax(&z, 1.0));
    let mut b = Bench::default();
    let teacher = b.floats("teacher", [1, V], &v);
    let key = b.ints("key", [4], &[5, 0, 0, 0]);
    let lse = ops::log_sum_exp(&mut b.g, teacher, V, 1.0);
    let chunk = ops::Chunk { z: teacher, first_row: 0, vocab: V };
    let drawn = ops::sample_rows(&mut b.g, chunk, lse, DRAWS, 1.0, key);
    let ids: Vec<u32> = b.eval(&[drawn])[0].iter().map(|&id| id as u32).collect();
    // Each row of the batch holds one draw: the batch's mean gradient is the estimate.
    let [_, grad] = run(None, &z.repeat(DRAWS), DRAWS, 500, |b| {
        let target = SparseTarget {
            ids: b.ints("ids", [DRAWS, 1], &ids),
            log_probs: b.floats("log_probs", [DRAWS, 1], &[0.0; DRAWS]),
            missing: Missing::Zero,
            temperature: 1.0,
        };
        Loss::Divergence(of(b, (Divergence::Kl, [0.0; 2]), None, Target::Stored(target), DRAWS))
    });
    for j in 0..V {
        let mean = grad.iter().skip(j).step_by(V).sum::<f64>() / DRAWS as f64;
        let sigma = (p[j] * (1.0 - p[j]) / DRAWS as f64).sqrt();
        // Below ten expected draws the normal bound is too narrow: a token that never came is off by p.
        let bound = if p[j] * (DRAWS as f64) < 10.0 { 10.0 * sigma } else { 4.0 * sigma };
        assert!((mean - (q[j] - p[j])).abs() < bound, "{j}: {mean}, expected {} +- {sigma}", q[j] - p[j]);
    }
}

/// z = [2, 1, 0, -1], the teacher stores 0.6 and 0.3 for tokens 0 and 1: what DistillKit's own code gave. (T, kl, jsd, tvd)
const DISTILLKIT: [(f64, Handling, [f64; 3]); 4] = [
    (1.0, Zero, [0.137009, 0.045510, 0.119203]),
    (1.0, Ghost, [0.010918, 0.002668, 0.063117]),
    (2.0, Zero, [1.264360, 0.417159, 1.075766]),
    (2.0, Ghost, [0.072013, 0.018453, 0.303795]),
];

/// (T, kl, jsd, tvd) of DistillKit with the whole teacher [.6, .3, .06, .04].
const DISTILLKIT_DENSE: [(f64, [f64; 3]); 2] =
    [(1.0, [0.014943, 0.003725, 0.071059]), (2.0, [0.022368, 0.005625, 0.182218])];

const THEIRS: [(Divergence, [f64; 2]); 3] =
    [(Divergence::Kl, [0.0; 2]), (Divergence::Jsd, [0.5, 0.0]), (Divergence::Tvd, [0.0; 2])];

/// The example's loss with `stored` probabilities and tail.
fn example(kind: (Divergence, [f64; 2]), handling: Handling, t: f64, p: [f64; 2], tail: f64) -> f64 {
    let [value, _] = run(None, &[2.0, 1.0, 0.0, -1.0], 1, 1, |b| {
        let tail = b.floats("tail", [1], &[tail]);
        let target = SparseTarget {
            ids: b.ints("ids", [1, 2], &[0, 1]),
            log_probs: b.floats("log_probs", [1, 2], &p.map(f64::ln)),
            missing: if handling == Ghost { Missing::Ghost { tail } } else { Missing::Zero },
            temperature: t as f32,
        };
        Loss::Divergence(of(b, kind, None, Target::Stored(target), 1))
    });
    value[0]
}

#[test]
fn distillkits_numbers_hold_where_its_mathematics_does() {
    for (t, values) in DISTILLKIT_DENSE {
        let v = [0.6f64, 0.3, 0.06, 0.04].map(f64::ln);
        for (kind, expected) in THEIRS.into_iter().zip(values) {
            let fixed = |_: &mut Bench| Temperature::Fixed(t as f32);
            let found =
                run(None, &[2.0, 1.0, 0.0, -1.0], 1, 1, |b| Loss::Divergence(live(b, kind, None, &v, 1, fixed)));
            assert!((found[0][0] - expected).abs() < 6e-7, "{kind:?}, T = {t}: {} for {expected}", found[0][0]);
        }
    }
    for (t, handling, values) in DISTILLKIT {
        // The true distribution at T of a teacher whose other two tokens have .06 and .04.
        let p = [0.6f64, 0.3, 0.06, 0.04].map(|p| p.powf(1.0 / t));
        let all: f64 = p.iter().sum();
        let (head, tail) = ([p[0] / all, p[1] / all], (p[2] + p[3]) / all);
        for (kind, theirs) in THEIRS.into_iter().zip(values) {
            let ours = example(kind, handling, t, head, tail);
            if t == 1.0 || handling == Zero {
                // Renormalised over the stored tokens, the tempered rest cancels: theirs is what `zero` says it is.
                assert!((ours - theirs).abs() < 6e-7, "{kind:?} with {handling:?}, T = {t}: {ours}, theirs {theirs}");
            } else {
                // Their tail at T = 2 is r^(1/2) as if it were one token; ours is the stored mass of two.
                let log = 0.316_227_766; // (1 - .9)^(1/2)
                let sum = p[0] + p[1] + log;
                let theirs_again = example(kind, handling, t, [p[0] / sum, p[1] / sum], log / sum);
                assert!((theirs_again - theirs).abs() < 6e-7, "{kind:?}: {theirs_again}, theirs {theirs}");
                let q = softmax(&[2.0, 1.0, 0.0, -1.0], 2.0);
                let (sides_p, sides_q) = ([head[0], head[1], tail], [q[0], q[1], q[2] + q[3]]);
                let right = t * t * divergence(kind.0, kind.1, &sides_p, &sides_q, &sides_q);
                assert!((ours - right).abs() < 1e-9 && (ours - theirs).abs() > 0.01, "{kind:?}: {ours} for {right}");
            }
        }
    }
    // hinge with margin .1: 0; logistic ranking: log(1 + e^-1).
    for (ranking, expected) in [(Ranking::Hinge { margin: 0.1 }, 0.0), (Ranking::Logistic, 0.313262)] {
        let found = run(None, &[2.0, 1.0, 0.0, -1.0], 1, 1, |b| Loss::Ranking {
            ranking,
            target: SparseTarget {
                ids: b.ints("ids", [1, 2], &[0, 1]),
                log_probs: b.floats("log_probs", [1, 2], &[0.6f64.ln(), 0.3f64.ln()]),
                missing: Missing::Zero,
                temperature: 1.0,
            },
            weights: ones(b, 1),
        });
        assert!((found[0][0] - expected).abs() < 6e-7, "{ranking:?}: {}", found[0][0]);
    }
    // Half of their kl: a sanity check of the reference itself.
    assert!((kl(&[0.6, 0.3, 0.06, 0.04], &softmax(&[2.0, 1.0, 0.0, -1.0], 1.0)) - 0.014943).abs() < 6e-7);
}
