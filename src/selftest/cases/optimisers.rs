use crate::graph::Tensor;
use crate::ops::{self, Page8Bit, adamw_8bit::BLOCK};
use crate::selftest::{Case, Setup};

const SIZES: [usize; 4] = [1, 63, 257, 100_003];
/// lr, beta1, beta2, eps, weight decay and the third step's corrections.
const STEP: [f64; 8] = [0.01, 0.9, 0.99, 1e-8, 0.1, 0.271, 0.029701, 0.0];

/// Norm with clip factor, and the step, each value exactly an f32.
fn scalars(s: &mut Setup, factor: f64) -> [Tensor; 2] {
    let norm = s.floats([2], vec![1.0, factor], false);
    [norm, s.floats([8], STEP.map(|x| x as f32 as f64).to_vec(), false)]
}

fn gradients(s: &mut Setup, n: usize, factor: f64) -> Tensor {
    let mut values = s.randoms(n);
    if factor == 0.0 {
        values[n / 2] = f64::NAN;
    }
    s.floats([n], values, false)
}

fn lion(s: &mut Setup, n: usize, factor: f64, decay: bool) {
    let (param, grad, momentum) = (s.fixed([n]), gradients(s, n, factor), s.fixed([n]));
    let [norm, step] = scalars(s, factor);
    let page = ops::lion(&mut s.graph, [param, grad, momentum], decay, norm, step);
    page.into_iter().for_each(|t| s.result(t));
}

fn sgd(s: &mut Setup, n: usize, factor: f64, decay: bool, momentum: bool) {
    let (param, grad) = (s.fixed([n]), gradients(s, n, factor));
    let buffer = momentum.then(|| s.fixed([n]));
    let [norm, step] = scalars(s, factor);
    let page = ops::sgd(&mut s.graph, [param, grad], buffer, decay, norm, step);
    page.into_iter().for_each(|t| s.result(t));
}

/// Codes are compared exactly, so every moment keeps away from the middle between two values of its map, where a
/// rounding decides: gradients that come too near are halved.
fn adamw_8bit(s: &mut Setup, n: usize, factor: f64, decay: bool) {
    let blocks = n.div_ceil(BLOCK);
    let maps: Vec<f64> = ops::dynamic_maps().into_iter().map(f64::from).collect();
    let mut bytes: Vec<u32> = (0..blocks * 512).map(|_| ((s.random() + 1.0) * 128.0) as u32 & 255).collect();
    for (i, byte) in bytes.iter_mut().enumerate() {
        // No padding has moments.
        let element = i / 512 * BLOCK + i % BLOCK;
        *byte = if element < n { *byte } else { 0 };
    }
    let scales: Vec<f64> = (0..2 * blocks).map(|_| (s.random().abs() + 0.1) as f32 as f64).collect();
    let mut grads = s.randoms(n);
    for (block, grads) in grads.chunks_mut(BLOCK).enumerate() {
        let old = &bytes[512 * block..];
        let moments = |g: f64, i: usize| {
            let [m, v] = [maps[((old[i] + 127) & 255) as usize], maps[256 + old[BLOCK + i] as usize]];
            let g = factor * g;
            [0.9 * scales[2 * block] * m + 0.1 * g, 0.99 * scales[2 * block + 1] * v + 0.01 * g * g]
        };
        loop {
            let all: Vec<[f64; 2]> = grads.iter().enumerate().map(|(i, g)| moments(*g, i)).collect();
            let largest = [0, 1].map(|k| all.iter().fold(0f64, |a, m| a.max(m[k].abs())));
            let close = |k: usize, x: f64| {
                let map = &maps[256 * k..][..256];
                let middle = |pair: &[f64]| ((pair[0] + pair[1]) / 2.0 - x).abs() < 1e-5 * x.abs();
                map.windows(2).any(middle)
            };
            let near = |m: &[f64; 2]| (0..2).any(|k| close(k, m[k] / largest[k]));
            if !all.iter().any(near) {
                break;
            }
            grads.iter_mut().zip(&all).filter(|(_, m)| near(m)).for_each(|(g, _)| *g /= 2.0);
        }
    }
    if factor == 0.0 {
        grads[n / 2] = f64::NAN;
    }
    let words = bytes.chunks(4).map(|b| b[0] | b[1] << 8 | b[2] << 16 | b[3] << 24).collect();
    let (param, grad) = (s.fixed([n]), s.floats([n], grads, false));
    let (codes, scales) = (s.ints([blocks * 128], words), s.floats([2 * blocks], scales, false));
    let [norm, step] = scalars(s, factor);
    let maps = s.floats([512], maps, false);
    let page = ops::adamw_8bit(&mut s.graph, Page8Bit { param, grad, codes, scales, decay }, norm, step, maps);
    [page.param, page.grad, page.codes, page.scales].into_iter().for_each(|t| s.result(t));
}

