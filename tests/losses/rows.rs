//! Row ops where closed forms are known: the ghost bucket at its limits, random draws.

use super::golden::{Golden, ROWS, VOCAB};
use super::{Bench, assert_close, gpus, random, softmax};
use potstill::device::Device;
use potstill::ops::{self, Chunk, Missing, SparseTarget};

/// Value and gradient of the ghost loss on rows of logits, T = 1, on a device or in f64.
fn ghost(device: Option<&Device>, z: &[f64], (ids, log_probs, tail): (&[u32], &[f64], &[f64])) -> (Vec<f64>, Vec<f64>) {
    let (n, k) = (tail.len(), ids.len() / tail.len());
    let mut b = Bench::default();
    let z = b.floats("z", [n, z.len() / n], z);
    let weights = b.floats("ones", [n], &vec![1.0; n]);
    let tail = b.floats("tail", [n], tail);
    let target = SparseTarget {
        ids: b.ints("ids", [n, k], ids),
        log_probs: b.floats("log_probs", [n, k], log_probs),
        missing: Missing::Ghost { tail },
        temperature: 1.0,
    };
    let g = &mut b.g;
    let chunk = Chunk { z, first_row: 0, vocab: z.shape.cols() };
    let lse = ops::log_sum_exp(g, z, chunk.vocab, 1.0);
    let into = ops::LossInto { loss_rows: ops::zeros(g, [n]), dz: Some(ops::zeros(g, z.shape)) };
    let found = ops::sparse_kl(g, chunk, lse, target, weights, into);
    let wanted = [found.loss_rows, found.dz.unwrap()];
    let mut found = match device {
        Some(device) => b.run_on(device, &wanted),
        None => b.eval(&wanted),
    };
    let dz = found.pop().unwrap();
    (found.pop().unwrap(), dz)
}

#[test]
fn equal_distributions_have_ghost_loss_0_and_gradients_sum_to_0() {
    let z: Vec<f64> = random(7, 3 * 41).iter().map(|x| 5.0 * x).collect();
    let p: Vec<Vec<f64>> = z.chunks(41).map(|z| softmax(z, 1.0)).collect();
    let ids: Vec<u32> = (0..3).flat_map(|r| [r, 7 + r, 40 - r]).collect();
    let log_probs: Vec<f64> = ids.iter().enumerate().map(|(i, &id)| p[i / 3][id as usize].ln()).collect();
    let tail: Vec<f64> = (0..3).map(|r| 1.0 - (0..3).map(|i| p[r][ids[r * 3 + i] as usize]).sum::<f64>()).collect();
    let (value, dz) = ghost(None, &z, (&ids, &log_probs, &tail));
    assert!(value.iter().chain(&dz).all(|x| x.abs() < 1e-14), "{value:?}");
    // Against another student: a loss, and a gradient that shifting all logits does not feel.
    let other: Vec<f64> = random(8, 3 * 41).iter().map(|x| 5.0 * x).collect();
    let (value, dz) = ghost(None, &other, (&ids, &log_probs, &tail));
    assert!(value.iter().all(|&x| x > 0.0), "{value:?}");
    assert!(dz.chunks(41).all(|row| row.iter().sum::<f64>().abs() < 1e-14));
    // Nothing stored, all of the mass outside: nothing to learn, whatever the student says.
    let (value, dz) = ghost(None, &other, (&[u32::MAX; 3], &[-3.4e38; 3], &[1.0; 3]));
    assert!(value.iter().chain(&dz).all(|x| x.abs() < 1e-14));
}

#[test]
fn ghost_with_every_token_stored_is_the_dense_loss() {
    let golden = Golden::load();
    let log_p: Vec<f64> =
        golden.get("teacher_logits").chunks(VOCAB).flat_map(|z| softmax(z, 1.0)).map(f64::ln).collect();
    let ids: Vec<u32> = (0..ROWS).flat_map(|_| (0..VOCAB as u32).rev()).collect();
    let turned: Vec<f64> = log_p.chunks(VOCAB).flat_map(|row| row.iter().rev().copied()).collect();
    let (value, dz) = ghost(None, golden.get("logits"), (&ids, &turned, &[0.0; ROWS]));
    assert_close("value", &value, golden.get("kl_dense.t1.value"), 1e-12);
    assert_close("gradient", &dz, golden.get("kl_dense.t1.grad"), 1e-12);
}

