use crate::ops::{self, Page};
use crate::selftest::{Case, Setup};

/// Updates a page of `n` once and compares all four tensors.
fn update(s: &mut Setup, n: usize, gradients: Vec<f64>, factor: f64, decay: bool) {
    let squares = s.randoms(n).iter().map(|x| (x * x) as f32 as f64).collect();
    let (param, grad) = (s.fixed([n]), s.floats([n], gradients, false));
    let (m, v) = (s.fixed([n]), s.floats([n], squares, false));
    let norm_and_clip = s.floats([2], vec![1.0, factor], false);
    // Third step; every value exactly an f32.
    let step = [0.01, 0.9, 0.99, 1e-8, 0.1, 1.0 - 0.9f64.powi(3), 1.0 - 0.99f64.powi(3), 0.0];
    let step = s.floats([8], step.map(|x: f64| x as f32 as f64).to_vec(), false);
    let page = ops::adamw(&mut s.graph, Page { param, grad, m, v, decay }, norm_and_clip, step);
    [page.param, page.grad, page.m, page.v].into_iter().for_each(|t| s.result(t));
}

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    for n in [1, 63, 257, 100_003] {
        for (factor, decay) in [(1.0, true), (0.25, false)] {
            rows.push(Case::new("adamw", format!("{n} parameters, decay {decay}, clip factor {factor}"), move |s| {
                let gradients = s.randoms(n);
                update(s, n, gradients, factor, decay);
                Ok(())
            }));
        }
    }
    rows.push(Case::new("adamw", "a clip factor of 0 keeps everything but the gradient, which may be NaN", |s| {
        let mut gradients = s.randoms(1000);
        gradients[17] = f64::NAN;
        update(s, 1000, gradients, 0.0, true);
        Ok(())
    }));
    rows
}
