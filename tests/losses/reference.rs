//! Every loss by its textbook formula in f64, and gradients by central differences of that.

use super::{Bench, assert_close, softmax};
use potstill::device::Device;
use potstill::graph::Tensor;
use potstill::losses::{Divergent, Head, Live, Loss, Target, Temperature, fused_head};
use potstill::ops::Divergence;

/// Each with its parameters; TAID is `taid` below.
pub const KINDS: [(Divergence, [f64; 2]); 11] = [
    (Divergence::Kl, [0.0; 2]),
    (Divergence::ReverseKl, [0.0; 2]),
    (Divergence::Jeffreys, [0.0; 2]),
    (Divergence::Jsd, [0.25, 0.0]),
    (Divergence::ScaledJsd, [0.25, 0.0]),
    (Divergence::SkewKl, [0.125, 0.0]),
    (Divergence::SkewReverseKl, [0.125, 0.0]),
    (Divergence::Tvd, [0.0; 2]),
    (Divergence::AdaptiveKl, [0.5, 0.0]),
    (Divergence::AlphaBeta, [0.25, 0.75]),
    (Divergence::LogitMse, [0.0; 2]),
];

/// Sum of a log(a / b); 0 where a is 0.
pub fn kl(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| if a > 0.0 { a * (a / b).ln() } else { 0.0 }).sum()
}

fn mix(share: f64, p: &[f64], q: &[f64]) -> Vec<f64> {
    p.iter().zip(q).map(|(p, q)| share * p + (1.0 - share) * q).collect()
}

/// The share of sum |p - q| on the head of p: each token is weighed with all that are at least as probable, and equally
/// probable ones (up to rounding) stand together.
fn head_share(p: &[f64], q: &[f64], mu: f64) -> f64 {
    let best = p.iter().fold(0.0f64, |a, b| a.max(*b));
    let (mut head, mut all) = (0.0, 0.0);
    for (&own, &other) in p.iter().zip(q) {
        let mass: f64 = p.iter().filter(|p| **p >= own * (1.0 - 1e-9)).sum();
        let gap = (own - other).abs();
        all += gap;
        if mass <= mu || own >= best * (1.0 - 1e-9) {
            head += gap;
        }
    }
    head / all
}

/// The divergence of two distributions. `at` is the point whose head share is taken, where that counts as constant.
pub fn divergence(kind: Divergence, [a, b]: [f64; 2], p: &[f64], q: &[f64], at: &[f64]) -> f64 {
    match kind {
        Divergence::Kl => kl(p, q),
        Divergence::ReverseKl => kl(q, p),
        Divergence::Jeffreys => kl(p, q) + kl(q, p),
        Divergence::Jsd | Divergence::ScaledJsd => {
            let m = mix(a, p, q);
            let jsd = a * kl(p, &m) + (1.0 - a) * kl(q, &m);
            if kind == Divergence::Jsd { jsd } else { jsd / (a * (1.0 - a)) }
        }
        Divergence::SkewKl => kl(p, &mix(a, p, q)),
        Divergence::SkewReverseKl => kl(q, &mix(1.0 - a, p, q)),
        Divergence::Tvd => 0.5 * p.iter().zip(q).map(|(p, q)| (p - q).abs()).sum::<f64>(),
        Divergence::AdaptiveKl => {
            let w = head_share(p, at, a);
            w * kl(p, q) + (1.0 - w) * kl(q, p)
        }
        Divergence::AlphaBeta => {
            let term = |(p, q): (&f64, &f64)| {
                p.powf(a) * q.powf(b) - a / (a + b) * p.powf(a + b) - b / (a + b) * q.powf(a + b)
            };
            -p.iter().zip(q).map(term).sum::<f64>() / (a * b)
        }
        Divergence::LogitMse => panic!("not of distributions"),
    }
}

pub fn logit_mse(z: &[f64], v: &[f64]) -> f64 {
    let c: Vec<f64> = z.iter().zip(v).map(|(z, v)| z - v).collect();
    let mean = c.iter().sum::<f64>() / c.len() as f64;
    c.iter().map(|c| (c - mean) * (c - mean)).sum::<f64>() / c.len() as f64
}

/// T^2 times the divergence from the teacher's logits v.
pub fn whole(kind: Divergence, parameters: [f64; 2], z: &[f64], v: &[f64], t: f64, at: &[f64]) -> f64 {
    if kind == Divergence::LogitMse {
        return logit_mse(z, v);
    }
    t * t * divergence(kind, parameters, &softmax(v, t), &softmax(z, t), &softmax(at, t))
}

