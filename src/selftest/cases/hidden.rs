use crate::graph::Tensor;
use crate::ops::{self, Ranges};
use crate::selftest::{Case, Setup};

/// Rows x columns: 1, primes, more columns than lanes, several workgroups.
const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 7), (3, 128), (17, 129), (131, 31), (7, 576)];

/// Row weights of which every third is 0.
fn weights(s: &mut Setup, n: usize) -> Tensor {
    let values = (0..n).map(|i| if i % 3 == 2 { 0.0 } else { 0.25 }).collect();
    s.floats([n], values, false)
}

fn row_losses((n, d): (usize, usize)) -> Vec<Case> {
    let mse = Case::new("hidden_loss", format!("squared error of {n} x {d}"), move |s| {
        let (h, t) = (s.float([n, d]), s.fixed([n, d]));
        let loss = ops::hidden_mse(&mut s.graph, h, t);
        s.result(loss);
        Ok(())
    });
    // Of a single column the cosine is 1 or -1 whatever happens: rounding is all there would be to compare.
    let cosine = (d > 1).then(|| {
        Case::new("hidden_loss", format!("cosine of {n} x {d}"), move |s| {
            let (h, t) = (s.float([n, d]), s.fixed([n, d]));
            let loss = ops::hidden_cosine(&mut s.graph, h, t);
            s.result(loss);
            Ok(())
        })
    });
    [Some(mse), cosine].into_iter().flatten().collect()
}

fn alignment(n: usize, [d, dt]: [usize; 2], scale: f64) -> Case {
    Case::new("cka", format!("{n} rows of {d} and {dt}, times {scale}"), move |s| {
        let mut values = s.randoms(n * d);
        values.iter_mut().for_each(|x| *x = (*x * scale + scale) as f32 as f64);
        let (x, y, weights) = (s.floats([n, d], values, scale == 1.0), s.fixed([n, dt]), weights(s, n));
        let rows = ops::cka(&mut s.graph, x, y, weights);
        s.result(rows);
        Ok(())
    })
    // The columns are centred in f32 first: their means are about as large as what remains.
    .tolerance(3e-5)
}

/// Documents of these lengths, each seen causally; a negative one is that many rows that see nothing.
fn ranges(s: &mut Setup, pieces: &[isize]) -> (usize, Ranges) {
    let (mut query, mut key) = (Vec::new(), Vec::new());
    for &piece in pieces {
        let (first, rows) = (query.len() / 2, piece.unsigned_abs());
        for row in first..first + rows {
            query.extend(if piece < 0 { [row, row] } else { [first, row + 1] }.map(|x| x as u32));
            key.extend(if piece < 0 { [row, row] } else { [row, first + rows] }.map(|x| x as u32));
        }
    }
    let n = query.len() / 2;
    (n, Ranges { query: s.ints([n, 2], query), key: Some(s.ints([n, 2], key)) })
}

/// Student's and teacher's heads and channels, cut into `heads`.
fn relation(pieces: &'static [isize], student: [usize; 2], teacher: [usize; 2], heads: usize) -> Case {
    let what = format!("{pieces:?}, {student:?} against {teacher:?} in {heads} heads");
    Case::new("relation_kl", what, move |s| {
        let (n, ranges) = ranges(s, pieces);
        let (a, b) = (s.float([n, student[0], student[1]]), s.fixed([n, teacher[0], teacher[1]]));
        // Scores of some units whatever the width: where a row sees nothing but itself, all divergences are rounding.
        let factor = |channels: usize| (8.0 / (channels as f32 / heads as f32).sqrt()).sqrt();
        let a = ops::scale(&mut s.graph, a, factor(student[0] * student[1]));
        let b = ops::scale(&mut s.graph, b, factor(teacher[0] * teacher[1]));
        let rows = ops::relation_kl(&mut s.graph, a, b, ranges, heads);
        s.result(rows);
        Ok(())
    })
    // A divergence is the difference of log-sum-exps of some units: ten times its own size here.
    .tolerance(1e-4)
}

pub fn cases() -> Vec<Case> {
    let mut rows: Vec<Case> = SHAPES.into_iter().flat_map(row_losses).collect();
    rows.push(Case::new("hidden_loss", "rows without direction, equal rows", |s| {
        let mut values = s.randoms(6 * 9);
        values[..9].fill(0.0);
        let mut target = values.clone();
        values[9..18].copy_from_slice(&[1e-20; 9].map(|x| x as f32 as f64));
        target[18..27].fill(0.0);
        target[36..].iter_mut().for_each(|x| *x = -*x);
        // Not differentiated numerically: at 0 there is no derivative, and the op says 0.
        let (h, t) = (s.floats([6, 9], values, false), s.floats([6, 9], target, false));
        s.graph.require_grad(h);
        let loss = ops::hidden_cosine(&mut s.graph, h, t);
        s.result(loss);
        Ok(())
    }));
    rows.push(
        Case::new("hidden_loss", "more than 65,535 workgroups", |s| {
            let (h, t) = (s.float([65_541, 3]), s.fixed([65_541, 3]));
            let (mse, cosine) = (ops::hidden_mse(&mut s.graph, h, t), ops::hidden_cosine(&mut s.graph, h, t));
            s.result(mse);
            s.result(cosine);
            Ok(())
        })
        .heavy(),
    );
    for (n, dims) in [(4, [2, 3]), (37, [5, 8]), (131, [70, 33]), (11, [20, 130])] {
        rows.push(alignment(n, dims, 1.0));
    }
    // Wide states far from 0 and large: the products stay in f32's range.
    rows.push(alignment(67, [9, 7], 3e5));
    rows.extend([
        relation(&[1, 3], [2, 4], [2, 4], 2),
        relation(&[9], [4, 3], [2, 6], 2),
        relation(&[2, 1, 70, 33], [3, 8], [1, 40], 4),
        relation(&[-3, 41, -2, 5], [2, 6], [3, 8], 1),
        relation(&[19], [1, 130], [1, 70], 1),
    ]);
    rows.push(Case::new("relation_kl", "no gradient wanted, no key ranges", |s| {
        let (n, ranges) = ranges(s, &[7, 4]);
        let (a, b) = (s.fixed([n, 2, 4]), s.fixed([n, 2, 4]));
        let rows = ops::relation_kl(&mut s.graph, a, b, Ranges { key: None, ..ranges }, 2);
        s.result(rows);
        Ok(())
    }));
    rows.push(relation(&[-65_530, 13], [1, 2], [1, 2], 2).heavy());
    rows
}
