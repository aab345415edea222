use crate::ops;
use crate::selftest::Case;

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    for (what, factor) in
        [("as it is", 1.0), ("tiny", 2f64.powi(-80)), ("subnormal", 2f64.powi(-140)), ("huge", 2f64.powi(120))]
    {
        for n in [1, 300, 4096, 10_001] {
            // Powers of two are exact: no tolerance.
            let row = Case::new("f16_scale", format!("{n} elements, {what}"), move |s| {
                let values = s.randoms(n).into_iter().map(|x| (x * factor) as f32 as f64).collect();
                let x = s.floats([n], values, false);
                let scale = ops::f16_scale(&mut s.graph, x);
                s.result(scale);
                Ok(())
            });
            rows.push(row.tolerance(0.0));
        }
    }
    let row = Case::new("f16_scale", "zeros", |s| {
        let x = s.floats([5], vec![0.0; 5], false);
        let scale = ops::f16_scale(&mut s.graph, x);
        s.result(scale);
        Ok(())
    });
    rows.push(row.tolerance(0.0));
    rows
}
