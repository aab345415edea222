use crate::device::Precision;
use crate::graph::Tensor;
use crate::ops::{self, Layout, View};
use crate::selftest::{Case, Setup};

const LAYOUTS: [Layout; 3] = [Layout::NN, Layout::NT, Layout::TN];

/// Operands of a product M x N x K in a layout.
fn operands(s: &mut Setup, layout: Layout, [m, n, k]: [usize; 3]) -> [Tensor; 2] {
    let a = s.float(if layout == Layout::TN { [k, m] } else { [m, k] });
    let b = s.float(if layout == Layout::NT { [n, k] } else { [k, n] });
    [a, b]
}

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    let sizes =
        [[1, 1, 1], [1, 37, 5], [4, 67, 129], [5, 3, 2], [64, 64, 16], [65, 63, 17], [97, 101, 103], [2, 130, 1]];
    for layout in LAYOUTS {
        for [m, n, k] in sizes {
            rows.push(Case::new("matmul", format!("{layout:?} {m}x{n}x{k}"), move |s| {
                let [a, b] = operands(s, layout, [m, n, k]);
                let c = ops::matmul(&mut s.graph, layout, a, b);
                s.result(c);
                Ok(())
            }));
        }
        rows.push(Case::new("matmul", format!("{layout:?}, many large tiles"), move |s| {
            let [a, b] = operands(s, layout, [700, 790, 33]);
            let c = ops::matmul(&mut s.graph, layout, a, b);
            s.result(c);
            Ok(())
        }));
        rows.push(Case::new("matmul", format!("{layout:?}, a batch of 5"), move |s| {
            let (m, n, k) = (19, 35, 21);
            let a = s.float(if layout == Layout::TN { [5, k, m] } else { [5, m, k] });
            let b = s.float(if layout == Layout::NT { [5, n, k] } else { [5, k, n] });
            let c = ops::matmul(&mut s.graph, layout, a, b);
            s.result(c);
            Ok(())
        }));
        rows.push(Case::new("matmul", format!("{layout:?} of a few rows and columns of larger tensors"), move |s| {
            let (a, b) = (s.float([70, 60]), s.float([60, 50]));
            let (a, b) = match layout {
                Layout::NN => (View::rows_of(a, 11..51), View::cols_of(b, 9..46)),
                Layout::NT => (View::cols_of(a, 7..57), View::rows_of(b, 8..58)),
                Layout::TN => (View::rows_of(a, 10..70), View::cols_of(b, 9..46)),
            };
            let c = ops::matmul(&mut s.graph, layout, a, b);
            s.result(c);
            Ok(())
        }));
        for accumulate in [false, true] {
            let verb = if accumulate { "added to" } else { "written into" };
            rows.push(Case::new("matmul", format!("{layout:?} {verb} columns of a tensor"), move |s| {
                let (a, b, c) = (s.fixed([23, 23]), s.fixed([23, 23]), s.fixed([23, 70]));
                let c = ops::matmul_into(&mut s.graph, layout, a, b, View::cols_of(c, 40..63), accumulate);
                s.result(c);
                Ok(())
            }));
        }
    }
    rows.push(Case::new("matmul", "heads interleaved in a row: a strided batch, both ways", |s| {
        // x is [time, heads * size]; the products run per head, as views with a batch stride of `size`.
        let (time, heads, size) = (33, 3, 8);
        let x = s.float([time, heads * size]);
        let y = s.float([time, heads * size]);
        let per_head = |tensor| View {
            tensor,
            offset: 0,
            batch: heads,
            batch_stride: size,
            rows: time,
            cols: size,
            stride: heads * size,
            scale: None,
        };
        let scores = ops::matmul(&mut s.graph, Layout::NT, per_head(x), per_head(y));
        s.result(scores);
        let (fixed, out) = (s.fixed([heads, time, size]), s.fixed([time, heads * size]));
        let square = s.fixed([heads, time, time]);
        let back = ops::matmul_into(&mut s.graph, Layout::NN, square, fixed, per_head(out), false);
        s.result(back);
        Ok(())
    }));
    rows.push(Case::new("matmul", "one tensor as both operands", |s| {
        let a = s.float([30, 20]);
        let c = ops::matmul(&mut s.graph, Layout::NT, a, a);
        s.result(c);
        Ok(())
    }));
    for (bias, residual) in [(false, false), (true, false), (false, true), (true, true)] {
        for shape in [[2, 3, 37], [9, 20, 37], [1, 1, 37]] {
            let what = format!("linear of {shape:?}, bias {bias}, residual {residual}");
            rows.push(Case::new("matmul", what, move |s| {
                let (x, w) = (s.float(shape), s.float([50, 37]));
                let bias = bias.then(|| s.float([50]));
                let residual = residual.then(|| s.float([shape[0], shape[1], 50]));
                let y = ops::linear(&mut s.graph, x, w, bias, residual);
                s.result(y);
                Ok(())
            }));
        }
    }
    rows.push(Case::new("matmul", "weights used twice and a residual of the input gather gradients in place", |s| {
        let (x, w, bias) = (s.float([70, 24]), s.float([24, 24]), s.float([24]));
        let h = ops::linear(&mut s.graph, x, w, Some(bias), Some(x));
        let y = ops::linear(&mut s.graph, h, w, Some(bias), Some(h));
        s.result(y);
        Ok(())
    }));
    rows.extend(in_fours());
    rows.extend(half());
    rows.push(
        Case::new("matmul", "more than 65,535 workgroups", |s| {
            let (x, w) = (s.fixed([1, 3]), s.fixed([600_011, 3]));
            let y = ops::linear(&mut s.graph, x, w, None, None);
            s.result(y);
            let (a, b) = (s.fixed([1, 1]), s.fixed([1, 2_200_003]));
            let c = ops::matmul(&mut s.graph, Layout::NN, a, b);
            s.result(c);
            Ok(())
        })
        .heavy(),
    );
    rows
}

