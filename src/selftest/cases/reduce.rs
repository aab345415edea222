use crate::ops;
use crate::selftest::Case;

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    for [n, m] in [[1, 1], [1, 70], [64, 3], [65, 64], [1000, 129], [100_003, 2]] {
        rows.push(Case::new("reduce", format!("sums of the columns of {n}x{m}, new and added"), move |s| {
            let (x, into) = (s.fixed([n, m]), s.fixed([m]));
            let sums = ops::sum_rows(&mut s.graph, x);
            s.result(sums);
            let added = ops::sum_rows_into(&mut s.graph, x, into);
            s.result(added);
            Ok(())
        }));
    }
    for n in [1, 255, 257, 10_007] {
        rows.push(Case::new("reduce", format!("weighted sum of {n}"), move |s| {
            let (values, weights, into) = (s.fixed([n]), s.fixed([n]), s.fixed([1]));
            let sum = ops::weighted_sum(&mut s.graph, values, weights, into);
            s.result(sum);
            Ok(())
        }));
    }
    rows.push(
        Case::new("reduce", "more than 65,535 workgroups", |s| {
            let x = s.fixed([1, 65_600 * 64]);
            let sums = ops::sum_rows(&mut s.graph, x);
            s.result(sums);
            Ok(())
        })
        .heavy(),
    );
    rows
}
