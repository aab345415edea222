//! Ten steps of each optimiser against torch, closed forms in f64, and the error that quantisation allows.

use crate::common::gpus;
use potstill::device::Device;
use potstill::graph::{Graph, Store};
use potstill::optim::{Group, Optimiser, RING_AT, Rule, Settings};

/// Two groups: `a`, a matrix that decays, and `b`, a vector at half the rate.
struct Toy {
    store: Store,
    optimiser: Optimiser,
    sizes: [usize; 2],
}

const STEPS: u64 = 10;
const RATE: f64 = 0.05;

impl Toy {
    fn new(device: &Device, settings: Settings, sizes: [usize; 2]) -> Toy {
        let group = |label: &str, name: &str, shape, decay, rate| {
            let params = vec![(name.to_owned(), shape)];
            Group { label: label.into(), params, decay, rate }
        };
        let groups = [
            group("decay", "a", [1, sizes[0]].into(), true, 1.0),
            group("plain*0.5", "b", [sizes[1]].into(), false, 0.5),
        ];
        let mut store = Store::new(device);
        for group in &groups {
            store.arena(&group.label, &group.params).unwrap();
        }
        store.write("a", &values(sizes[0], f64::sin)).unwrap();
        store.write("b", &values(sizes[1], f64::cos)).unwrap();
        let optimiser = Optimiser::new(settings, &mut store, &groups).unwrap();
        store.write(RING_AT, &[0u32]).unwrap();
        Toy { store, optimiser, sizes }
    }

    fn step(&mut self, t: u64, gradients: [&dyn Fn(f64) -> f64; 2]) {
        for ((name, n), gradient) in ["a", "b"].into_iter().zip(self.sizes).zip(gradients) {
            self.store.write(&Graph::grad_name(name), &values(n, gradient)).unwrap();
        }
        self.optimiser.update(&self.store, t, RATE).unwrap();
    }

    fn read(&self, name: &str) -> Vec<f64> {
        pollster::block_on(self.store.read_f32(name)).unwrap().into_iter().map(f64::from).collect()
    }
}

fn values(n: usize, f: impl Fn(f64) -> f64) -> Vec<f32> {
    (0..n).map(|i| f(i as f64) as f32).collect()
}

fn settings(rule: Rule) -> Settings {
    Settings { rule, weight_decay: 0.1, max_grad_norm: 1.0, ema_decay: 0.0 }
}

fn devices() -> Vec<Device> {
    [vec![Device::cpu()], gpus()].concat()
}

/// Small and large in turn, so that some steps are clipped and some are not.
fn amplitude(t: u64) -> f64 {
    if t < 4 { 0.2 } else { 2.0 }
}

fn assert_near(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < tolerance, "{what}[{i}]: {found} for {expected}");
    }
}

#[test]
fn ten_clipped_steps_of_sgd_end_where_torch_ends() {
    // torch 2 in f64: SGD with lr 0.05 and weight decay 0.1 for a, 0.025 and none for b, clip_grad_norm_ at 1.
    let cases = [
        (
            0.0,
            [-0.004932082792536729, 0.8086660618827543, 0.8532719243236951, 0.14879475038308737, -0.7370889119919224],
            [1.012225600043534, 0.5285495954453077, -0.4051022463240331],
        ),
        (
            0.9,
            [-0.006085213295456199, 0.6825824995521448, 0.719978251917287, 0.1237479648747226, -0.6186173643331117],
            [1.0070920029695931, 0.5338454317054789, -0.41045432557168066],
        ),
    ];
    for device in devices() {
        for (momentum, a, b) in cases {
            let mut toy = Toy::new(&device, settings(Rule::Sgd { momentum }), [5, 3]);
            for t in 1..=STEPS {
                let angle = |i: f64| t as f64 + 3.0 * i;
                toy.step(t, [&|i| angle(i).sin() * amplitude(t), &|i| angle(i).cos() * amplitude(t)]);
            }
            // Ten f32 steps of less than 0.5 from values below 1.
            assert_near(&toy.read("a"), &a, 2e-6, "a");
            assert_near(&toy.read("b"), &b, 2e-6, "b");
            assert_eq!(toy.read("grad:a"), [0.0; 5]);
        }
    }
}