/// Rows and columns in multiples of four, around the edges of every tile.
fn in_fours() -> impl Iterator<Item = Case> {
    let sizes = [[8, 4, 4], [68, 36, 20], [132, 260, 44], [100, 64, 96]];
    LAYOUTS.into_iter().flat_map(move |layout| {
        sizes.into_iter().map(move |[m, n, k]| {
            Case::new("matmul", format!("{layout:?} {m}x{n}x{k} added to columns, in fours"), move |s| {
                let [a, b] = operands(s, layout, [m, n, k]);
                let c = ops::matmul(&mut s.graph, layout, a, b);
                s.result(c);
                let factors = [(m, k, Layout::TN), (k, n, Layout::NT)];
                let [a, b] = factors
                    .map(|(rows, cols, turned)| s.fixed(if layout == turned { [cols, rows] } else { [rows, cols] }));
                let into = s.fixed([m, n + 12]);
                let sum = ops::matmul_into(&mut s.graph, layout, a, b, View::cols_of(into, 8..8 + n), true);
                s.result(sum);
                Ok(())
            })
        })
    })
}

/// Products of factors rounded to f16. Each factor is off by 2^-11 of itself at most, so each term of a sum by 2^-10; the
/// rest is f32's.
fn half() -> Vec<Case> {
    const TOLERANCE: f64 = 1.0 / 1024.0;
    let mut rows = Vec::new();
    for layout in LAYOUTS {
        for [m, n, k] in [[36, 40, 32], [132, 260, 100], [64, 128, 128], [33, 35, 37]] {
            let row = Case::new("matmul", format!("{layout:?} {m}x{n}x{k} of f16 factors"), move |s| {
                s.graph.set_precision(Precision::F16);
                let [a, b] = operands(s, layout, [m, n, k]);
                let c = ops::matmul(&mut s.graph, layout, a, b);
                s.result(c);
                Ok(())
            });
            rows.push(row.tolerance(TOLERANCE));
        }
    }
    // Gradients around 1e-9 and 1e9: without a scale, f16 has nothing left of the first and no place for the second.
    for size in [1e-9f32, 1e9] {
        let row = Case::new("matmul", format!("linear of f16 factors, gradients around {size:e}"), move |s| {
            s.graph.set_precision(Precision::F16);
            let (x, w) = (s.float([72, 64]), s.float([48, 64]));
            let (bias, residual) = (s.float([48]), s.float([72, 48]));
            let y = ops::linear(&mut s.graph, x, w, Some(bias), Some(residual));
            let small = ops::scale(&mut s.graph, y, size);
            s.result(small);
            Ok(())
        });
        rows.push(row.tolerance(TOLERANCE));
    }
    rows
}