/// (what, t, momentum and previous loss, loss, least t)
type Taid = (&'static str, f64, [f64; 2], f64, f64);

const TAID: [Taid; 7] = [
    ("the first step", 0.4, [0.0, 0.0], 2.0, 0.25),
    ("the first step below the line", 0.4, [0.0, 0.0], 2.0, 0.5),
    ("a falling loss", 0.5, [0.25, 2.0], 1.25, 0.4375),
    ("a rising loss", 0.5, [-0.5, 1.0], 3.5, 0.4375),
    ("below the line", 0.5, [0.5, 1.0], 0.5, 0.75),
    ("near the end", 0.875, [3.0, 1.0], 0.125, 0.5),
    ("a loss that was all but nothing", 0.5, [0.0, 1e-20], 4.0, 0.0),
];

fn taid(s: &mut Setup, (_, t, state, loss, least): Taid) {
    let exact = |x: f64| f64::from(x as f32);
    let mut losses = s.randoms(64);
    losses[37] = loss;
    let at = s.ints([1], vec![37]);
    let (losses, least) = (s.floats([64], losses, false), s.floats([1], vec![exact(least)], false));
    let t = s.floats([1], vec![exact(t)], false);
    let (state, history) = (s.floats([2], state.map(exact).to_vec(), false), s.fixed([64]));
    let rule = ops::TaidStep { end: 0.9, alpha: 0.25, beta: 0.75 };
    let moved = ops::taid_step(&mut s.graph, rule, [t, state, history], losses, at, least);
    moved.into_iter().for_each(|t| s.result(t));
}

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    for row in TAID {
        rows.push(Case::new("taid_step", row.0, move |s| {
            taid(s, row);
            Ok(())
        }));
    }
    // A clip factor of 0 keeps everything but the gradient, which may then hold a NaN.
    for (factor, decay) in [(1.0, true), (0.25, false), (0.0, true)] {
        for n in SIZES {
            let what = format!("{n} parameters, decay {decay}, clip factor {factor}");
            rows.push(Case::new("lion", what.clone(), move |s| {
                lion(s, n, factor, decay);
                Ok(())
            }));
            for momentum in [false, true] {
                rows.push(Case::new("sgd", format!("{what}, momentum {momentum}"), move |s| {
                    sgd(s, n, factor, decay, momentum);
                    Ok(())
                }));
            }
            // Fewer: two roundings of its own a moment, of which each must lead to the same code.
            let n = n.min(2050);
            rows.push(Case::new("adamw_8bit", format!("{n}, decay {decay}, clip factor {factor}"), move |s| {
                adamw_8bit(s, n, factor, decay);
                Ok(())
            }));
        }
    }
    for n in SIZES {
        rows.push(Case::new("ema", format!("{n} parameters"), move |s| {
            let (average, x) = (s.fixed([n]), s.fixed([n]));
            let average = ops::ema(&mut s.graph, average, x, 0.03);
            s.result(average);
            Ok(())
        }));
    }
    rows
}
