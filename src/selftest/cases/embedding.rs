use crate::graph::Tensor;
use crate::ops::{self, Segments, segments_of};
use crate::selftest::{Case, Setup};

/// Ids as an input, with the tensors the gradient needs.
fn ids(s: &mut Setup, ids: Vec<u32>) -> (Tensor, Option<Segments>) {
    let n = ids.len();
    let (order, starts, tokens) = segments_of(&ids);
    let segments = Segments { order: s.ints([n], order), starts: s.ints([n + 1], starts), tokens: s.ints([n], tokens) };
    (s.ints([n], ids), Some(segments))
}

/// Rows of one table at `n` scattered ids of `vocabulary`.
fn lookup(s: &mut Setup, n: usize, vocabulary: usize, d: usize) {
    let scattered = (0..n).map(|i| (i * i * 7919 % vocabulary) as u32).collect();
    let (ids, segments) = ids(s, scattered);
    let table = s.float([vocabulary, d]);
    let y = ops::embedding(&mut s.graph, ids, table, segments, 1.5);
    s.result(y);
}

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    for [n, vocabulary, d] in [[1, 1, 1], [5, 3, 7], [64, 1000, 64], [300, 17, 129], [31, 97, 576]] {
        rows.push(Case::new("embedding", format!("{n} of {vocabulary} x {d}"), move |s| {
            lookup(s, n, vocabulary, d);
            Ok(())
        }));
    }
    // Tests run these with bindings of 16 KiB. Of 66 columns, only every 32nd row may start a piece.
    for d in [64, 66] {
        rows.push(Case::new("embedding", format!("a table in pieces, {d} columns"), move |s| {
            lookup(s, 41, 300, d);
            Ok(())
        }));
    }
    rows.push(Case::new("embedding", "ids past the vocabulary give zeros and no gradient", |s| {
        let (ids, segments) = ids(s, vec![9, 2, 10, u32::MAX, 2, 0]);
        let table = s.float([10, 6]);
        let y = ops::embedding(&mut s.graph, ids, table, segments, 1.0);
        s.result(y);
        Ok(())
    }));
    rows.push(Case::new("embedding", "two lookups and a product share a table's gradient", |s| {
        let (first, segments) = ids(s, vec![3, 3, 1, 0]);
        let (second, more_segments) = ids(s, vec![4, 3, 4]);
        let table = s.float([5, 9]);
        let a = ops::embedding(&mut s.graph, first, table, segments, 1.0);
        let b = ops::embedding(&mut s.graph, second, table, more_segments, -2.0);
        let square = ops::mul(&mut s.graph, table, table);
        s.result(a);
        s.result(b);
        s.result(square);
        Ok(())
    }));
    rows.push(Case::new("write_rows", "into a cache, some rows skipped, then gathered", |s| {
        let (cache, first, second) = (s.fixed([7, 5]), s.fixed([3, 5]), s.fixed([1, 5]));
        let (at, later) = (s.ints([3], vec![6, 7, 2]), s.ints([1], vec![3]));
        let cache = ops::write_rows(&mut s.graph, cache, first, at);
        let cache = ops::write_rows(&mut s.graph, cache, second, later);
        let picked = s.ints([4], vec![6, 3, 0, 7]);
        let rows = ops::gather_rows(&mut s.graph, cache, picked);
        s.result(cache);
        s.result(rows);
        Ok(())
    }));
    rows.push(
        Case::new("embedding", "more than 65,535 workgroups", |s| {
            let (n, d) = (4099, 4096);
            let (ids, segments) = ids(s, (0..n as u32).map(|i| i % 61).collect());
            let table = s.float([61, d]);
            let y = ops::embedding(&mut s.graph, ids, table, segments, 1.0);
            s.result(y);
            Ok(())
        })
        .heavy(),
    );
    rows.push(
        Case::new("write_rows", "more than 65,535 workgroups", |s| {
            let n = 4099;
            let (cache, rows) = (s.fixed([n, 4096]), s.fixed([n, 4096]));
            let at = s.ints([n], (0..n as u32).rev().collect());
            let cache = ops::write_rows(&mut s.graph, cache, rows, at);
            s.result(cache);
            Ok(())
        })
        .heavy(),
    );
    rows
}
