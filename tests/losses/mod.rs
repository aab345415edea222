//! The losses against PyTorch's values (tests/golden/losses.safetensors), closed forms and central differences.

mod fused;
mod golden;
mod invariance;
mod live;
mod reference;
mod rows;
mod stored;

use potstill::device::{Choice, Device, adapters};
use potstill::graph::{DType, Graph, Plan, Runner, Store, Tensor, Values, evaluate};
use std::collections::HashMap;

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
            DType::U32 | DType::Packed(_) => {
                numbers(Values::U(pollster::block_on(runner.read_u32(&format!("wanted{i}"))).unwrap()))
            }
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
