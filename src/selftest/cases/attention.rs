use crate::graph::Tensor;
use crate::ops::{self, Ranges};
use crate::selftest::{Case, Setup};

/// Query heads, key/value heads, channels.
type Heads = (usize, usize, usize);

/// Causal self-attention over pieces of these lengths, whose queries see at most `window` keys. A piece of
/// negative length is that many rows which see nothing.
fn ranges(s: &mut Setup, pieces: &[isize], window: usize) -> (usize, Ranges) {
    let (mut query, mut key) = (Vec::new(), Vec::new());
    for &piece in pieces {
        let (first, rows) = (query.len() / 2, piece.unsigned_abs());
        for row in first..first + rows {
            let sees = if piece < 0 { [row, row] } else { [first.max((row + 1).saturating_sub(window)), row + 1] };
            let seen_by = if piece < 0 { [row, row] } else { [row, (first + rows).min(row + window)] };
            query.extend(sees.map(|x| x as u32));
            key.extend(seen_by.map(|x| x as u32));
        }
    }
    let n = query.len() / 2;
    (n, Ranges { query: s.ints([n, 2], query), key: Some(s.ints([n, 2], key)) })
}

fn attend(s: &mut Setup, [q, k, v]: [Tensor; 3], ranges: Ranges, scale: f32, softcap: f32) {
    let o = ops::attention(&mut s.graph, q, k, v, ranges, scale, softcap);
    s.result(o);
}

fn training(what: &str, (h, hkv, d): Heads, pieces: &'static [isize], window: usize, softcap: f32) -> Case {
    let rows: usize = pieces.iter().map(|p| p.unsigned_abs()).sum();
    let what = format!("{what}: {rows} rows, {h} heads over {hkv} of {d}");
    Case::new("attention", what, move |s| {
        let (n, ranges) = ranges(s, pieces, window);
        let inputs = [s.float([n, h, d]), s.float([n, hkv, d]), s.float([n, hkv, d])];
        // Larger than 1/sqrt(d): the uniform inputs have variance 1/3, and the weights should differ.
        attend(s, inputs, ranges, 3.0 / (d as f32).sqrt(), softcap);
        Ok(())
    })
}

/// `n` new rows behind a cache, of which `m` rows exist and the first `skip` are out of the window.
fn decoding((n, m, skip): (usize, usize, usize), (h, hkv, d): Heads) -> Case {
    let what = format!("decoding: {n} rows, {} keys, {h} heads over {hkv} of {d}", m - skip);
    Case::new("attention", what, move |s| {
        let query = s.ints([n, 2], (0..n).flat_map(|i| [skip as u32, (m - n + 1 + i) as u32]).collect());
        // Rows past the last that is seen hold what an earlier sequence left.
        let inputs = [s.fixed([n, h, d]), s.fixed([m + 7, hkv, d]), s.fixed([m + 7, hkv, d])];
        attend(s, inputs, Ranges { query, key: None }, 3.0 / (d as f32).sqrt(), 0.0);
        Ok(())
    })
}

pub fn cases() -> Vec<Case> {
    let all = usize::MAX >> 1;
    let mut rows = vec![
        training("few rows", (4, 2, 12), &[9], all, 0.0),
        training("as many heads", (2, 2, 12), &[37], all, 0.0),
        training("three to one", (3, 1, 20), &[67], all, 0.0),
        training("one for all", (5, 1, 64), &[31], all, 0.0),
        training("odd channels", (2, 1, 7), &[33], all, 0.0),
        training("documents", (6, 2, 64), &[1, 2, 30, 97, 31], all, 0.0),
        training("window", (2, 1, 16), &[150, 61], 40, 0.0),
        training("narrow window", (1, 1, 8), &[71], 2, 0.0),
        training("rows that see nothing", (2, 1, 16), &[-3, 41, -40, 5, -1], all, 0.0),
        training("wide heads", (2, 1, 128), &[35], all, 0.0),
        training("widest heads", (2, 1, 256), &[34], all, 0.0),
        training("heads between", (1, 1, 80), &[40], all, 0.0),
        training("capped scores", (2, 1, 24), &[40, 3], all, 2.0),
        training("few rows, capped", (2, 1, 24), &[11], all, 2.0),
        // More keys than the CPU handles at a time.
        training("long", (1, 1, 8), &[5, 307], all, 0.0),
        decoding((1, 1, 0), (2, 1, 64)),
        decoding((1, 333, 0), (9, 3, 64)),
        decoding((3, 600, 31), (4, 1, 20)),
        decoding((2, 70, 0), (2, 2, 256)),
        decoding((40, 130, 9), (3, 3, 12)),
    ];
    rows.push(Case::new("attention", "one row", |s| {
        let (n, ranges) = ranges(s, &[1], 1);
        let [q, k, v] = [s.float([n, 2, 8]), s.float([n, 2, 8]), s.float([n, 2, 8])];
        attend(s, [q, k, v], ranges, 1.0, 0.0);
        // A single weight is always 1: without these, the gradients of q and k would be nothing but rounding.
        s.result(q);
        s.result(k);
        Ok(())
    }));
    let nearly_all_idle = &[-32_728, 41];
    rows.push(training("more than 65,535 workgroups", (64, 8, 2), nearly_all_idle, all, 0.0).heavy());
    rows
}
