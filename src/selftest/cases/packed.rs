use crate::device::Precision;
use crate::formats::{Dtype, Quant};
use crate::ops::{self, View};
use crate::selftest::Case;

/// Every type that stays as it is stored.
const STORED: [Dtype; 12] = [
    Dtype::F16,
    Dtype::Bf16,
    Dtype::Quant(Quant::Q4_0),
    Dtype::Quant(Quant::Q4_1),
    Dtype::Quant(Quant::Q5_0),
    Dtype::Quant(Quant::Q5_1),
    Dtype::Quant(Quant::Q8_0),
    Dtype::Quant(Quant::Q2_K),
    Dtype::Quant(Quant::Q3_K),
    Dtype::Quant(Quant::Q4_K),
    Dtype::Quant(Quant::Q5_K),
    Dtype::Quant(Quant::Q6_K),
];

/// Products of f16 factors: each is off by 2^-11 of itself at most, so each term of a sum by 2^-10; the rest is f32's.
const OF_HALVES: f64 = 1.0 / 1024.0;

/// What the kernels of f32 products read: numbers of two bytes, in fours; and blocks, where factors are rounded to f16.
fn halves() -> Vec<Case> {
    let mut rows = Vec::new();
    for precision in [Precision::F32, Precision::F16] {
        for stored in STORED {
            let block = stored.packed_block().map_or(1, |(values, _)| values);
            for (m, n) in [(5, 8), (68, 36), (132, 260)] {
                let k = block.max(20).next_multiple_of(block) * 3;
                let row = Case::new("packed", format!("{stored}, linear {m}x{n}x{k} in {precision:?}"), move |s| {
                    s.graph.set_precision(precision);
                    let (x, w) = (s.fixed([m, k]), s.packed([n, k], stored));
                    let (bias, residual) = (s.fixed([n]), s.fixed([m, n]));
                    let y = ops::packed_linear(&mut s.graph, x, w, Some(bias), Some(residual));
                    s.result(y);
                    let x = s.fixed([2 * m, k + 12]);
                    let view = View { offset: (m - 1) * (k + 12) + 8, rows: m, cols: k, ..View::from(x) };
                    let y = ops::packed_product(&mut s.graph, view, w);
                    s.result(y);
                    Ok(())
                });
                rows.push(if precision == Precision::F16 { row.tolerance(OF_HALVES) } else { row });
            }
        }
    }
    rows
}

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    for stored in STORED {
        let block = stored.packed_block().map_or(1, |(values, _)| values);
        for (m, n, blocks) in [(1, 37, 3), (4, 9, 1), (5, 1, 2), (65, 67, 3)] {
            let k = block * blocks;
            rows.push(Case::new("packed", format!("{stored}, a product {m}x{n}x{k}"), move |s| {
                let (x, w) = (s.fixed([m, k]), s.packed([n, k], stored));
                let y = ops::packed_product(&mut s.graph, x, w);
                s.result(y);
                Ok(())
            }));
        }
        rows.push(Case::new("packed", format!("{stored}, rows of a table"), move |s| {
            let table = s.packed([13, 3 * block], stored);
            let ids = s.ints([7], vec![12, 0, 5, 13, 5, u32::MAX, 1]);
            let y = ops::packed_rows(&mut s.graph, ids, table, -1.5);
            s.result(y);
            Ok(())
        }));
    }
    let q4_1 = Dtype::Quant(Quant::Q4_1);
    for (bias, residual) in [(true, false), (false, true), (true, true)] {
        for shape in [[2, 9, 96], [1, 1, 96]] {
            let what = format!("linear of {shape:?}, bias {bias}, residual {residual}");
            rows.push(Case::new("packed", what, move |s| {
                let (x, w) = (s.fixed(shape), s.packed([50, 96], q4_1));
                let bias = bias.then(|| s.fixed([50]));
                let residual = residual.then(|| s.fixed([shape[0], shape[1], 50]));
                let y = ops::packed_linear(&mut s.graph, x, w, bias, residual);
                s.result(y);
                Ok(())
            }));
        }
    }
    rows.push(Case::new("packed", "some rows, and some columns, of a larger tensor", move |s| {
        let (x, w) = (s.fixed([40, 96]), s.packed([33, 64], q4_1));
        for x in [View::cols_of(x, 20..84), View { rows: 17, offset: 11 * 96 + 5, cols: 64, ..View::from(x) }] {
            let y = ops::packed_product(&mut s.graph, x, w);
            s.result(y);
        }
        Ok(())
    }));
    rows.extend(halves());
    rows.push(Case::new("packed", "many large tiles", move |s| {
        let (x, w) = (s.fixed([700, 32]), s.packed([790, 32], q4_1));
        let y = ops::packed_product(&mut s.graph, x, w);
        s.result(y);
        Ok(())
    }));
    rows
}
