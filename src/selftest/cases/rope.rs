use crate::ops;
use crate::selftest::Case;

/// Positions, heads, head width, rotary width, positions of the table.
const SHAPES: [[usize; 5]; 6] =
    [[1, 1, 2, 2, 1], [3, 1, 5, 4, 7], [7, 3, 64, 64, 40], [11, 2, 32, 8, 11], [65, 9, 6, 2, 300], [2, 1, 300, 298, 5]];

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    for [n, heads, dim, r, positions] in SHAPES {
        rows.push(Case::new("rope", format!("{n} x {heads} x {dim}, {r} rotary, of {positions}"), move |s| {
            let x = s.float([n, heads, dim]);
            // Neither sorted nor distinct. The table is random: nothing may rely on sin^2 + cos^2 = 1.
            let at = s.ints([n], (0..n).map(|i| (i * 7919 % positions) as u32).collect());
            let table = s.fixed([positions, r]);
            let y = ops::rope(&mut s.graph, x, at, table);
            let z = ops::rope(&mut s.graph, y, at, table);
            s.result(z);
            Ok(())
        }));
    }
    rows.push(Case::new("rope", "positions past the table take its last row", |s| {
        let x = s.float([4, 2, 8]);
        let at = s.ints([4], vec![0, 4, 5, u32::MAX]);
        let table = s.fixed([5, 6]);
        let y = ops::rope(&mut s.graph, x, at, table);
        s.result(y);
        Ok(())
    }));
    rows.push(
        Case::new("rope", "more than 65,535 workgroups", |s| {
            let n = 256;
            let x = s.fixed([n, 1, 65_540]);
            let at = s.ints([n], (0..n as u32).collect());
            let table = s.fixed([n, 4]);
            let y = ops::rope(&mut s.graph, x, at, table);
            s.result(y);
            Ok(())
        })
        .heavy(),
    );
    rows
}
