use crate::ops;
use crate::selftest::{Case, Setup};

/// Both sides of where the formulas saturate, and far beyond every exponential's range. They are in rows of their own:
/// errors are measured against the largest value.
const SATURATED: [f64; 10] = [0.0, 8.75, 9.25, -8.75, -9.25, 30.0, -30.0, 90.0, -90.0, 100.0];

/// `n` values within +-4, where the curves bend.
fn bent(s: &mut Setup, n: usize) -> Vec<f64> {
    s.randoms(n).into_iter().map(|x| 4.0 * x).collect()
}

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    for n in [1, 3, 257, 100_003] {
        rows.push(Case::new("swiglu", format!("{n} elements"), move |s| {
            let gate = bent(s, n);
            let (gate, up) = (s.floats([n], gate, true), s.float([n]));
            let y = ops::swiglu(&mut s.graph, gate, up);
            s.result(y);
            Ok(())
        }));
        // The slope comes from the capped value: where one element is alone, it must not be near the cap.
        for cap in [8.0, 30.0] {
            rows.push(Case::new("softcap", format!("{n} elements, cap {cap}"), move |s| {
                let x = bent(s, n);
                let x = s.floats([n], x, true);
                let y = ops::scale(&mut s.graph, x, 2.0);
                let y = ops::softcap(&mut s.graph, y, cap);
                s.result(y);
                Ok(())
            }));
        }
        for tanh in [false, true] {
            rows.push(Case::new("gelu", format!("{n} elements, tanh: {tanh}"), move |s| {
                let x = bent(s, n);
                let x = s.floats([n], x, true);
                let y = ops::gelu(&mut s.graph, x, tanh);
                s.result(y);
                Ok(())
            }));
        }
    }
    rows.push(Case::new("swiglu", "saturated", |s| {
        let (gate, up) = (s.floats([2, 5], SATURATED.to_vec(), true), s.float([2, 5]));
        let y = ops::swiglu(&mut s.graph, gate, up);
        s.result(y);
        Ok(())
    }));
    rows.push(Case::new("swiglu", "the same tensor as gate and up", |s| {
        let x = s.float([3, 11]);
        let y = ops::swiglu(&mut s.graph, x, x);
        s.result(y);
        Ok(())
    }));
    for tanh in [false, true] {
        rows.push(Case::new("gelu", format!("saturated, tanh: {tanh}"), move |s| {
            let x = s.floats([2, 5], SATURATED.to_vec(), true);
            let y = ops::gelu(&mut s.graph, x, tanh);
            s.result(y);
            Ok(())
        }));
    }
    rows.push(Case::new("softcap", "saturated, with its gradient in place", |s| {
        let (x, dy) = (s.floats([2, 5], SATURATED.to_vec(), false), s.fixed([2, 5]));
        let (y, dx) = (ops::scale(&mut s.graph, x, 100.0), ops::scale(&mut s.graph, dy, -1.0));
        let y = ops::softcap(&mut s.graph, y, 1.5);
        let dx = ops::softcap_grad(&mut s.graph, y, dx, 1.5);
        s.result(y);
        s.result(dx);
        Ok(())
    }));
    let more_than_one_row_of_groups = 65_536 * 256 + 5;
    rows.push(
        Case::new("swiglu", "more than 65,535 workgroups", move |s| {
            let x = s.fixed([more_than_one_row_of_groups]);
            let y = ops::swiglu(&mut s.graph, x, x);
            let z = ops::gelu(&mut s.graph, y, true);
            s.result(z);
            Ok(())
        })
        .heavy(),
    );
    rows
}
