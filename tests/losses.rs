//! The losses against PyTorch's values (tests/golden/losses.safetensors), closed forms and central differences.

use potstill::device::{Choice, Device, adapters};
use potstill::graph::{DType, Graph, Plan, Runner, Store, Tensor, Values, evaluate};
use potstill::losses::{Head, Live, Loss, Record, capture_head, evaluate_head, fused_head};
use potstill::ops::{self, Chunk, Missing, SparseTarget};
use std::collections::HashMap;

const ROWS: usize = 5;
const VOCAB: usize = 37;
const K: usize = 5;

/// A graph with the values of its inputs.
#[derive(Default)]
struct Bench {
    g: Graph,
    values: HashMap<String, Values>,
}

impl Bench {
    fn floats<const N: usize>(&mut self, name: &str, shape: [usize; N], values: &[f64]) -> Tensor {
        self.values.insert(name.into(), Values::F(values.to_vec()));
        self.g.external(name, shape, DType::F32)
    }

    fn ints<const N: usize>(&mut self, name: &str, shape: [usize; N], values: &[u32]) -> Tensor {
        self.values.insert(name.into(), Values::U(values.to_vec()));
        self.g.external(name, shape, DType::U32)
    }

    /// A trainable parameter, its gradient zero.
    fn param(&mut self, name: &str, shape: [usize; 2], values: &[f64]) -> Tensor {
        self.values.insert(name.into(), Values::F(values.to_vec()));
        self.values.insert(Graph::grad_name(name), Values::F(vec![0.0; values.len()]));
        self.g.param(name, shape, true)
    }

    /// Values in f64.
    fn eval(&self, wanted: &[Tensor]) -> Vec<Vec<f64>> {
        let found = evaluate(&self.g, &mut self.values.clone(), wanted).unwrap();
        found.into_iter().map(numbers).collect()
    }

    /// Values on a device.
    fn run_on(&mut self, device: &Device, wanted: &[Tensor]) -> Vec<Vec<f64>> {
        for (i, &tensor) in wanted.iter().enumerate() {
            self.g.output(&format!("wanted{i}"), tensor);
        }
        let mut store = Store::new(device);
        for (name, tensor) in self.g.externals() {
            store.add(name, tensor.shape, tensor.dtype).unwrap();
            match &self.values[name] {
                Values::F(v) => store.write(name, &v.iter().map(|&x| x as f32).collect::<Vec<_>>()).unwrap(),
                Values::U(v) => store.write(name, v).unwrap(),
            }
        }
        let mut runner = Runner::new(Plan::new(&self.g).unwrap(), &store, &mut Vec::new()).unwrap();
        runner.run().unwrap();
        let read = |(i, tensor): (usize, &Tensor)| match tensor.dtype {
            DType::F32 => wide(&pollster::block_on(runner.read_f32(&format!("wanted{i}"))).unwrap()),
            DType::U32 => numbers(Values::U(pollster::block_on(runner.read_u32(&format!("wanted{i}"))).unwrap())),
        };
        wanted.iter().enumerate().map(read).collect()
    }
}

fn numbers(values: Values) -> Vec<f64> {
    match values {
        Values::F(values) => values,
        Values::U(values) => values.into_iter().map(f64::from).collect(),
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| x as f64).collect()
}

fn gpus() -> Vec<Device> {
    let only = std::env::var("POTSTILL_TEST_ADAPTER").unwrap_or_default().to_lowercase();
    if only == "none" {
        return Vec::new();
    }
    let mut names: Vec<String> = pollster::block_on(adapters()).iter().map(|a| a.name.to_lowercase()).collect();
    names.retain(|n| n.contains(&only));
    names.dedup();
    assert!(!names.is_empty(), "no GPU adapter matches `{only}`; tests/setup.sh installs a software driver");
    names.iter().map(|n| pollster::block_on(Choice::Gpu(n.clone()).open()).unwrap()).collect()
}

fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3f64, |a, b| a.max(b.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance * largest, "{what}[{i}]: {f:e}, expected {e:e} (largest {largest:e})");
    }
}

/// Uniform in [-1, 1), each exactly an f32.
fn random(seed: u64, n: usize) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f64 / (1u64 << 23) as f64 - 1.0) as f32 as f64
    };
    (0..n).map(|_| next()).collect()
}

fn softmax(z: &[f64], t: f64) -> Vec<f64> {
    let high = z.iter().fold(f64::MIN, |a, &b| a.max(b));
    let e: Vec<f64> = z.iter().map(|x| ((x - high) / t).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|x| x / sum).collect()
}

struct Golden(HashMap<String, Vec<f64>>);

impl Golden {
    fn load() -> Golden {
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

    fn get(&self, name: &str) -> &[f64] {
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
    let head = Head { weight: &[weight], vocab: VOCAB };
    let loss = loss(&mut b);
    let fused = fused_head(&mut b.g, hidden, &head, &[loss], 2, true).unwrap();
    let mut found = b.eval(&[fused.loss_rows[0], fused.d_hidden.unwrap()]);
    [std::mem::take(&mut found[0]), std::mem::take(&mut found[1])]
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
        weights: ones(b),
    });
    check("cross_entropy.t1", cross_entropy);
    for t in [1.0, 1.7] {
        let sparse = |b: &mut Bench, target| Loss::SparseKl { target, weights: ones(b) };
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
            let head = Head { weight: Box::leak(Box::new([weight])), vocab: VOCAB };
            Loss::DenseKl { teacher: Live { hidden, head }, temperature: t as f32, weights: ones(b) }
        });
        check(&format!("kl_dense.t{t}"), found);
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
    let head = Head { weight: &[weight], vocab: VOCAB };
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
    let head = Head { weight: &[weight], vocab: VOCAB };
    let labels = b.ints("labels", [ROWS], &golden.ids("labels"));
    let weights = b.floats("ones", [ROWS], &[1.0; ROWS]);
    let live = Live { hidden: teacher, head };
    let e = evaluate_head(&mut b.g, hidden, &head, labels, weights, Some(&live), 2).unwrap();
    let found = b.eval(&[e.nll, e.kld.unwrap(), e.agreement.unwrap()]);
    assert_close("nll", &found[0], golden.get("cross_entropy.t1.value"), 1e-12);
    assert_close("kld", &found[1], golden.get("kl_dense.t1.value"), 1e-12);
    let best = |z: &[f64]| (0..VOCAB).max_by(|&a, &b| z[a].total_cmp(&z[b])).unwrap();
    let rows = golden.get("logits").chunks(VOCAB).zip(golden.get("teacher_logits").chunks(VOCAB));
    let same: Vec<f64> = rows.map(|(a, b)| f64::from(best(a) == best(b))).collect();
    assert!(same.contains(&0.0) && same.contains(&1.0));
    assert_eq!(found[2], same);
}

/// A head in blocks under all three losses with a teacher of another padded size; rows 3 and 8 do not count.
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
    // The teacher knows one token less.
    let live = Live { hidden: teacher, head: Head { weight: &[teacher_weight], vocab: v - 1 } };
    let losses = [
        Loss::CrossEntropy { labels, weights: weights[0] },
        Loss::SparseKl { target, weights: weights[1] },
        Loss::DenseKl { teacher: live, temperature: 1.5, weights: weights[2] },
    ];
    let head = Head { weight: &parts, vocab: v };
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
