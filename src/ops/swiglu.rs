//! SwiGLU: the gated activation of the Llama family's MLP.

use super::{add_grad, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("swiglu");
/// Elements the twin handles at a time: they stay in the first-level cache between its passes.
const PIECE: usize = 1 << 10;
/// Pieces of one rayon task.
const PIECES: usize = 16;

/// (gate, up) -> y, or backward: (gate, up, dy) -> (dgate, dup).
#[derive(Debug, Clone, Copy)]
struct SwiGlu {
    backward: bool,
}

/// y = silu(gate) * up with silu(a) = a / (1 + e^-a), element by element (Shazeer 2020); equal shapes.
pub fn swiglu(g: &mut Graph, gate: Tensor, up: Tensor) -> Tensor {
    assert_eq!(gate.shape, up.shape, "swiglu");
    g.record(SwiGlu { backward: false }, &[gate, up], [(gate.shape, DType::F32)])[0]
}

impl Op for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn backward(&self, g: &mut Graph, node: &Node<'_>, dy: &[Option<Tensor>]) -> Result<()> {
        if self.backward {
            return Err(crate::Error::internal("`swiglu` has no second derivative"));
        }
        let Some(dy) = dy[0] else { return Ok(()) };
        let (gate, up) = (node.inputs[0], node.inputs[1]);
        let shape = (gate.shape, DType::F32);
        let [dgate, dup] = g.record(SwiGlu { backward: true }, &[gate, up, dy], [shape; 2]);
        add_grad(g, gate, dgate);
        add_grad(g, up, dup);
        Ok(())
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let count = node.outputs[0].shape.numel();
        let (entry, binds) = match self.backward {
            false => ("forward", vec![Bind::In(0), Bind::In(1), Bind::Out(0)]),
            true => ("backward", vec![Bind::In(0), Bind::In(1), Bind::In(2), Bind::Out(0), Bind::Out(1)]),
        };
        Ok(vec![Dispatch {
            shader: SHADER,
            entry,
            constants: Vec::new(),
            binds,
            params: vec![count as u32],
            groups: grid(count.div_ceil(256), caps),
        }])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let n = node.outputs[0].shape.numel() as u64;
        let (flops, tensors) = if self.backward { (20, 5) } else { (15, 3) };
        Cost { flops: flops * n, bytes: 4 * tensors * n }
    }
}

impl Twin for SwiGlu {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (gate, up) = (io.f(0).par_chunks(PIECE), io.f(1).par_chunks(PIECE));
        let inputs = gate.zip(up).with_min_len(PIECES);
        if !self.backward {
            let y = io.out(0).par_chunks_mut(PIECE);
            return y.zip(inputs).for_each(|(y, (gate, up))| {
                y.copy_from_slice(gate);
                F::sigmoid(y);
                y.iter_mut().zip(gate).zip(up).for_each(|((y, &a), &b)| *y = a * *y * b);
            });
        }
        let outputs = io.out(0).par_chunks_mut(PIECE).zip(io.out(1).par_chunks_mut(PIECE));
        let inputs = inputs.zip(io.f(2).par_chunks(PIECE));
        outputs.zip(inputs).for_each(|((dgate, dup), ((gate, up), dy))| {
            dgate.copy_from_slice(gate);
            F::sigmoid(dgate);
            let inputs = gate.iter().zip(up).zip(dy);
            for ((dgate, dup), ((&a, &b), &dy)) in dgate.iter_mut().zip(dup).zip(inputs) {
                let s = *dgate;
                *dup = dy * a * s;
                *dgate = dy * b * s * (F::ONE + a * (F::ONE - s));
            }
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
        let (gate, up) = (g.external("gate", [5], DType::F32), g.external("up", [5], DType::F32));
        let y = swiglu(&mut g, gate, up);
        let mut values: HashMap<_, _> = HashMap::from([
            ("gate".to_owned(), Values::F(vec![0.0, 1.0, -2.0, 800.0, -800.0])),
            ("up".to_owned(), Values::F(vec![3.0, 2.0, -0.5, 1.0, 1.0])),
        ]);
        // torch.nn.functional.silu(gate) * up in f64.
        let expected = [0.0, 1.462_117_157_260_009_8, 0.119_202_922_022_117_56, 800.0, 0.0];
        let y = evaluate(&g, &mut values, &[y]).unwrap().swap_remove(0);
        assert!(y.floats().iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15), "{y:?}");
    }
}
