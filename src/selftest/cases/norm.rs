use crate::ops;
use crate::selftest::Case;

/// Rows x columns: 1, primes, one and several blocks of rows, more columns than lanes.
const SHAPES: [(usize, usize); 7] = [(1, 1), (1, 7), (5, 128), (17, 129), (7, 576), (130, 31), (1031, 5)];

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    for (n, d) in SHAPES {
        rows.push(Case::new("norm", format!("RMSNorm of {n} x {d}"), move |s| {
            let (x, weight) = (s.float([n, d]), s.float([d]));
            // One column has a gradient only through eps.
            let eps = if d == 1 { 0.25 } else { 1e-5 };
            let y = ops::rms_norm(&mut s.graph, x, weight, eps);
            s.result(y);
            Ok(())
        }));
        rows.push(Case::new("norm", format!("RMSNorm by 1 + weight of {n} x {d}"), move |s| {
            let (x, weight) = (s.float([n, d]), s.float([d]));
            let eps = if d == 1 { 0.25 } else { 1e-5 };
            let y = ops::rms_norm_1p(&mut s.graph, x, weight, eps);
            s.result(y);
            Ok(())
        }));
        // A row of one column has no deviation: its output is the bias, and nothing flows back.
        if d > 1 {
            rows.push(Case::new("norm", format!("LayerNorm of {n} x {d}"), move |s| {
                let (x, weight, bias) = (s.float([1, n, d]), s.float([d]), s.float([d]));
                let y = ops::layer_norm(&mut s.graph, x, weight, Some(bias), 1e-5);
                s.result(y);
                Ok(())
            }));
        }
    }
    rows.push(
        Case::new("norm", "no bias, a fixed weight, a mean far from 0", |s| {
            // The mean costs the f32 input digits before the norm sees it: both sides start from the same f32 values.
            let values = (0..9 * 33).map(|_| (30.0 + s.random()) as f32 as f64).collect();
            let (x, weight) = (s.floats([9, 33], values, true), s.fixed([33]));
            let y = ops::layer_norm(&mut s.graph, x, weight, None, 1e-6);
            s.result(y);
            Ok(())
        })
        // Mean 30 against a deviation of 0.6: 50 times the usual error of a mean.
        .tolerance(5e-5),
    );
    rows.push(Case::new("norm", "a residual stream: two norms' gradients and the stream's own add up", |s| {
        let (x, w1, w2) = (s.float([35, 20]), s.float([20]), s.float([20]));
        let first = ops::rms_norm(&mut s.graph, x, w1, 1e-5);
        let stream = ops::add(&mut s.graph, x, first);
        let second = ops::layer_norm(&mut s.graph, stream, w2, None, 1e-5);
        let third = ops::rms_norm(&mut s.graph, stream, w2, 1e-5);
        let stream = ops::add(&mut s.graph, stream, second);
        let stream = ops::add(&mut s.graph, stream, third);
        s.result(stream);
        Ok(())
    }));
    rows.push(
        Case::new("norm", "more than 65,535 workgroups", |s| {
            let (x, weight) = (s.float([65_539, 2]), s.float([2]));
            let y = ops::rms_norm(&mut s.graph, x, weight, 1e-5);
            s.result(y);
            Ok(())
        })
        .heavy(),
    );
    rows
}