#[test]
fn ten_steps_of_lion_follow_its_program() {
    let (beta1, beta2) = (0.9, 0.99);
    for device in devices() {
        let mut toy = Toy::new(&device, settings(Rule::Lion { beta1, beta2 }), [300, 7]);
        let mut exact: Vec<(f64, f64)> = toy.read("a").into_iter().chain(toy.read("b")).map(|x| (x, 0.0)).collect();
        for t in 1..=STEPS {
            let gradient = |i: f64| (t as f64 + 3.0 * i).sin() * amplitude(t);
            toy.step(t, [&gradient, &gradient]);
            let all: Vec<f64> = values(300, gradient).into_iter().chain(values(7, gradient)).map(f64::from).collect();
            let norm = all.iter().map(|g| g * g).sum::<f64>().sqrt();
            let clip = (1.0 / (norm + 1e-6)).min(1.0);
            for (i, ((x, m), g)) in exact.iter_mut().zip(&all).enumerate() {
                let (rate, decay) = if i < 300 { (RATE, 0.1) } else { (RATE / 2.0, 0.0) };
                let direction = beta1 * *m + (1.0 - beta1) * clip * g;
                assert!(direction.abs() > 1e-8, "a sign that a rounding decides");
                *x = *x * (1.0 - rate * decay) - rate * direction.signum();
                *m = beta2 * *m + (1.0 - beta2) * clip * g;
            }
        }
        let (a, b) = exact.split_at(300);
        let params = |part: &[(f64, f64)]| part.iter().map(|(x, _)| *x).collect::<Vec<_>>();
        assert_near(&toy.read("a"), &params(a), 2e-6, "a");
        assert_near(&toy.read("b"), &params(b), 2e-6, "b");
        assert_near(&toy.read("m:a"), &a.iter().map(|(_, m)| *m).collect::<Vec<_>>(), 1e-6, "m");
    }
}

/// Half of the widest gap between neighbours of the signed map and of the unsigned one: 0.9 / 64 / 2 and 0.9 / 128 / 2.
const QUANTUM: [f64; 2] = [0.9 / 128.0, 0.9 / 256.0];

/// An element's exact AdamW beside a bound of how far the quantised one may be off.
#[derive(Clone, Default)]
struct Bounded {
    x: f64,
    m: f64,
    v: f64,
    off: f64,
}

#[test]
fn adamw_in_8_bits_stays_within_the_error_that_its_maps_allow() {
    let (beta1, beta2, epsilon) = (0.9, 0.95, 1e-8);
    let rule = Rule::AdamW { beta1, beta2, epsilon, eight_bit: true };
    for device in devices() {
        // Two blocks and a part of one; the vector keeps 32 bits.
        let n = 600;
        let mut toy = Toy::new(&device, Settings { max_grad_norm: 0.0, ..settings(rule) }, [n, 3]);
        let start = toy.read("a");
        let mut exact: Vec<Bounded> = start.iter().map(|&x| Bounded { x, ..Bounded::default() }).collect();
        // Bounds of the moments' errors, before they are encoded.
        let (mut em, mut ev) = (0.0, 0.0);
        let (mut largest_m, mut largest_v) = (0.0, 0.0);
        for t in 1..=STEPS {
            let gradient = |i: f64| like_sized(t, i);
            toy.step(t, [&gradient, &gradient]);
            em = beta1 * (em + QUANTUM[0] * (largest_m + em));
            ev = beta2 * (ev + QUANTUM[1] * (largest_v + ev));
            let [c1, c2] = [beta1, beta2].map(|beta: f64| 1.0 - beta.powf(t as f64));
            for (e, g) in exact.iter_mut().zip(values(n, gradient)) {
                let g = f64::from(g);
                e.m = beta1 * e.m + (1.0 - beta1) * g;
                e.v = beta2 * e.v + (1.0 - beta2) * g * g;
                let root = |v: f64| (v / c2).sqrt() + epsilon;
                e.x = e.x * (1.0 - RATE * 0.1) - RATE * e.m / c1 / root(e.v);
                let low = root((e.v - ev).max(0.0));
                e.off += RATE / c1 * (em / low + e.m.abs() * (1.0 / low - 1.0 / root(e.v)));
            }
            largest_m = exact.iter().fold(0.0, |a, e| e.m.abs().max(a));
            largest_v = exact.iter().fold(0.0, |a, e| e.v.max(a));
        }
        let found = toy.read("a");
        let (mut moved, mut off, mut allowed) = (0.0, 0.0, 0.0);
        for ((found, e), start) in found.iter().zip(&exact).zip(start) {
            assert!((found - e.x).abs() <= e.off + 2e-6, "{found} for {} within {}", e.x, e.off);
            moved += (e.x - start).abs();
            off += (found - e.x).abs();
            allowed += e.off;
        }
        // The bound says something, and the moments are quantised indeed.
        assert!(allowed < moved / 4.0 && off > 1e-4 * moved, "off by {off} of {moved}, {allowed} allowed");
        // Where nothing is quantised: exactly AdamW.
        let mut plain = Toy::new(&device, Settings { max_grad_norm: 0.0, ..settings(rule32(rule)) }, [n, 3]);
        for t in 1..=STEPS {
            let gradient = |i: f64| like_sized(t, i);
            plain.step(t, [&gradient, &gradient]);
        }
        assert_eq!(toy.read("b"), plain.read("b"));
        assert_near(&plain.read("a"), &exact.iter().map(|e| e.x).collect::<Vec<_>>(), 2e-6, "AdamW");
    }
}

