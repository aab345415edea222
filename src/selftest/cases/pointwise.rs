use crate::ops::{self, Power};
use crate::selftest::Case;

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    for n in [1, 3, 256, 257, 100_003] {
        rows.push(Case::new("pointwise", format!("add, mul, scale of {n}"), move |s| {
            let (a, b) = (s.float([n]), s.float([n]));
            let sum = ops::add(&mut s.graph, a, b);
            let product = ops::mul(&mut s.graph, sum, b);
            let scaled = ops::scale(&mut s.graph, product, -1.7);
            s.result(scaled);
            Ok(())
        }));
    }
    rows.push(Case::new("pointwise", "a value used three times gathers three gradients", |s| {
        let a = s.float([7, 5]);
        let square = ops::mul(&mut s.graph, a, a);
        let both = ops::add(&mut s.graph, square, a);
        s.result(both);
        Ok(())
    }));
    for n in [1, 1021] {
        rows.push(Case::new("pointwise", format!("{n} zeros, added to"), move |s| {
            let a = s.float([n]);
            let zeros = ops::zeros(&mut s.graph, [n]);
            let sum = ops::add_in_place(&mut s.graph, zeros, a);
            s.result(sum);
            Ok(())
        }));
    }
    for power in [Power::One, Power::Square, Power::Inverse] {
        rows.push(Case::new("pointwise", format!("scaled by a scalar tensor, {power:?}"), move |s| {
            let (a, factor) = (s.float([7, 43]), s.floats([1], vec![-1.75], false));
            let scaled = ops::scale_by(&mut s.graph, a, factor, power);
            s.result(scaled);
            Ok(())
        }));
    }
    let more_than_one_row_of_groups = 65_536 * 256 + 5;
    rows.push(
        Case::new("pointwise", "more than 65,535 workgroups", move |s| {
            let a = s.fixed([more_than_one_row_of_groups]);
            let scaled = ops::scale(&mut s.graph, a, 0.5);
            s.result(scaled);
            Ok(())
        })
        .heavy(),
    );
    rows
}
