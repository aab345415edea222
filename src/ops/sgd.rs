//! Gradient descent with or without momentum, as torch.optim.SGD (no dampening, no Nesterov), in one pass over a page.

use super::pages::{self, CHUNK};
use super::shader;
use crate::Result;
use crate::device::{Caps, Dispatch, Real, Shader};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("sgd");

/// Inputs: parameters, gradients, maybe momentum (each updated in place), norm and clip factor, step.
#[derive(Debug, Clone, Copy)]
struct Sgd {
    decay: bool,
    momentum: bool,
}

/// One step of gradient descent over a page (flat tensors of one length), in place: b = momentum b + g + weight_decay
/// x, x -= lr b, where g is the gradient times the clip factor; without `momentum` b is not kept. Gradients are cleared
/// afterwards. `norm_and_clip` and `step` are those of [`super::adamw()`], of which lr, beta1 (the momentum's factor)
/// and weight_decay count; at a clip factor of 0 parameters and momentum stay as they are. Returns the new
/// handles of parameters, gradients and momentum.
pub fn sgd(
    g: &mut Graph,
    [param, grad]: [Tensor; 2],
    momentum: Option<Tensor>,
    decay: bool,
    norm_and_clip: Tensor,
    step: Tensor,
) -> Vec<Tensor> {
    let count = param.shape.numel();
    assert!([Some(grad), momentum].iter().flatten().all(|t| t.shape.numel() == count), "sgd: {param:?} {grad:?}");
    assert!(norm_and_clip.shape.numel() == 2 && step.shape.numel() == 8, "sgd: {norm_and_clip:?} {step:?}");
    let op = Sgd { decay, momentum: momentum.is_some() };
    let of = |t: Tensor| (t.shape, DType::F32);
    match momentum {
        Some(b) => g.record(op, &[param, grad, b, norm_and_clip, step], [of(param), of(grad), of(b)]).to_vec(),
        None => g.record(op, &[param, grad, norm_and_clip, step], [of(param), of(grad)]).to_vec(),
    }
}

impl Op for Sgd {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        (0..2 + usize::from(self.momentum)).map(|i| (i, i)).collect()
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let count = node.outputs[0].shape.numel();
        let (entry, updated) = if self.momentum { ("with_momentum", 3) } else { ("plain", 2) };
        let binds = pages::update(updated, updated + 2);
        Ok(pages::dispatches((SHADER, entry), count, &[u32::from(self.decay)], caps, binds))
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let count = node.outputs[0].shape.numel() as u64;
        Cost { flops: 6 * count, bytes: (16 + 8 * u64::from(self.momentum)) * count }
    }
}

impl Twin for Sgd {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let [param, grad] = [io.out(0), io.out(1)];
        let buffer: &mut [F] = if self.momentum { io.out(2) } else { &mut [] };
        let first = 2 + usize::from(self.momentum);
        let (factor, step) = (io.f(first)[1], io.f(first + 1));
        let [lr, momentum, weight_decay] = [step[0], step[1], step[4]];
        let decay = if self.decay { weight_decay } else { F::ZERO };
        let mut buffers: Vec<&mut [F]> = buffer.chunks_mut(CHUNK).collect();
        buffers.resize_with(param.len().div_ceil(CHUNK), Default::default);
        let chunks = param.par_chunks_mut(CHUNK).zip(grad.par_chunks_mut(CHUNK)).zip(buffers);
        chunks.for_each(|((param, grad), buffer)| {
            if factor > F::ZERO {
                for (i, (x, g)) in param.iter_mut().zip(grad.iter()).enumerate() {
                    let mut by = factor * *g + decay * *x;
                    if let Some(b) = buffer.get_mut(i) {
                        by += momentum * *b;
                        *b = by;
                    }
                    *x -= lr * by;
                }
            }
            grad.fill(F::ZERO);
        });
    }
}
