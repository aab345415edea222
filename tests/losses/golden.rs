//! Losses, evaluation and capture against PyTorch.

use super::reference::{live, of};
use super::{Bench, assert_close, softmax};
use potstill::device::Device;
use potstill::graph::Tensor;
use potstill::losses::{
    Against, Divergent, Head, Live, Loss, Record, Target, Temperature, capture_head, evaluate_head, fused_head,
};
use potstill::ops::{Divergence, Missing, Smoothing, SparseTarget};
use std::collections::HashMap;

pub const ROWS: usize = 5;
pub const VOCAB: usize = 37;
pub const K: usize = 5;

/// The file's tensors.
pub struct Golden(HashMap<String, Vec<f64>>);

impl Golden {
    pub fn load() -> Golden {
        let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/losses.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let read = |view: &safetensors::tensor::TensorView<'_>| match view.dtype() {
            safetensors::Dtype::F64 => {
                view.data().chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
            }
            safetensors::Dtype::I32 => {
                view.data().chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as f64).collect()
            }
            other => panic!("{other:?}"),
        };
        Golden(file.tensors().iter().map(|(name, view)| (name.clone(), read(view))).collect())
    }

    pub fn get(&self, name: &str) -> &[f64] {
        self.0.get(name).unwrap_or_else(|| panic!("no `{name}`"))
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.get(name).iter().map(|&x| x as u32).collect()
    }

    /// Stored top-k rows at temperature `t`: log-probabilities from the ones at temperature 1.
    fn top_k(&self, b: &mut Bench, t: f64, ghost: bool) -> SparseTarget {
        let partition = self.get(&format!("log_partition.t{t}"));
        let at_t = self.get("topk_log_probs").iter().enumerate().map(|(i, l)| l / t - partition[i / K]);
        let tail = b.floats("tail", [ROWS], self.get(&format!("tail_mass.t{t}")));
        SparseTarget {
            ids: b.ints("ids", [ROWS, K], &self.ids("topk_ids")),
            log_probs: b.floats("log_probs", [ROWS, K], &at_t.collect::<Vec<_>>()),
            missing: if ghost { Missing::Ghost { tail } } else { Missing::Zero },
            temperature: t as f32,
        }
    }

    fn sampled(&self, b: &mut Bench, t: f64) -> SparseTarget {
        let counts = self.get(&format!("sample_counts.t{t}"));
        let n = counts.len() / ROWS;
        let log = |&count: &f64| if count > 0.0 { (count / n as f64).ln() } else { -3.4e38 };
        SparseTarget {
            ids: b.ints("ids", [ROWS, n], &self.ids(&format!("sample_ids.t{t}"))),
            log_probs: b.floats("log_probs", [ROWS, n], &counts.iter().map(log).collect::<Vec<_>>()),
            missing: Missing::Zero,
            temperature: t as f32,
        }
    }
}

fn identity() -> Vec<f64> {
    (0..VOCAB * VOCAB).map(|i| if i % (VOCAB + 1) == 0 { 1.0 } else { 0.0 }).collect()
}

/// Values and logit gradients of one loss on the golden logits, through the fused head with an identity matrix.
fn golden_loss(golden: &Golden, loss: impl FnOnce(&mut Bench) -> Loss<'static>) -> [Vec<f64>; 2] {
    let mut b = Bench::default();
    let hidden = b.floats("logits", [ROWS, VOCAB], golden.get("logits"));
    b.g.require_grad(hidden);
    let weight = b.floats("identity", [VOCAB, VOCAB], &identity());
    let head = Head { weight: &[weight], vocab: VOCAB, softcap: None };
    let loss = loss(&mut b);
    let fused = fused_head(&mut b.g, hidden, &head, &[loss], 2, true).unwrap();
    let mut found = b.eval(&[fused.loss_rows[0], fused.d_hidden.unwrap()]);
    [std::mem::take(&mut found[0]), std::mem::take(&mut found[1])]
}

