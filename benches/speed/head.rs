//! The head with its losses beside the three matrix products inside: what everything else in it costs.

use potstill::Result;
use potstill::device::Device;
use potstill::graph::{DType, Graph, Plan, Runner, Store, Tensor};
use potstill::losses::{Head, Loss, chunk_rows, fused_head};
use potstill::ops::{self, Layout, Smoothing, View};
use serde_json::{Value, json};
use std::time::Instant;

const VOCABULARY: usize = 49_152;
/// Runs; the best counts, for both.
const RUNS: usize = 5;

/// Rows of the table of kernels: the head with cross-entropy, forward and backward, and its products alone.
pub fn measure(device: &Device, model: &str, rows: usize, width: usize) -> Result<[Value; 2]> {
    let mut runners = [record(device, rows, width, false)?, record(device, rows, width, true)?];
    let mut least = [f64::INFINITY; 2];
    for _ in 0..RUNS {
        for (runner, least) in runners.iter_mut().zip(&mut least) {
            *least = least.min(time(runner)?);
        }
    }
    let flops = 6.0 * (rows * width * VOCABULARY) as f64;
    let row = |what: &str, seconds: f64| {
        let shape = format!("{rows} x {width} x {VOCABULARY}");
        json!({ "model": model, "what": what, "shape": shape, "seconds": seconds, "gflops": flops / seconds * 1e-9 })
    };
    let whole = format!("the head with cross-entropy, {:.2} times its products", least[0] / least[1]);
    Ok([row(&whole, least[0]), row("the head's products alone", least[1])])
}

fn time(runner: &mut Runner) -> Result<f64> {
    let start = Instant::now();
    runner.run()?;
    pollster::block_on(runner.read_f32("probe"))?;
    Ok(start.elapsed().as_secs_f64())
}

/// Hidden states and a trained head, both zeros: the work is the same.
fn record(device: &Device, rows: usize, width: usize, products_only: bool) -> Result<Runner> {
    let mut g = Graph::new();
    let hidden = g.external("hidden", [rows, width], DType::F32);
    g.require_grad(hidden);
    let weight = g.param("weight", [VOCABULARY, width], true);
    let mut store = Store::new(device);
    for (name, shape) in [("hidden", hidden.shape), ("weight", weight.shape), ("weights", [rows].into())] {
        store.add(name, shape, DType::F32)?;
    }
    store.add(&Graph::grad_name("weight"), weight.shape, DType::F32)?;
    store.add("labels", [rows], DType::U32)?;
    let height = chunk_rows(VOCABULARY, device.caps());
    let d_hidden = if products_only {
        products(&mut g, hidden, weight, height)
    } else {
        let labels = g.external("labels", [rows], DType::U32);
        let weights = g.external("weights", [rows], DType::F32);
        store.write("weights", &vec![1.0f32 / rows as f32; rows])?;
        let loss = Loss::CrossEntropy { labels, smoothing: Smoothing::default(), weights };
        let head = Head { weight: &[weight], vocab: VOCABULARY, softcap: None };
        fused_head(&mut g, hidden, &head, &[loss], height, true)?.d_hidden.unwrap_or(hidden)
    };
    let probe = ops::columns(&mut g, d_hidden, 0..1);
    g.output("probe", probe);
    Runner::new(Plan::new(&g)?, &store, &mut Vec::new())
}

/// Logits, and from them, as if they were their own gradient, both gradients; chunk by chunk as the head does it.
fn products(g: &mut Graph, hidden: Tensor, weight: Tensor, height: usize) -> Tensor {
    let rows = hidden.shape[0];
    let mut d_hidden = ops::zeros(g, hidden.shape);
    for start in (0..rows).step_by(height) {
        let chunk = start..(start + height).min(rows);
        let x = View::rows_of(hidden, chunk.clone());
        let z = ops::matmul(g, Layout::NT, x, weight);
        d_hidden = ops::matmul_into(g, Layout::NN, z, weight, View::rows_of(d_hidden, chunk), false);
        if let Some(own) = g.grad_in_place(weight) {
            let sum = ops::matmul_into(g, Layout::TN, z, x, own, true);
            g.set_grad(weight, sum);
        }
    }
    d_hidden
}
