use crate::ops;
use crate::selftest::Case;

pub fn cases() -> Vec<Case> {
    let mut rows = Vec::new();
    for n in [1, 2, 3, 255, 257, 1536, 10_007] {
        // Of a single number the cosine is 1 or -1 whatever happens: rounding is all there would be to compare.
        let cosine = (n > 1).then(|| {
            Case::new("likeness", format!("cosine of {n}"), move |s| {
                let (a, b) = (s.float([n]), s.float([n]));
                let y = ops::cosine(&mut s.graph, a, b);
                s.result(y);
                Ok(())
            })
        });
        rows.extend(cosine);
        rows.push(Case::new("likeness", format!("overlap of {n}"), move |s| {
            let (a, b) = (s.float([n]), s.float([n]));
            let y = ops::overlap(&mut s.graph, a, b);
            s.result(y);
            Ok(())
        }));
    }
    rows.push(Case::new("likeness", "zeros, equal numbers", |s| {
        // Not differentiated numerically: there is no derivative, and the op says which it takes.
        let a = s.floats([4], vec![0.0, 1.5, -2.0, 0.0], false);
        let b = s.floats([4], vec![1.0, 1.5, 2.0, 0.0], false);
        let none = s.floats([4], vec![0.0; 4], false);
        [a, b, none].into_iter().for_each(|t| s.graph.require_grad(t));
        let shared = ops::overlap(&mut s.graph, a, b);
        let nothing = ops::cosine(&mut s.graph, a, none);
        s.result(shared);
        s.result(nothing);
        Ok(())
    }));
    rows.push(Case::new("likeness", "one side constant, another shape of it", |s| {
        let (a, b) = (s.float([3, 5]), s.fixed([15]));
        let y = ops::cosine(&mut s.graph, a, b);
        s.result(y);
        Ok(())
    }));
    rows
}