/// Gradients of like size and of either sign, so that no second moment is small beside its block's largest.
fn like_sized(t: u64, i: f64) -> f64 {
    let sign = if (i as u64).is_multiple_of(2) { 1.0 } else { -1.0 };
    sign * (0.75 + 0.25 * (t as f64 + i).sin())
}

fn rule32(rule: Rule) -> Rule {
    match rule {
        Rule::AdamW { beta1, beta2, epsilon, .. } => Rule::AdamW { beta1, beta2, epsilon, eight_bit: false },
        other => other,
    }
}

#[test]
fn the_average_follows_its_recursion_and_changes_places_with_the_weights() {
    let decay = 0.7;
    for device in devices() {
        let settings = Settings { ema_decay: decay, ..settings(Rule::Sgd { momentum: 0.0 }) };
        let mut toy = Toy::new(&device, settings, [5, 3]);
        let mut average = toy.read("a");
        assert_eq!(toy.read("ema:a"), average, "it starts at the first weights");
        for t in 1..=STEPS {
            toy.step(t, [&|i| (t as f64 + i).sin(), &|i| i]);
            average.iter_mut().zip(toy.read("a")).for_each(|(a, x)| *a = decay * *a + (1.0 - decay) * x);
        }
        // Ten roundings of values below 1.
        assert_near(&toy.read("ema:a"), &average, 1e-6, "average");
        let (weights, average) = (toy.read("a"), toy.read("ema:a"));
        toy.optimiser.exchange_average(&toy.store).unwrap();
        assert_eq!((toy.read("a"), toy.read("ema:a")), (average.clone(), weights.clone()));
        toy.optimiser.exchange_average(&toy.store).unwrap();
        assert_eq!((toy.read("a"), toy.read("ema:a")), (weights, average));
    }
}

#[test]
fn a_gradient_that_is_not_finite_leaves_weights_and_state() {
    let rules = [
        Rule::AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, eight_bit: true },
        Rule::Lion { beta1: 0.9, beta2: 0.99 },
        Rule::Sgd { momentum: 0.9 },
        Rule::Sgd { momentum: 0.0 },
    ];
    for device in devices() {
        for rule in rules {
            let mut toy = Toy::new(&device, settings(rule), [300, 7]);
            toy.step(1, [&|i| i.sin(), &|i| i.cos()]);
            let names: Vec<String> = toy.optimiser.state().iter().map(|(name, _)| name.clone()).collect();
            let all = |toy: &Toy| -> Vec<Vec<u32>> {
                let bits = |name: &str| pollster::block_on(toy.store.read_u32(name)).unwrap();
                ["a", "b"].into_iter().chain(names.iter().map(String::as_str)).map(bits).collect()
            };
            let before = all(&toy);
            toy.step(2, [&|i| if i == 17.0 { f64::NAN } else { 0.1 }, &|_| 1.0]);
            assert_eq!(all(&toy), before, "{rule:?}");
            assert_eq!(toy.read("grad:a"), [0.0; 300]);
        }
    }
}

#[test]
fn state_takes_what_the_plan_says() {
    let adamw = |eight_bit| Rule::AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, eight_bit };
    // Bytes beside the parameters and their gradients, for a page of 256 x 300 and one of 512.
    let cases = [
        (adamw(false), 8 * (76_800 + 512)),
        (adamw(true), 2 * 76_800 + 8 * 300 + 8 * 512),
        (Rule::Lion { beta1: 0.9, beta2: 0.99 }, 4 * (76_800 + 512)),
        (Rule::Sgd { momentum: 0.9 }, 4 * (76_800 + 512)),
        (Rule::Sgd { momentum: 0.0 }, 0),
    ];
    for (rule, state) in cases {
        for ema_decay in [0.0, 0.9] {
            let settings = Settings { ema_decay, ..settings(rule) };
            let toy = Toy::new(&Device::cpu(), settings, [76_800, 512]);
            let average = if ema_decay > 0.0 { 4 * (76_800 + 512) } else { 0 };
            let held: usize = toy.optimiser.state().iter().map(|(_, shape)| 4 * shape.numel()).sum();
            assert_eq!(held, state + average, "{rule:?}");
            let planned = settings.bytes(76_800, true) + settings.bytes(512, false);
            assert_eq!(planned as usize, held + 4 * (76_800 + 512), "{rule:?}");
        }
    }
}
