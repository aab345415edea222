use crate::ops::{self, Layout};
use crate::selftest::Case;

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    for [n, m] in [[1, 1], [3, 257], [67, 5], [130, 129]] {
        for (bias, residual) in [(false, false), (true, false), (false, true), (true, true)] {
            let what = format!("{n}x{m}, bias {bias}, residual {residual}");
            rows.push(Case::new("scale_columns", what, move |s| {
                let (x, factors) = (s.float([n, m]), s.float([m]));
                let (bias, residual) = (bias.then(|| s.float([m])), residual.then(|| s.float([n, m])));
                let y = ops::scale_columns(&mut s.graph, x, factors, bias, residual);
                s.result(y);
                Ok(())
            }));
        }
    }
    for [out, inner, rank] in [[1, 1, 1], [5, 130, 3], [257, 64, 8], [67, 7, 129]] {
        rows.push(Case::new("inverse_norms", format!("{out}x{inner}, rank {rank}"), move |s| {
            let (w, a, b) = (s.fixed([out, inner]), s.fixed([rank, inner]), s.fixed([out, rank]));
            let g = &mut s.graph;
            let (wa, aa) = (ops::matmul(g, Layout::NT, w, a), ops::matmul(g, Layout::NT, a, a));
            let baa = ops::matmul(g, Layout::NN, b, aa);
            let inverse = ops::inverse_norms(g, w, b, [wa, baa], 0.7);
            s.result(inverse);
            Ok(())
        }));
    }
    rows.push(Case::new("inverse_norms", "a row of zeros", |s| {
        let w = s.floats([2, 3], vec![0.0, 0.0, 0.0, 3.0, 0.0, 4.0], false);
        let [b, wa, baa] = [(); 3].map(|()| s.floats([2, 1], vec![0.0, 0.0], false));
        let inverse = ops::inverse_norms(&mut s.graph, w, b, [wa, baa], 2.0);
        s.result(inverse);
        Ok(())
    }));
    rows
}
