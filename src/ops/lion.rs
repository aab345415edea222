//! The Lion update (Chen et al. 2023, arXiv:2302.06675, Program 1), in one pass over parameters, gradients and
//! momentum.

use super::pages::{self, CHUNK};
use super::shader;
use crate::Result;
use crate::device::{Caps, Dispatch, Real, Shader};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("lion");

/// Inputs: parameters, gradients, momentum (each updated in place), norm and clip factor, step.
#[derive(Debug, Clone, Copy)]
struct Lion {
    decay: bool,
}

/// One Lion step over a page (three flat tensors of one length: parameters, gradients, momentum), in place; the
/// gradients are multiplied by the clip factor and cleared afterwards. With `decay`, parameters also shrink by lr times
/// weight decay. `norm_and_clip` and `step` are those of [`super::adamw()`], of which lr, beta1, beta2 and weight_decay
/// count; at a clip factor of 0 parameters and momentum stay as they are. Returns the new handles.
pub fn lion(g: &mut Graph, page: [Tensor; 3], decay: bool, norm_and_clip: Tensor, step: Tensor) -> [Tensor; 3] {
    assert!(page.iter().all(|t| t.shape.numel() == page[0].shape.numel()), "lion: {page:?}");
    assert!(norm_and_clip.shape.numel() == 2 && step.shape.numel() == 8, "lion: {norm_and_clip:?} {step:?}");
    let [param, grad, momentum] = page;
    let outputs = page.map(|t| (t.shape, DType::F32));
    g.record(Lion { decay }, &[param, grad, momentum, norm_and_clip, step], outputs)
}

impl Op for Lion {
    fn name(&self) -> &'static str {
        "lion"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        (0..3).map(|i| (i, i)).collect()
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let count = node.outputs[0].shape.numel();
        let params = [u32::from(self.decay)];
        Ok(pages::dispatches((SHADER, "update"), count, &params, caps, pages::update(3, 5)))
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let count = node.outputs[0].shape.numel() as u64;
        Cost { flops: 10 * count, bytes: 24 * count }
    }
}

impl Twin for Lion {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let [param, grad, momentum] = [io.out(0), io.out(1), io.out(2)];
        let (factor, step) = (io.f(3)[1], io.f(4));
        let [lr, beta1, beta2, weight_decay] = [step[0], step[1], step[2], step[4]];
        let keep = if self.decay { F::ONE - lr * weight_decay } else { F::ONE };
        let chunks = param.par_chunks_mut(CHUNK).zip(grad.par_chunks_mut(CHUNK)).zip(momentum.par_chunks_mut(CHUNK));
        chunks.for_each(|((param, grad), momentum)| {
            if factor > F::ZERO {
                for ((x, g), m) in param.iter_mut().zip(grad.iter()).zip(momentum) {
                    let g = factor * *g;
                    let direction = beta1 * *m + (F::ONE - beta1) * g;
                    let sign = F::of(f64::from(i8::from(direction > F::ZERO) - i8::from(direction < F::ZERO)));
                    *x = keep * *x - lr * sign;
                    *m = beta2 * *m + (F::ONE - beta2) * g;
                }
            }
            grad.fill(F::ZERO);
        });
    }
}
