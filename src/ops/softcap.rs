//! Soft-capped logits (Bello et al. 2016; Gemma 2), in place: chunks of logits are the largest tensors there are.

use super::{add_grad, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("softcap");
/// Elements one rayon task handles.
const CHUNK: usize = 1 << 12;

/// x -> y in x's memory; or, backward: (y, dy) -> dx in dy's memory.
#[derive(Debug, Clone, Copy)]
struct SoftCap {
    cap: f32,
    backward: bool,
}

/// y = cap * tanh(x / cap), in x's memory; the old handle must not be read again. `cap` is positive.
pub fn softcap(g: &mut Graph, x: Tensor, cap: f32) -> Tensor {
    assert!(cap > 0.0, "softcap {cap}");
    g.record(SoftCap { cap, backward: false }, &[x], [(x.shape, DType::F32)])[0]
}

/// dx = dy * (1 - (y / cap)^2) for y = [`softcap`] (x), in dy's memory; equal shapes. Not differentiable.
pub fn softcap_grad(g: &mut Graph, y: Tensor, dy: Tensor, cap: f32) -> Tensor {
    assert_eq!(y.shape, dy.shape, "softcap_grad");
    g.record(SoftCap { cap, backward: true }, &[y, dy], [(y.shape, DType::F32)])[0]
}

impl Op for SoftCap {
    fn name(&self) -> &'static str {
        "softcap"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, usize::from(self.backward))]
    }

    fn backward(&self, g: &mut Graph, node: &Node<'_>, dy: &[Option<Tensor>]) -> Result<()> {
        if self.backward {
            return Err(crate::Error::internal("`softcap` has no second derivative"));
        }
        let Some(dy) = dy[0] else { return Ok(()) };
        // dy may be someone else's gradient too: a copy is turned into dx.
        let own = super::scale(g, dy, 1.0);
        let dx = softcap_grad(g, node.outputs[0], own, self.cap);
        add_grad(g, node.inputs[0], dx);
        Ok(())
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let count = node.outputs[0].shape.numel();
        let (entry, binds) = match self.backward {
            false => ("forward", vec![Bind::Out(0)]),
            true => ("backward", vec![Bind::Out(0), Bind::In(0)]),
        };
        Ok(vec![Dispatch {
            shader: SHADER,
            entry,
            constants: Vec::new(),
            binds,
            params: vec![count as u32, self.cap.to_bits()],
            groups: grid(count.div_ceil(256), caps),
        }])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let n = node.outputs[0].shape.numel() as u64;
        if self.backward { Cost { flops: 4 * n, bytes: 12 * n } } else { Cost { flops: 12 * n, bytes: 8 * n } }
    }
}

impl Twin for SoftCap {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let cap = F::of(self.cap as f64);
        let out = io.out(0).par_chunks_mut(CHUNK);
        if !self.backward {
            return out.for_each(|x| x.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh()));
        }
        out.zip(io.f(0).par_chunks(CHUNK)).for_each(|(dx, y)| {
            dx.iter_mut().zip(y).for_each(|(dx, &y)| *dx *= (F::ONE - y / cap) * (F::ONE + y / cap));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Values, evaluate};
    use std::collections::HashMap;

    #[test]
    fn the_oracle_computes_the_formula() {
        let mut g = Graph::new();
        let (x, dy) = (g.external("x", [4], DType::F32), g.external("dy", [4], DType::F32));
        let y = softcap(&mut g, x, 2.0);
        let dx = softcap_grad(&mut g, y, dy, 2.0);
        let given = [("x", vec![0.0, 2.0, -4.0, 1e4]), ("dy", vec![1.0, 10.0, 1.0, 1.0])];
        let mut values: HashMap<_, _> = given.into_iter().map(|(k, v)| (k.to_owned(), Values::F(v))).collect();
        let found = evaluate(&g, &mut values, &[y, dx]).unwrap();
        // tanh(1), tanh(2) and 1 - tanh^2 of both.
        let expected = [
            [0.0, 1.523_188_311_911_53, -1.928_055_160_151_634, 2.0],
            [1.0, 4.199_743_416_140_26, 0.070_650_824_853_164_47, 0.0],
        ];
        for (found, expected) in found.iter().zip(expected) {
            let close = found.floats().iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-14);
            assert!(close, "{found:?}, not {expected:?}");
        }
    }
}
