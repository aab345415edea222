use crate::ops::{self, Combination, Election};
use crate::selftest::Case;

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    let elections = [Election::Nothing, Election::Weighted, Election::Equal];
    for (models, n) in [(1, 1), (2, 257), (3, 5), (5, 10_007)] {
        for election in elections {
            for (base, normalize) in [(false, true), (true, false), (true, true)] {
                let what = format!("{models} x {n}, {election:?}, base {base}, normalize {normalize}");
                let how = Combination { election, normalize, lambda: 0.75, differences: n == 257 };
                rows.push(Case::new("combine", what, move |s| {
                    let x = s.fixed([models, n]);
                    // Weights of both signs; every second threshold drops about half of the values.
                    let factors = (0..models).map(|i| [0.5, 1.25, -0.75][i % 3]);
                    let thresholds = (0..models).map(|i| [0.0, 0.675][i % 2]);
                    let rules = s.floats([2, models], factors.chain(thresholds).collect(), false);
                    let base = base.then(|| s.fixed([n]));
                    let out = ops::combine(&mut s.graph, x, rules, base, how);
                    s.result(out);
                    Ok(())
                }));
            }
        }
    }
    for election in elections {
        rows.push(Case::new(
            "combine",
            format!("zeros, votes that cancel, values at the threshold, {election:?}"),
            move |s| {
                let how = Combination { election, normalize: true, lambda: 1.0, differences: false };
                let x = s.floats([2, 4], vec![0.0, 1.0, -0.5, 2.0, 0.0, -1.0, -0.25, -1.0], false);
                let rules = s.floats([2, 2], vec![0.5, 0.5, 0.5, 0.0], false);
                let out = ops::combine(&mut s.graph, x, rules, None, how);
                s.result(out);
                Ok(())
            },
        ));
        rows.push(Case::new("combine", format!("weights that cancel, {election:?}"), move |s| {
            let how = Combination { election, normalize: true, lambda: 1.0, differences: false };
            let (x, rules) = (s.fixed([2, 67]), s.floats([2, 2], vec![0.5, -0.5, 0.0, 0.0], false));
            let out = ops::combine(&mut s.graph, x, rules, None, how);
            s.result(out);
            Ok(())
        }));
    }
    let how = Combination { election: Election::Weighted, normalize: true, lambda: 1.0, differences: false };
    rows.push(
        Case::new("combine", "more than 65,535 workgroups", move |s| {
            let x = s.fixed([1, 65_536 * 256 + 5]);
            let rules = s.floats([2, 1], vec![2.0, 0.5], false);
            let out = ops::combine(&mut s.graph, x, rules, None, how);
            s.result(out);
            Ok(())
        })
        .heavy(),
    );
    rows
}
