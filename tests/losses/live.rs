//! Every divergence from a live teacher.

use super::reference::{KINDS, is_its_formula, live, run, taid, whole};
use super::{assert_close, gpus, random};
use potstill::device::Device;
use potstill::losses::{Loss, Temperature};
use potstill::ops::Divergence;

const N: usize = 4;
const V: usize = 37;

fn logits(seed: u64) -> Vec<f64> {
    random(seed, N * V).iter().map(|x| 4.0 * x).collect()
}

/// (name, kind with parameters, TAID's share).
type Named = (String, (Divergence, [f64; 2]), Option<f64>);

fn all() -> Vec<Named> {
    let mut all: Vec<_> = KINDS.iter().map(|&kind| (format!("{:?}", kind.0), kind, None)).collect();
    all.push(("taid".into(), (Divergence::Kl, [0.0; 2]), Some(0.375)));
    all
}

fn fixed(t: f64) -> impl Fn(&mut super::Bench) -> Temperature {
    move |_| Temperature::Fixed(t as f32)
}

fn are_their_formulas(device: Option<&Device>, tolerance: f64) {
    let (z, v) = (logits(21), logits(22));
    for t in [1.0, 1.75] {
        for (name, kind, blend) in all() {
            let t = if kind.0 == Divergence::LogitMse { 1.0 } else { t };
            let formula = |r: usize, z: &[f64], at: &[f64]| match blend {
                Some(share) => taid(share, z, &v[r * V..][..V], t, at),
                None => whole(kind.0, kind.1, z, &v[r * V..][..V], t, at),
            };
            is_its_formula(&format!("{name}, T = {t}"), device, (&z, N), tolerance, formula, |b| {
                Loss::Divergence(live(b, kind, blend, &v, N, fixed(t)))
            });
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
fn a_scheduled_temperature_is_the_same_loss() {
    let (z, v) = (logits(23), logits(24));
    for (name, kind, blend) in all().into_iter().filter(|(_, kind, _)| kind.0 != Divergence::LogitMse) {
        let expected = run(None, &z, N, 3, |b| Loss::Divergence(live(b, kind, blend, &v, N, fixed(1.75))));
        let scalar = |b: &mut super::Bench| Temperature::Scalar(b.floats("temperature", [1], &[1.75]));
        let found = run(None, &z, N, 3, |b| Loss::Divergence(live(b, kind, blend, &v, N, scalar)));
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(&name, found, expected, 1e-12);
        }
    }
}

#[test]
fn equal_distributions_cost_nothing() {
    let z = logits(25);
    // Another constant added to each row's logits changes no distribution.
    let shifted: Vec<f64> = z.iter().enumerate().map(|(i, z)| z + 0.5 * (i / V) as f64).collect();
    for (device, tolerance) in [(None, 1e-13), (Some(Device::cpu()), 2e-6)] {
        for (name, kind, blend) in all() {
            let found =
                run(device.as_ref(), &z, N, 3, |b| Loss::Divergence(live(b, kind, blend, &shifted, N, fixed(1.0))));
            let worst = found.iter().flatten().fold(0f64, |a, b| a.max(b.abs()));
            assert!(worst < tolerance, "{name}: {worst}");
        }
    }
}

#[test]
fn jensen_shannon_lies_between_the_two_kl() {
    let (z, v) = (logits(26), logits(27));
    let loss = |kind, a: f64, z: &[f64]| {
        run(None, z, N, 4, |b| Loss::Divergence(live(b, (kind, [a, 0.0]), None, &v, N, fixed(1.0))))
    };
    for (beta, end) in [(0.0, Divergence::Kl), (1.0, Divergence::ReverseKl)] {
        let expected = loss(end, 0.0, &z);
        // At the end itself and on the way to it: the first order term is beta times a ratio of probabilities, which is
        // below e^8 here.
        for (beta, tolerance) in [(beta, 1e-13), (beta + (0.5 - beta) * 2e-7, 3e-4)] {
            let found = loss(Divergence::ScaledJsd, beta, &z);
            for (found, expected) in found.iter().zip(&expected) {
                assert_close(&format!("scaled by beta = {beta}"), found, expected, tolerance);
            }
        }
    }
    // Near equality JSD is beta (1 - beta) KL, up to third order in the difference.
    let near: Vec<f64> = v.iter().zip(random(28, N * V)).map(|(v, x)| v + 1e-3 * x).collect();
    for beta in [0.1, 0.5, 0.9] {
        let (jsd, kl) = (loss(Divergence::Jsd, beta, &near), loss(Divergence::Kl, 0.0, &near));
        for (jsd, kl) in jsd[0].iter().zip(&kl[0]) {
            assert!((jsd / kl - beta * (1.0 - beta)).abs() < 1e-3, "beta = {beta}: {}", jsd / kl);
        }
    }
}

/// Logits of 1e4 either way, a teacher that is all but one-hot, and one that agrees with nothing.
fn stay_finite(device: Option<&Device>) {
    let z: Vec<f64> = (0..N * V).map(|i| if i * 7 % 5 == 0 { 1e4 } else { -1e4 }).collect();
    let v: Vec<f64> = (0..N * V).map(|i| if i % V == i / V { 1e4 } else { -1e4 * (i % 3) as f64 }).collect();
    for t in [1.0, 4.0] {
        for (name, kind, blend) in all() {
            let t = if kind.0 == Divergence::LogitMse { 1.0 } else { t };
            let found = run(device, &z, N, 3, |b| Loss::Divergence(live(b, kind, blend, &v, N, fixed(t))));
            let ok = |x: &f64| x.is_finite() && x.abs() < 1e10;
            assert!(found.iter().flatten().all(ok), "{name}, T = {t}: {found:?}");
            assert!(found[0].iter().all(|&value| value > -1e-3), "{name}: {:?}", found[0]);
            let row = match blend {
                Some(share) => taid(share, &z[..V], &v[..V], t, &z[..V]),
                None => whole(kind.0, kind.1, &z[..V], &v[..V], t, &z[..V]),
            };
            // An f32 near 1e4 is exact to 1e-3, and so are its exponentials.
            let tolerance = if device.is_some() { 1e-3 * row.abs() + 4e-3 } else { 1e-9 * row.abs() };
            if row.is_finite() {
                assert!((found[0][0] - row).abs() <= tolerance, "{name}: {} for {row}", found[0][0]);
            }
        }
    }
}

#[test]
fn extreme_logits_stay_finite() {
    stay_finite(None);
    stay_finite(Some(&Device::cpu()));
}

#[test]
fn extreme_logits_stay_finite_on_every_gpu() {
    gpus().iter().for_each(|gpu| stay_finite(Some(gpu)));
}

#[test]
fn the_head_of_the_adaptive_kl_ends_before_its_border() {
    // p = .4, .3, .2, .1: with mu = .75 the head is the first two; with .1 still the first; with .95 three.
    let v: Vec<f64> = [0.4f64, 0.3, 0.2, 0.1].iter().map(|p| p.ln()).collect();
    let z = [0.1f64, 0.2, 0.3, 0.4].map(f64::ln);
    let gaps = [0.3, 0.1, 0.1, 0.3];
    for (mu, head) in [(0.75, 2), (0.1, 1), (0.95, 3), (0.5, 1)] {
        let w: f64 = gaps[..head].iter().sum::<f64>() / 0.8;
        let kind = (Divergence::AdaptiveKl, [mu, 0.0]);
        let found = run(None, &z, 1, 1, |b| Loss::Divergence(live(b, kind, None, &v, 1, fixed(1.0))));
        let of = |kind| whole(kind, [0.0; 2], &z, &v, 1.0, &z);
        let expected = w * of(Divergence::Kl) + (1.0 - w) * of(Divergence::ReverseKl);
        assert!((found[0][0] - expected).abs() < 1e-12, "mu = {mu}: {} for {expected}", found[0][0]);
    }
}
