//! The ops of a training step, forward and backward, at the shapes of SmolLM2-135M and of a 30M student.

use crate::head;
use potstill::Result;
use potstill::device::Device;
use potstill::ops::{self, Layout, Ranges};
use potstill::selftest::{Case, Setup, time_on};
use serde_json::{Value, json};

/// Rows of a batch.
const ROWS: usize = 512;

/// Width, MLP width, heads, key/value heads, channels of a head.
type Model = (&'static str, usize, usize, usize, usize, usize);
const MODELS: [Model; 2] = [("SmolLM2-135M", 576, 1536, 9, 3, 64), ("30M", 384, 1024, 6, 2, 64)];

/// Time, rate and bytes a second of each.
pub fn measure(device: &Device) -> Result<Value> {
    // A software rasteriser would take minutes for what it is not made for.
    let rows = if device.caps().software { ROWS / 4 } else { ROWS };
    let mut found = Vec::new();
    for model in MODELS {
        for (what, case) in cases(model, rows) {
            let timing = time_on(device, &case)?;
            let rate = |amount: u64| amount as f64 / timing.seconds * 1e-9;
            found.push(json!({
                "model": model.0, "what": what, "shape": case.what, "seconds": timing.seconds,
                "gflops": rate(timing.flops), "gbps": rate(timing.bytes),
            }));
        }
        found.extend(head::measure(device, model.0, rows, model.1)?);
    }
    Ok(json!({ "rows": found }))
}

fn cases((_, width, inner, heads, kv, channels): Model, rows: usize) -> Vec<(&'static str, Case)> {
    let linear = |what: &'static str, from: usize, to: usize| {
        let case = Case::new("matmul", format!("{rows} x {from} x {to}"), move |s| {
            let (x, w) = (s.float([rows, from]), s.float([to, from]));
            let y = ops::linear(&mut s.graph, x, w, None, None);
            s.result(y);
            Ok(())
        });
        (what, case)
    };
    let elementwise = |what: &'static str, cols: usize, build: fn(&mut Setup, [usize; 2])| {
        let case = Case::new("", format!("{rows} x {cols}"), move |s| {
            build(s, [rows, cols]);
            Ok(())
        });
        (what, case)
    };
    vec![
        linear("attention's output projection", width, width),
        linear("MLP up", width, inner),
        linear("MLP down", inner, width),
        ("a chunk of the head, forward", chunk_of_head(width)),
        ("attention", attention(rows, heads, kv, channels)),
        elementwise("RMSNorm", width, |s, [n, d]| {
            let (x, weight) = (s.float([n, d]), s.float([d]));
            let y = ops::rms_norm(&mut s.graph, x, weight, 1e-5);
            s.result(y);
        }),
        elementwise("SwiGLU", inner, |s, shape| {
            let (gate, up) = (s.float(shape), s.float(shape));
            let y = ops::swiglu(&mut s.graph, gate, up);
            s.result(y);
        }),
        elementwise("residual sum", width, |s, shape| {
            let (x, y) = (s.float(shape), s.float(shape));
            let sum = ops::add(&mut s.graph, x, y);
            s.result(sum);
        }),
        ("AdamW", adamw(4_000_000)),
    ]
}

/// 64 rows of logits over SmolLM2's vocabulary.
fn chunk_of_head(width: usize) -> Case {
    let vocabulary = 49_152;
    Case::new("matmul", format!("64 x {width} x {vocabulary}"), move |s| {
        let (x, w) = (s.fixed([64, width]), s.fixed([vocabulary, width]));
        let z = ops::matmul(&mut s.graph, Layout::NT, x, w);
        s.result(z);
        Ok(())
    })
}

fn attention(rows: usize, heads: usize, kv: usize, channels: usize) -> Case {
    Case::new("attention", format!("{rows} rows, {heads} heads over {kv} of {channels}"), move |s| {
        let (n, all) = (rows, rows as u32);
        let query = s.ints([n, 2], (0..all).flat_map(|row| [0, row + 1]).collect());
        let key = s.ints([n, 2], (0..all).flat_map(|row| [row, all]).collect());
        let [q, k, v] = [heads, kv, kv].map(|heads| s.float([n, heads, channels]));
        let ranges = Ranges { query, key: Some(key) };
        let o = ops::attention(&mut s.graph, q, k, v, ranges, 1.0 / (channels as f32).sqrt(), 0.0);
        s.result(o);
        Ok(())
    })
}

fn adamw(n: usize) -> Case {
    Case::new("adamw", format!("{n} parameters"), move |s| {
        let [param, grad, m, v] = [(); 4].map(|()| s.fixed([n]));
        let norm_and_clip = s.floats([2], vec![1.0, 1.0], false);
        // v may be negative here: its root is then NaN, which takes no longer.
        let step = [0.0, 0.9, 0.999, 1e-8, 0.0, 0.1, 0.001, 0.0].map(|x: f64| f64::from(x as f32));
        let step = s.floats([8], step.to_vec(), false);
        let page = ops::adamw(&mut s.graph, ops::Page { param, grad, m, v, decay: true }, norm_and_clip, step);
        s.result(page.grad);
        Ok(())
    })
}
