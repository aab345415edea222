//! The fused head: cutting it up changes nothing, and its gradients are those of its losses.

use super::{Bench, assert_close, gpus, random};
use potstill::device::Device;
use potstill::graph::{Tensor, Values, evaluate};
use potstill::losses::{Divergent, Head, Live, Loss, Target, Temperature, fused_head};
use potstill::ops::{Divergence, Missing, Smoothing, SparseTarget};
use std::collections::HashMap;

/// A head in blocks, its logits capped, under all three losses with a teacher of another padded size; rows 3 and 8 do not count.
struct Mixed {
    b: Bench,
    loss_rows: Vec<Tensor>,
    d_hidden: Tensor,
    d_weight: Vec<Tensor>,
}

const MIXED: [usize; 3] = [11, 6, 23];

fn mixed(chunk: usize, blocks: &[usize]) -> Mixed {
    let [n, d, v] = MIXED;
    let mut b = Bench::default();
    let hidden = b.floats("hidden", [n, d], &random(1, n * d));
    b.g.require_grad(hidden);
    // Two rows of padding.
    let weight = random(2, (v + 2) * d).iter().map(|x| (2.0 * x) as f32 as f64).collect::<Vec<_>>();
    let mut parts = Vec::new();
    let mut start = 0;
    for (i, &rows) in blocks.iter().enumerate() {
        parts.push(b.param(&format!("weight{i}"), [rows, d], &weight[start * d..(start + rows) * d]));
        start += rows;
    }
    assert_eq!(start, v + 2);
    let teacher = b.floats("teacher", [n, 4], &random(3, n * 4));
    let teacher_weight = b.floats("teacher_weight", [v + 5, 4], &random(4, (v + 5) * 4));
    let labels: Vec<u32> = (0..n as u32).map(|i| if i == 5 { u32::MAX } else { i * 5 % v as u32 }).collect();
    let labels = b.ints("labels", [n], &labels);
    let mut w = random(5, 3 * n);
    for row in [3, 8] {
        (0..3).for_each(|loss| w[loss * n + row] = 0.0);
    }
    let weights: Vec<Tensor> = (0..3).map(|i| b.floats(&format!("w{i}"), [n], &w[i * n..][..n])).collect();
    let ids: Vec<u32> = (0..n as u32).flat_map(|i| [i % 23, (i + 7) % 23, (i + 11) % 23]).collect();
    let log_probs: Vec<f64> = random(6, 3 * n).iter().map(|x| x - 2.5).collect();
    let target = SparseTarget {
        ids: b.ints("ids", [n, 3], &ids),
        log_probs: b.floats("log_probs", [n, 3], &log_probs),
        missing: Missing::Ghost { tail: b.floats("tail", [n], &vec![0.25; n]) },
        temperature: 2.0,
    };
    let kl = |target, weights| {
        Loss::Divergence(Divergent { divergence: Divergence::Kl, parameters: None, blend: None, target, weights })
    };
    // The teacher knows one token less.
    let live = Live { hidden: teacher, head: Head { weight: &[teacher_weight], vocab: v - 1, softcap: Some(0.8) } };
    let losses = [
        Loss::CrossEntropy { labels, smoothing: Smoothing::default(), weights: weights[0] },
        kl(Target::Stored(target), weights[1]),
        kl(Target::Live(live, Temperature::Fixed(1.5)), weights[2]),
    ];
    let head = Head { weight: &parts, vocab: v, softcap: Some(2.5) };
    let fused = fused_head(&mut b.g, hidden, &head, &losses, chunk, true).unwrap();
    let d_weight = parts.iter().map(|&w| b.g.grad(w).unwrap()).collect();
    Mixed { b, loss_rows: fused.loss_rows, d_hidden: fused.d_hidden.unwrap(), d_weight }
}

/// Loss rows, hidden gradient and weight gradient, one after another.
fn flat(m: &Mixed, found: Vec<Vec<f64>>) -> [Vec<f64>; 3] {
    let blocks = m.d_weight.len();
    let at = found.len() - blocks;
    [found[..at - 1].concat(), found[at - 1].clone(), found[at..].concat()]
}

fn wanted(m: &Mixed) -> Vec<Tensor> {
    m.loss_rows.iter().chain([&m.d_hidden]).chain(&m.d_weight).copied().collect()
}

#[test]
fn chunks_and_blocks_change_nothing() {
    let whole = mixed(11, &[25]);
    let expected = flat(&whole, whole.b.eval(&wanted(&whole)));
    for (chunk, blocks) in [(1, &[25][..]), (7, &[25]), (7, &[10, 15]), (4, &[24, 1])] {
        let m = mixed(chunk, blocks);
        for (found, expected) in flat(&m, m.b.eval(&wanted(&m))).iter().zip(&expected) {
            assert_close(&format!("chunks of {chunk}, blocks {blocks:?}"), found, expected, 1e-13);
        }
    }
    // Padding rows of the matrix get no gradient; rows of weight 0 neither loss nor gradient.
    let [n, d, v] = MIXED;
    assert!(expected[2][v * d..].iter().all(|&x| x == 0.0));
    for row in [3, 8] {
        assert!(expected[1][row * d..][..d].iter().all(|&x| x == 0.0));
        assert!((0..3).all(|loss| expected[0][loss * n + row] == 0.0));
    }
    assert!(expected[0][5] == 0.0 && expected[0][n + 5] != 0.0, "a row without a label counts in the others");
}

#[test]
fn fused_gradients_agree_with_central_differences() {
    let m = mixed(4, &[10, 15]);
    let [n, ..] = MIXED;
    let total = |values: &HashMap<String, Values>| -> f64 {
        let rows = evaluate(&m.b.g, &mut values.clone(), &m.loss_rows).unwrap();
        let one = |i: usize| -> f64 {
            rows[i].floats().iter().zip(values[&format!("w{i}")].floats()).map(|(l, w)| l * w).sum()
        };
        (0..3).map(one).sum()
    };
    let grads = m.b.eval(&[m.d_hidden, m.d_weight[0], m.d_weight[1]]);
    for (name, grad) in ["hidden", "weight0", "weight1"].iter().zip(&grads) {
        for at in (0..grad.len()).step_by(7) {
            let nudged = |by: f64| {
                let mut values = m.b.values.clone();
                if let Some(Values::F(v)) = values.get_mut(*name) {
                    v[at] += by;
                }
                total(&values)
            };
            let numeric = (nudged(1e-5) - nudged(-1e-5)) / 2e-5;
            assert!((numeric - grad[at]).abs() < 1e-8, "{name}[{at}]: {} by differences {numeric}", grad[at]);
        }
    }
    assert_eq!(grads[0].len(), n * MIXED[1]);
}

fn runs_as_in_f64(device: &Device) {
    let mut m = mixed(4, &[10, 15]);
    let expected = flat(&m, m.b.eval(&wanted(&m)));
    let wanted = wanted(&m);
    let found = m.b.run_on(device, &wanted);
    for (found, expected) in flat(&m, found).iter().zip(&expected) {
        assert_close(&device.name(), found, expected, 1e-5);
    }
}

#[test]
fn the_cpu_runs_the_fused_head_as_in_f64() {
    runs_as_in_f64(&Device::cpu());
}

#[test]
fn every_gpu_runs_the_fused_head_as_in_f64() {
    gpus().iter().for_each(runs_as_in_f64);
}