fn kl(target: Target<'static>, weights: Tensor) -> Loss<'static> {
    Loss::Divergence(Divergent { divergence: Divergence::Kl, parameters: None, blend: None, target, weights })
}

#[test]
fn values_and_gradients_are_pytorchs() {
    let golden = Golden::load();
    // The temperature 1.7 is rounded to f32, by 3e-8 of it; the rest is f64.
    let check = |name: &str, [value, grad]: [Vec<f64>; 2]| {
        assert_close(name, &value, golden.get(&format!("{name}.value")), 3e-7);
        assert_close(name, &grad, golden.get(&format!("{name}.grad")), 3e-7);
    };
    let ones = |b: &mut Bench| b.floats("ones", [ROWS], &[1.0; ROWS]);
    let cross_entropy = golden_loss(&golden, |b| Loss::CrossEntropy {
        labels: b.ints("labels", [ROWS], &golden.ids("labels")),
        smoothing: Smoothing::default(),
        weights: ones(b),
    });
    check("cross_entropy.t1", cross_entropy);
    for t in [1.0, 1.7] {
        let sparse = |b: &mut Bench, target| kl(Target::Stored(target), ones(b));
        for (name, ghost) in [("kl_ghost", true), ("kl_zero", false)] {
            let found = golden_loss(&golden, |b| {
                let target = golden.top_k(b, t, ghost);
                sparse(b, target)
            });
            check(&format!("{name}.t{t}"), found);
        }
        let found = golden_loss(&golden, |b| {
            let target = golden.sampled(b, t);
            sparse(b, target)
        });
        check(&format!("kl_sampled.t{t}"), found);
        // A live teacher whose head is the identity too.
        let found = golden_loss(&golden, |b| {
            let hidden = b.floats("teacher", [ROWS, VOCAB], golden.get("teacher_logits"));
            let weight = b.floats("identity", [VOCAB, VOCAB], &identity());
            let head = Head { weight: Box::leak(Box::new([weight])), vocab: VOCAB, softcap: None };
            kl(Target::Live(Live { hidden, head }, Temperature::Fixed(t as f32)), ones(b))
        });
        check(&format!("kl_dense.t{t}"), found);
        for (name, divergence, beta) in [("jsd_dense", Divergence::Jsd, 0.5), ("tvd_dense", Divergence::Tvd, 0.0)] {
            let found = golden_loss(&golden, |b| {
                let v = golden.get("teacher_logits");
                let fixed = |_: &mut Bench| Temperature::Fixed(t as f32);
                Loss::Divergence(live(b, (divergence, [beta, 0.0]), None, v, ROWS, fixed))
            });
            check(&format!("{name}.t{t}"), found);
        }
        // DistillKit's losses with `missing_probability_handling: zero` are the same; it takes what is below 1e-8 for
        // nothing.
        for (name, divergence, beta) in [("jsd", Divergence::Jsd, 0.5), ("tvd", Divergence::Tvd, 0.0)] {
            let found = golden_loss(&golden, |b| {
                let target = Target::Stored(golden.top_k(b, t, false));
                Loss::Divergence(of(b, (divergence, [beta, 0.0]), None, target, ROWS))
            });
            check(&format!("distillkit.{name}_zero.t{t}"), found);
        }
        // DistillKit's `kl` with `missing_probability_handling: zero` is the same loss.
        let found = golden_loss(&golden, |b| {
            let target = golden.top_k(b, t, false);
            sparse(b, target)
        });
        check(&format!("distillkit.kl_zero.t{t}"), found);
    }
}

#[test]
fn a_captured_row_is_pytorchs() {
    let golden = Golden::load();
    let mut b = Bench::default();
    let hidden = b.floats("teacher", [ROWS, VOCAB], golden.get("teacher_logits"));
    let weight = b.floats("identity", [VOCAB, VOCAB], &identity());
    let head = Head { weight: &[weight], vocab: VOCAB, softcap: None };
    let labels = b.ints("labels", [ROWS], &golden.ids("labels"));
    let weights = b.floats("ones", [ROWS], &[1.0; ROWS]);
    let record = Record::TopK { k: K, temperatures: &[1.0, 1.7] };
    let c = capture_head(&mut b.g, hidden, &head, labels, weights, record, 2).unwrap();
    let entropies: Vec<f64> =
        golden.get("teacher_logits").chunks(VOCAB).map(|z| softmax(z, 1.0).iter().map(|p| -p * p.ln()).sum()).collect();
    let log_p: Vec<f64> =
        golden.get("teacher_logits").chunks(VOCAB).flat_map(|z| softmax(z, 1.0)).map(f64::ln).collect();
    let nll: Vec<f64> = golden.ids("labels").iter().enumerate().map(|(r, &y)| -log_p[r * VOCAB + y as usize]).collect();
    let expected: [(&str, Tensor, &[f64]); 8] = [
        ("ids", c.ids, golden.get("topk_ids")),
        ("log_probs", c.log_probs.unwrap(), golden.get("topk_log_probs")),
        ("tail", c.tails[0], golden.get("tail_mass.t1")),
        ("tail at 1.7", c.tails[1], golden.get("tail_mass.t1.7")),
        ("log_partition", c.log_partitions[0], golden.get("log_partition.t1")),
        ("log_partition at 1.7", c.log_partitions[1], golden.get("log_partition.t1.7")),
        ("entropy", c.entropy, &entropies),
        ("nll", c.nll, &nll),
    ];
    let wanted: Vec<Tensor> = expected.iter().map(|(_, t, _)| *t).collect();
    for ((name, _, expected), found) in expected.iter().zip(b.eval(&wanted)) {
        assert_close(name, &found, expected, 3e-7);
    }
    // The smallest tail, about 1e-6, keeps its leading digits in f32: 1 - sum would not.
    let tails = b.run_on(&Device::cpu(), &wanted).swap_remove(2);
    for (found, expected) in tails.iter().zip(golden.get("tail_mass.t1")) {
        assert!((found / expected - 1.0).abs() < 1e-4, "{found:e} {expected:e}");
    }
}

#[test]
fn evaluation_is_pytorchs() {
    let golden = Golden::load();
    let mut b = Bench::default();
    let hidden = b.floats("logits", [ROWS, VOCAB], golden.get("logits"));
    let teacher = b.floats("teacher", [ROWS, VOCAB], golden.get("teacher_logits"));
    let weight = b.floats("identity", [VOCAB, VOCAB], &identity());
    let head = Head { weight: &[weight], vocab: VOCAB, softcap: None };
    let labels = b.ints("labels", [ROWS], &golden.ids("labels"));
    let weights = b.floats("ones", [ROWS], &[1.0; ROWS]);
    let live = Live { hidden: teacher, head };
    let e = evaluate_head(&mut b.g, hidden, &head, labels, weights, &[Against::Live(live)], 2).unwrap();
    let found = b.eval(&[e.nll, e.beside[0].kld, e.beside[0].agreement.unwrap()]);
    assert_close("nll", &found[0], golden.get("cross_entropy.t1.value"), 1e-12);
    assert_close("kld", &found[1], golden.get("kl_dense.t1.value"), 1e-12);
    let best = |z: &[f64]| (0..VOCAB).max_by(|&a, &b| z[a].total_cmp(&z[b])).unwrap();
    let rows = golden.get("logits").chunks(VOCAB).zip(golden.get("teacher_logits").chunks(VOCAB));
    let same: Vec<f64> = rows.map(|(a, b)| f64::from(best(a) == best(b))).collect();
    assert!(same.contains(&0.0) && same.contains(&1.0));
    assert_eq!(found[2], same);
}
