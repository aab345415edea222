use crate::ops;
use crate::selftest::Case;

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    let pages: [&[usize]; 4] = [&[1], &[4095, 4096, 4097], &[70_001, 3], &[1_200_000]];
    for pages in pages {
        for max_norm in [0.0, 0.5, 1e6] {
            rows.push(Case::new("grad_norm", format!("pages {pages:?}, at most {max_norm}"), move |s| {
                let tensors: Vec<_> = pages.iter().map(|&n| s.fixed([n])).collect();
                let out = s.fixed([2]);
                let out = ops::grad_norm(&mut s.graph, &tensors, max_norm, out);
                s.result(out);
                // The factor by itself: above it is compared relative to the norm.
                let (picks, zero) = (s.floats([2], vec![0.0, 1.0], false), s.floats([1], vec![0.0], false));
                let first = s.ints([1], vec![0]);
                let factor = ops::weighted_sum(&mut s.graph, out, picks, zero, first);
                s.result(factor);
                Ok(())
            }));
        }
    }
    for (what, bad) in [("NaN", f64::NAN), ("infinity", f64::INFINITY), ("a huge gradient", -3e14)] {
        rows.push(Case::new("grad_norm", format!("{what} gives the bad norm and a factor of 0"), move |s| {
            let mut values = s.randoms(9000);
            values[4321] = bad;
            let pages = [s.fixed([100]), s.floats([9000], values, false), s.fixed([5000])];
            let out = s.fixed([2]);
            let out = ops::grad_norm(&mut s.graph, &pages, 1.0, out);
            s.result(out);
            Ok(())
        }));
    }
    rows
}
