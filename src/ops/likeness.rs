//! How alike two vectors are, with gradients for both: the regularisers of DAM's coefficients (arXiv:2410.08371).

use super::{add_grad, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader};
use crate::graph::{CpuIo, DType, Graph, Node, Op, Tensor, Twin};

pub(crate) const SHADER: Shader = shader!("likeness");
/// A vector whose square is less has no direction.
const LEAST: f64 = 1e-24;

#[derive(Debug, Clone, Copy)]
enum Likeness {
    Cosine,
    Overlap,
}

/// (a, b, dy) -> the gradient by a.
#[derive(Debug, Clone, Copy)]
struct LikenessGrad(Likeness);

/// a b / (|a| |b|), `[1]`, of two vectors of one length; 0, with gradient 0, where one is shorter than 1e-12.
/// Differentiable in both.
pub fn cosine(g: &mut Graph, a: Tensor, b: Tensor) -> Tensor {
    record(g, Likeness::Cosine, a, b)
}

/// sum_j min(|a_j|, |b_j|), `[1]`, of two vectors of one length. Differentiable in both; where both are as large, each
/// has half of the gradient.
pub fn overlap(g: &mut Graph, a: Tensor, b: Tensor) -> Tensor {
    record(g, Likeness::Overlap, a, b)
}

fn record(g: &mut Graph, op: Likeness, a: Tensor, b: Tensor) -> Tensor {
    assert_eq!(a.shape.numel(), b.shape.numel(), "likeness");
    g.record(op, &[a, b], [([1].into(), DType::F32)])[0]
}

impl Likeness {
    fn dispatch(&self, entry: &'static str, node: &Node<'_>) -> Dispatch {
        let overlap = matches!(self, Likeness::Overlap);
        Dispatch {
            shader: SHADER,
            entry,
            constants: vec![("OVERLAP", overlap.to_string())],
            binds: [Bind::Out(0)].into_iter().chain((0..node.inputs.len()).map(Bind::In)).collect(),
            params: vec![node.inputs[0].shape.numel() as u32],
            groups: [1, 1, 1],
        }
    }
}

impl Op for Likeness {
    fn name(&self) -> &'static str {
        "likeness"
    }

    fn backward(&self, g: &mut Graph, node: &Node<'_>, dy: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = dy[0] else { return Ok(()) };
        let [a, b] = [node.inputs[0], node.inputs[1]];
        for (own, other) in [(a, b), (b, a)] {
            if g.requires_grad(own) {
                let [grad] = g.record(LikenessGrad(*self), &[own, other, dy], [(own.shape, DType::F32)]);
                add_grad(g, own, grad);
            }
        }
        Ok(())
    }

    fn dispatches(&self, node: &Node<'_>, _: &Caps) -> Result<Vec<Dispatch>> {
        Ok(vec![self.dispatch("value", node)])
    }
}

impl Op for LikenessGrad {
    fn name(&self) -> &'static str {
        "likeness"
    }

    fn dispatches(&self, node: &Node<'_>, _: &Caps) -> Result<Vec<Dispatch>> {
        Ok(vec![self.0.dispatch("gradient", node)])
    }
}

/// a b, a a and |a| |b|, if both have a direction.
fn products<F: Real>(a: &[F], b: &[F]) -> Option<[F; 3]> {
    let [ab, aa, bb] = [F::dot(a, b), F::dot(a, a), F::dot(b, b)];
    let least = F::of(LEAST);
    (aa >= least && bb >= least).then(|| [ab, aa, aa.sqrt() * bb.sqrt()])
}

impl Twin for Likeness {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (a, b, y) = (io.f(0), io.f(1), io.out(0));
        y[0] = match self {
            Likeness::Cosine => products(a, b).map_or(F::ZERO, |[ab, _, lengths]| ab / lengths),
            Likeness::Overlap => {
                let smaller = |(a, b): (&F, &F)| if a.abs() < b.abs() { a.abs() } else { b.abs() };
                a.iter().zip(b).map(smaller).fold(F::ZERO, |sum, x| sum + x)
            }
        };
    }
}

impl Twin for LikenessGrad {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (a, b, dy, y) = (io.f(0), io.f(1), io.f(2)[0], io.out(0));
        let pairs = y.iter_mut().zip(a.iter().zip(b));
        match self.0 {
            Likeness::Cosine => match products(a, b) {
                Some([ab, aa, lengths]) => pairs.for_each(|(y, (&a, &b))| *y = dy * (b - a * (ab / aa)) / lengths),
                None => y.fill(F::ZERO),
            },
            Likeness::Overlap => pairs.for_each(|(y, (&a, &b))| {
                let sign = if a > F::ZERO {
                    F::ONE
                } else if a < F::ZERO {
                    F::of(-1.0)
                } else {
                    F::ZERO
                };
                let share = if a.abs() < b.abs() {
                    F::ONE
                } else if a.abs() > b.abs() {
                    F::ZERO
                } else {
                    F::of(0.5)
                };
                *y = dy * sign * share;
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Values, evaluate};
    use std::collections::HashMap;

    fn value(of: fn(&mut Graph, Tensor, Tensor) -> Tensor, a: &[f64], b: &[f64]) -> f64 {
        let mut g = Graph::new();
        let [x, y] = [("a", a.len()), ("b", b.len())].map(|(name, n)| g.external(name, [n], DType::F32));
        let found = of(&mut g, x, y);
        let given = [("a", a), ("b", b)].map(|(name, v)| (name.to_string(), Values::F(v.to_vec())));
        evaluate(&g, &mut HashMap::from(given), &[found]).unwrap()[0].floats()[0]
    }

    #[test]
    fn closed_forms() {
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-15, "{found}, not {expected}");
        // (1, 2, 2) and (2, -1, 2): 4 / (3 * 3); at right angles; opposite; without direction.
        close(value(cosine, &[1.0, 2.0, 2.0], &[2.0, -1.0, 2.0]), 4.0 / 9.0);
        close(value(cosine, &[1.0, 1.0], &[-1.0, 1.0]), 0.0);
        close(value(cosine, &[0.5, 0.5], &[-2.0, -2.0]), -1.0);
        close(value(cosine, &[0.0, 0.0], &[1.0, 2.0]), 0.0);
        close(value(overlap, &[0.5, -0.2, 3.0], &[-0.25, 0.75, 3.0]), 0.25 + 0.2 + 3.0);
    }
}
