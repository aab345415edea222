//! GELU, exact and in the tanh approximation.

use super::{add_grad, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("gelu");
/// Elements the twin handles at a time: they stay in the first-level cache between its passes.
const PIECE: usize = 1 << 9;
/// Pieces of one rayon task.
const PIECES: usize = 32;
/// 2 * sqrt(2 / pi), and the cubic term of the approximation.
const SLOPE: f64 = 1.595_769_121_605_730_8;
const CUBIC: f64 = 0.044715;

/// x -> y, or backward: (x, dy) -> dx.
#[derive(Debug, Clone, Copy)]
struct Gelu {
    tanh: bool,
    backward: bool,
}

/// y = x * P(X <= x) for a standard normal X, element by element (Hendrycks & Gimpel 2016). With `tanh_approximation`
/// the probability is (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) / 2: `gelu_new` and `gelu_pytorch_tanh`.
pub fn gelu(g: &mut Graph, x: Tensor, tanh_approximation: bool) -> Tensor {
    g.record(Gelu { tanh: tanh_approximation, backward: false }, &[x], [(x.shape, DType::F32)])[0]
}

impl Gelu {
    /// The probability P at every x.
    fn probability<F: Real>(&self, x: &[F], p: &mut [F]) {
        if self.tanh {
            let (slope, cubic) = (F::of(SLOPE), F::of(CUBIC));
            p.iter_mut().zip(x).for_each(|(p, &x)| {
                let z = within_9(x);
                *p = slope * (z + cubic * z * z * z);
            });
            F::sigmoid(p);
        } else {
            p.copy_from_slice(x);
            F::normal_cdf(p);
        }
    }

    /// P' at every x, given P.
    fn density<F: Real>(&self, x: &[F], p: &[F], density: &mut [F]) {
        if self.tanh {
            let (slope, cubic) = (F::of(SLOPE), F::of(3.0 * CUBIC));
            density.iter_mut().zip(x).zip(p).for_each(|((d, &x), &p)| {
                let z = within_9(x);
                *d = p * (F::ONE - p) * slope * (F::ONE + cubic * z * z);
            });
        } else {
            let mut squares = [F::ZERO; PIECE];
            squares.iter_mut().zip(x).for_each(|(s, &x)| *s = within_9(x) * within_9(x));
            let at_0 = F::of(0.398_942_280_401_432_7);
            F::exp_into(density, &squares[..x.len()], at_0, F::of(-0.5), F::ZERO);
        }
    }
}

/// Beyond 9, P is 0 or 1 to every digit; within, squares and cubes stay small. NaN stays NaN.
fn within_9<F: Real>(x: F) -> F {
    let limit = F::of(9.0);
    let x = if x > limit { limit } else { x };
    if x < -limit { -limit } else { x }
}

impl Op for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn backward(&self, g: &mut Graph, node: &Node<'_>, dy: &[Option<Tensor>]) -> Result<()> {
        if self.backward {
            return Err(crate::Error::internal("`gelu` has no second derivative"));
        }
        let Some(dy) = dy[0] else { return Ok(()) };
        let x = node.inputs[0];
        let dx = g.record(Gelu { backward: true, ..*self }, &[x, dy], [(x.shape, DType::F32)])[0];
        add_grad(g, x, dx);
        Ok(())
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let count = node.outputs[0].shape.numel();
        let mut binds = vec![Bind::Out(0), Bind::In(0)];
        if self.backward {
            binds.push(Bind::In(1));
        }
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: if self.backward { "backward" } else { "forward" },
            constants: vec![("TANH", self.tanh.to_string())],
            binds,
            params: vec![count as u32],
            groups: grid(count.div_ceil(256), caps),
        }])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let n = node.outputs[0].shape.numel() as u64;
        let (flops, tensors) = if self.backward { (40, 3) } else { (30, 2) };
        Cost { flops: flops * n, bytes: 4 * tensors * n }
    }
}

impl Twin for Gelu {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let pieces = io.out(0).par_chunks_mut(PIECE).zip(io.f(0).par_chunks(PIECE)).with_min_len(PIECES);
        if !self.backward {
            return pieces.for_each(|(y, x)| {
                self.probability(x, y);
                y.iter_mut().zip(x).for_each(|(y, &x)| *y *= x);
            });
        }
        pieces.zip(io.f(1).par_chunks(PIECE)).for_each(|((dx, x), dy)| {
            let mut p = [F::ZERO; PIECE];
            let p = &mut p[..x.len()];
            self.probability(x, p);
            self.density(x, p, dx);
            dx.iter_mut().zip(p).zip(x).zip(dy).for_each(|(((dx, p), &x), &dy)| *dx = dy * (*p + x * *dx));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Values, evaluate};
    use std::collections::HashMap;

    #[test]
    fn the_oracle_agrees_with_torch() {
        let mut g = Graph::new();
        let x = g.external("x", [6], DType::F32);
        let wanted = [gelu(&mut g, x, false), gelu(&mut g, x, true)];
        let mut values: HashMap<_, _> =
            HashMap::from([("x".to_owned(), Values::F(vec![0.0, 1.0, -2.0, 0.3, 50.0, -50.0]))]);
        // torch.nn.functional.gelu(x, approximate=...) in f64.
        let exact = [0.0, 0.841_344_746_068_543, -0.04550026389635842, 0.1853734266566858, 50.0, 0.0];
        let tanh = [0.0, 0.841_191_990_608_276_8, -0.04540230591222494, 0.18537092354275922, 50.0, 0.0];
        for (found, expected) in evaluate(&g, &mut values, &wanted).unwrap().iter().zip([exact, tanh]) {
            let close = found.floats().iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15);
            assert!(close, "{found:?} {expected:?}");
        }
    }
}
