use crate::ops;
use crate::selftest::Case;

/// Rows, columns, and where the columns that are taken start and end.
const SHAPES: [[usize; 4]; 5] = [[1, 1, 0, 1], [3, 7, 2, 5], [257, 96, 64, 96], [1, 1031, 1, 1031], [1030, 5, 4, 5]];

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    for [n, wide, start, end] in SHAPES {
        rows.push(Case::new("columns", format!("{start}..{end} of {n} x {wide}"), move |s| {
            let x = s.float([n, wide]);
            let y = ops::columns(&mut s.graph, x, start..end);
            s.result(y);
            Ok(())
        }));
    }
    rows.push(Case::new("columns", "three parts whose gradients meet, two of them overlapping", |s| {
        let x = s.float([35, 12]);
        let doubled = ops::scale(&mut s.graph, x, 2.0);
        for part in [0..4, 4..9, 7..12] {
            let y = ops::columns(&mut s.graph, doubled, part);
            s.result(y);
        }
        let whole = ops::mul(&mut s.graph, doubled, doubled);
        s.result(whole);
        Ok(())
    }));
    rows.push(
        Case::new("columns", "more than 65,535 workgroups", |s| {
            let x = s.fixed([65_540, 257]);
            let y = ops::columns(&mut s.graph, x, 1..257);
            s.result(y);
            Ok(())
        })
        .heavy(),
    );
    rows
}
