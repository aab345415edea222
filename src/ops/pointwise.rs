//! Sums, products and multiples, element by element.

use super::{add_grad, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{CpuIo, DType, Graph, Node, Op, Shape, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("pointwise");
/// Elements one rayon task handles.
const CHUNK: usize = 1 << 14;

#[derive(Debug, Clone, Copy)]
enum Pointwise {
    Add,
    AddInPlace,
    Mul,
    Scale(f32),
    Zeros,
    ScaleBy(Power),
}

/// Which power of a scalar [`scale_by`] multiplies by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// s.
    One,
    /// s^2.
    Square,
    /// 1 / s.
    Inverse,
}

impl Power {
    fn of<F: Real>(self, s: F) -> F {
        match self {
            Power::One => s,
            Power::Square => s * s,
            Power::Inverse => F::ONE / s,
        }
    }
}

/// y = a + b; equal shapes.
pub fn add(g: &mut Graph, a: Tensor, b: Tensor) -> Tensor {
    assert_eq!(a.shape, b.shape, "add");
    g.record(Pointwise::Add, &[a, b], [(a.shape, DType::F32)])[0]
}

/// a += b, in a's memory. Returns a's new value; the old handle must not be read again.
pub fn add_in_place(g: &mut Graph, a: Tensor, b: Tensor) -> Tensor {
    assert_eq!(a.shape, b.shape, "add_in_place");
    g.record(Pointwise::AddInPlace, &[b, a], [(a.shape, DType::F32)])[0]
}

/// y = a * b; equal shapes.
pub fn mul(g: &mut Graph, a: Tensor, b: Tensor) -> Tensor {
    assert_eq!(a.shape, b.shape, "mul");
    g.record(Pointwise::Mul, &[a, b], [(a.shape, DType::F32)])[0]
}

/// y = factor * a.
pub fn scale(g: &mut Graph, a: Tensor, factor: f32) -> Tensor {
    g.record(Pointwise::Scale(factor), &[a], [(a.shape, DType::F32)])[0]
}

/// y = a * s, a * s^2 or a / s for a scalar s `[1]` that the host sets between replays; constant in the gradient.
pub fn scale_by(g: &mut Graph, a: Tensor, s: Tensor, power: Power) -> Tensor {
    assert_eq!(s.shape.numel(), 1, "scale_by");
    g.record(Pointwise::ScaleBy(power), &[a, s], [(a.shape, DType::F32)])[0]
}

/// A new tensor of zeros.
pub fn zeros(g: &mut Graph, shape: impl Into<Shape>) -> Tensor {
    g.record(Pointwise::Zeros, &[], [(shape.into(), DType::F32)])[0]
}

impl Op for Pointwise {
    fn name(&self) -> &'static str {
        "pointwise"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        if matches!(self, Pointwise::AddInPlace) { vec![(0, 1)] } else { Vec::new() }
    }

    fn backward(&self, g: &mut Graph, node: &Node<'_>, dy: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = dy[0] else { return Ok(()) };
        match *self {
            Pointwise::Add | Pointwise::AddInPlace => {
                add_grad(g, node.inputs[0], dy);
                add_grad(g, node.inputs[1], dy);
            }
            Pointwise::Mul => {
                let [a, b] = [node.inputs[0], node.inputs[1]];
                for (x, other) in [(a, b), (b, a)] {
                    if g.requires_grad(x) {
                        let dx = mul(g, dy, other);
                        add_grad(g, x, dx);
                    }
                }
            }
            Pointwise::Scale(factor) => {
                let dx = scale(g, dy, factor);
                add_grad(g, node.inputs[0], dx);
            }
            Pointwise::ScaleBy(power) => {
                let dx = scale_by(g, dy, node.inputs[1], power);
                add_grad(g, node.inputs[0], dx);
            }
            Pointwise::Zeros => {}
        }
        Ok(())
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let count = node.outputs[0].shape.numel();
        let (kind, factor) = match *self {
            Pointwise::Add => (0, 1.0),
            Pointwise::AddInPlace => (1, 1.0),
            Pointwise::Mul => (2, 1.0),
            Pointwise::Scale(factor) => (3, factor),
            Pointwise::Zeros => (4, 0.0),
            Pointwise::ScaleBy(Power::One) => (5, 0.0),
            Pointwise::ScaleBy(Power::Square) => (6, 0.0),
            Pointwise::ScaleBy(Power::Inverse) => (7, 0.0),
        };
        let (entry, inputs) = match self {
            Pointwise::Zeros => ("fill", 0),
            Pointwise::AddInPlace | Pointwise::Scale(_) => ("unary", 1),
            Pointwise::Add | Pointwise::Mul | Pointwise::ScaleBy(_) => ("binary", 2),
        };
        let binds = [Bind::Out(0)].into_iter().chain((0..inputs).map(Bind::In)).collect();
        Ok(vec![Dispatch {
            shader: SHADER,
            entry,
            constants: vec![("KIND", format!("{kind}u"))],
            binds,
            params: vec![count as u32, factor.to_bits()],
            groups: grid(count.div_ceil(256), caps),
        }])
    }
}

impl Twin for Pointwise {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let y = io.out(0);
        let input = |i: usize| io.inputs.get(i).map(|_| io.f(i)).unwrap_or(&[]);
        let (a, b) = (input(0), input(1));
        y.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, y)| {
            let start = chunk * CHUNK;
            let a = if a.is_empty() { a } else { &a[start..start + y.len()] };
            match *self {
                Pointwise::Zeros => y.fill(F::ZERO),
                Pointwise::Add => y.iter_mut().zip(a).zip(&b[start..]).for_each(|((y, &a), &b)| *y = a + b),
                Pointwise::AddInPlace => y.iter_mut().zip(a).for_each(|(y, &a)| *y += a),
                Pointwise::Mul => y.iter_mut().zip(a).zip(&b[start..]).for_each(|((y, &a), &b)| *y = a * b),
                Pointwise::ScaleBy(power) => {
                    let factor = power.of(b[0]);
                    y.iter_mut().zip(a).for_each(|(y, &a)| *y = factor * a)
                }
                Pointwise::Scale(factor) => {
                    let factor = F::of(factor as f64);
                    y.iter_mut().zip(a).for_each(|(y, &a)| *y = factor * a)
                }
            }
        });
    }
}