/// T^2 KL from softmax((1 - s) z0 + s v) with z0 constant.
pub fn taid(share: f64, z: &[f64], v: &[f64], t: f64, at: &[f64]) -> f64 {
    let target: Vec<f64> = at.iter().zip(v).map(|(z, v)| (1.0 - share) * z + share * v).collect();
    t * t * kl(&softmax(&target, t), &softmax(z, t))
}

/// Values and gradients of `rows` rows by `loss(row, logits, where constants are taken)`.
fn by_differences(z: &[f64], rows: usize, loss: impl Fn(usize, &[f64], &[f64]) -> f64) -> [Vec<f64>; 2] {
    let (mut values, mut grads) = (Vec::new(), Vec::new());
    for (r, at) in z.chunks(z.len() / rows).enumerate() {
        values.push(loss(r, at, at));
        for j in 0..at.len() {
            let nudged = |by: f64| {
                let mut z = at.to_vec();
                z[j] += by;
                loss(r, &z, at)
            };
            grads.push((nudged(1e-5) - nudged(-1e-5)) / 2e-5);
        }
    }
    [values, grads]
}

/// Compares a loss, its gradient and the gradient's sum over a row, which is 0, with `formula(row, logits, where constants
/// are taken)` and its central differences.
pub fn is_its_formula(
    name: &str,
    device: Option<&Device>,
    (z, rows): (&[f64], usize),
    tolerance: f64,
    formula: impl Fn(usize, &[f64], &[f64]) -> f64,
    loss: impl FnOnce(&mut Bench) -> Loss<'static>,
) {
    let [value, grad] = by_differences(z, rows, formula);
    let found = run(device, z, rows, 3, loss);
    assert_close(name, &found[0], &value, tolerance);
    // The differences themselves are right to about 1e-9.
    assert_close(&format!("gradient of {name}"), &found[1], &grad, tolerance.max(1e-8));
    let total = found[1].chunks(z.len() / rows).map(|row| row.iter().sum::<f64>().abs()).fold(0.0, f64::max);
    assert!(total < tolerance, "{name}: a row's gradients sum to {total}");
}

/// Values of one loss and its gradient by the logits `z` `[n, v]`, through the fused head with an identity matrix, in f64
/// or on a device.
pub fn run(
    device: Option<&Device>,
    z: &[f64],
    n: usize,
    chunk_rows: usize,
    loss: impl FnOnce(&mut Bench) -> Loss<'static>,
) -> [Vec<f64>; 2] {
    let (v, mut b) = (z.len() / n, Bench::default());
    let hidden = b.floats("logits", [n, v], z);
    b.g.require_grad(hidden);
    let weight = identity(&mut b, v);
    let loss = loss(&mut b);
    let head = Head { weight: &[weight], vocab: v, softcap: None };
    let fused = fused_head(&mut b.g, hidden, &head, &[loss], chunk_rows, true).unwrap();
    let wanted = [fused.loss_rows[0], fused.d_hidden.unwrap()];
    let mut found = match device {
        Some(device) => b.run_on(device, &wanted),
        None => b.eval(&wanted),
    };
    [std::mem::take(&mut found[0]), std::mem::take(&mut found[1])]
}

pub fn identity(b: &mut Bench, v: usize) -> Tensor {
    let values: Vec<f64> = (0..v * v).map(|i| if i % (v + 1) == 0 { 1.0 } else { 0.0 }).collect();
    b.floats("identity", [v, v], &values)
}

/// Weights of 1.
pub fn ones(b: &mut Bench, n: usize) -> Tensor {
    b.floats("ones", [n], &vec![1.0; n])
}

/// A divergence, or TAID with the share in `blend`, from a live teacher with logits `v` and an identity head.
pub fn live(
    b: &mut Bench,
    (kind, parameters): (Divergence, [f64; 2]),
    blend: Option<f64>,
    v: &[f64],
    n: usize,
    temperature: impl FnOnce(&mut Bench) -> Temperature,
) -> Divergent<'static> {
    let vocab = v.len() / n;
    let hidden = b.floats("teacher", [n, vocab], v);
    let weight = identity(b, vocab);
    let head = Head { weight: Box::leak(Box::new([weight])), vocab, softcap: None };
    let target = Target::Live(Live { hidden, head }, temperature(b));
    of(b, (kind, parameters), blend, target, n)
}

/// The same against any target.
pub fn of(
    b: &mut Bench,
    (divergence, parameters): (Divergence, [f64; 2]),
    blend: Option<f64>,
    target: Target<'static>,
    n: usize,
) -> Divergent<'static> {
    let parameters = (divergence.parameters() > 0).then(|| b.floats("parameters", [2], &parameters));
    let blend = blend.map(|share| b.floats("blend", [1], &[share]));
    Divergent { divergence, parameters, blend, target, weights: ones(b, n) }
}