/// A student that is all but certain of the one stored token: its mass elsewhere, 299 e^-z, is lost to f32 in
/// 1 - q, and the teacher's tail of 0.1 must pull with all its weight, evenly on the 299 others.
fn keeps_a_vanishing_student_tail(device: Option<&Device>) {
    let vocab = 300;
    let mut rows = Vec::new();
    for z in [20.0, 60.0, 1e4] {
        rows.extend((0..vocab).map(|j| if j == 77 { z } else { 0.0 }));
    }
    let (ids, log_probs) = ([77u32; 3], [0.9f64.ln() as f32 as f64; 3]);
    let (value, dz) = ghost(device, &rows, (&ids, &log_probs, &[0.1f32 as f64; 3]));
    for (r, z) in [20.0, 60.0, 1e4f64].into_iter().enumerate() {
        let log_off = 299f64.ln() - (z + (299.0 * (-z).exp()).ln_1p());
        let expected = 0.9 * 0.9f64.ln() + 0.1 * (0.1f64.ln() - log_off);
        assert!((value[r] / expected - 1.0).abs() < 1e-5, "z = {z}: {} expected {expected}", value[r]);
        let off = (log_off.exp() - 0.1) / 299.0;
        for (j, d) in dz[r * vocab..][..vocab].iter().enumerate() {
            let expected = if j == 77 { 0.1 - log_off.exp() } else { off };
            assert!((d - expected).abs() < 1e-5 * expected.abs(), "z = {z}, {j}: {d} expected {expected}");
        }
    }
}

#[test]
fn a_vanishing_student_tail_is_not_lost() {
    keeps_a_vanishing_student_tail(None);
    keeps_a_vanishing_student_tail(Some(&Device::cpu()));
}

#[test]
fn a_vanishing_student_tail_is_not_lost_on_any_gpu() {
    gpus().iter().for_each(|gpu| keeps_a_vanishing_student_tail(Some(gpu)));
}

/// Draws from one row, `draws` at once, as row `first_row` of a batch that starts at row `base` of the data set.
fn draw(device: &Device, z: &[f64], vocab: usize, draws: usize, [base, first_row]: [usize; 2]) -> Vec<f64> {
    let mut b = Bench::default();
    let z = b.floats("z", [1, z.len()], z);
    let key = b.ints("key", [4], &[7, 0, base as u32, 0]);
    let lse = ops::log_sum_exp(&mut b.g, z, vocab, 1.3);
    let ids = ops::sample_rows(&mut b.g, Chunk { z, first_row, vocab }, lse, draws, 1.3, key);
    b.run_on(device, &[ids]).swap_remove(0)
}

fn draws_without_bias(device: &Device) {
    // More columns than lanes; the last 7 are padding that must never come.
    let (vocab, draws) = (613, 10_000);
    let mut z: Vec<f64> = random(9, vocab + 7).iter().map(|x| 5.0 * x).collect();
    z[vocab..].fill(50.0);
    let p = softmax(&z[..vocab], 1.3);
    let found = draw(device, &z, vocab, draws, [100, 3]);
    let mut counts = vec![0.0; vocab + 7];
    found.iter().for_each(|&id| counts[id as usize] += 1.0);
    assert!(counts[vocab..].iter().all(|&c| c == 0.0));
    for (j, (&c, &p)) in counts.iter().zip(&p).enumerate() {
        // Tokens with too few expected draws for a normal bound are judged together below.
        let (mean, sigma) = (draws as f64 * p, (draws as f64 * p * (1.0 - p)).sqrt());
        assert!(mean < 10.0 || (c - mean).abs() < 4.0 * sigma, "token {j}: {c} draws, expected {mean} +- {sigma}");
    }
    let rare: f64 = p.iter().filter(|&&p| p * (draws as f64) < 10.0).sum();
    let came: f64 = counts.iter().zip(&p).filter(|(_, p)| **p * (draws as f64) < 10.0).map(|(c, _)| c).sum();
    let sigma = (draws as f64 * rare * (1.0 - rare)).sqrt();
    assert!((came - draws as f64 * rare).abs() < 4.0 * sigma, "rare tokens: {came}, expected {}", draws as f64 * rare);
    // The same row of the data set, in another batch, asked for fewer draws: the same draws.
    assert_eq!(draw(device, &z, vocab, 50, [103, 0]), found[..50]);
    assert_ne!(draw(device, &z, vocab, 50, [104, 0]), found[..50]);
}

#[test]
fn draws_are_unbiased_and_belong_to_their_row() {
    draws_without_bias(&Device::cpu());
}

#[test]
fn every_gpu_draws_without_bias() {
    gpus().iter().for_each(draws_without_bias);
}
