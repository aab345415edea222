//! The AdamW update (arXiv:1711.05101, as torch.optim.AdamW), in one pass over parameters, gradients and moments.

use super::pages::{self, CHUNK};
use super::shader;
use crate::Result;
use crate::device::{Caps, Dispatch, Real, Shader};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("adamw");

/// Parameters that are updated together: four flat f32 tensors of one length.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// The parameters.
    pub param: Tensor,
    /// Their gradients.
    pub grad: Tensor,
    /// First moments.
    pub m: Tensor,
    /// Second moments.
    pub v: Tensor,
    /// Whether weight decay applies to them.
    pub decay: bool,
}

/// Inputs: parameters, gradients, m, v (each updated in place), norm and clip factor, step.
#[derive(Debug, Clone, Copy)]
struct AdamW {
    decay: bool,
}

/// One AdamW step with decoupled weight decay over a page, in place; the gradients are multiplied by the clip factor
/// and cleared afterwards. `norm_and_clip` [2] comes from [`super::grad_norm`]; at a clip factor of 0 parameters and
/// moments stay as they are. `step` [8] holds lr, beta1, beta2, eps, weight_decay, 1 - beta1^t, 1 - beta2^t and an
/// unused value, t being the step's number from 1. Returns the page's new handles.
pub fn adamw(g: &mut Graph, page: Page, norm_and_clip: Tensor, step: Tensor) -> Page {
    let Page { param, grad, m, v, decay } = page;
    let count = param.shape.numel();
    assert!([grad, m, v].iter().all(|t| t.shape.numel() == count), "adamw: {page:?}");
    assert!(norm_and_clip.shape.numel() == 2 && step.shape.numel() == 8, "adamw: {norm_and_clip:?} {step:?}");
    let outputs = [param, grad, m, v].map(|t| (t.shape, DType::F32));
    let [param, grad, m, v] = g.record(AdamW { decay }, &[param, grad, m, v, norm_and_clip, step], outputs);
    Page { param, grad, m, v, decay }
}

impl Op for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        (0..4).map(|i| (i, i)).collect()
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let (count, params) = (node.outputs[0].shape.numel(), [u32::from(self.decay)]);
        Ok(pages::dispatches((SHADER, "update"), count, &params, caps, pages::update(4, 6)))
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let count = node.outputs[0].shape.numel() as u64;
        Cost { flops: 16 * count, bytes: 32 * count }
    }
}

impl Twin for AdamW {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let [param, grad, m, v] = [io.out(0), io.out(1), io.out(2), io.out(3)];
        let (factor, step) = (io.f(4)[1], io.f(5));
        let [lr, beta1, beta2, eps, weight_decay, correction1, correction2] = std::array::from_fn(|i| step[i]);
        let keep = if self.decay { F::ONE - lr * weight_decay } else { F::ONE };
        let moments = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
        let chunks = param.par_chunks_mut(CHUNK).zip(grad.par_chunks_mut(CHUNK)).zip(moments);
        chunks.for_each(|((param, grad), (m, v))| {
            if factor > F::ZERO {
                for (((x, g), m), v) in param.iter_mut().zip(grad.iter()).zip(m).zip(v) {
                    let g = factor * *g;
                    *m = beta1 * *m + (F::ONE - beta1) * g;
                    *v = beta2 * *v + (F::ONE - beta2) * g * g;
                    *x = keep * *x - lr * (*m / correction1) / ((*v / correction2).sqrt() + eps);
                }
            }
            grad.fill(F::ZERO);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::graph::{Plan, Runner, Store};
    use crate::ops::{BAD_NORM, grad_norm};

    const A: usize = 5;
    const B: usize = 3;

    /// Two pages, clipped together to norm 1: the first decays, the second does not.
    fn optimiser(store: &mut Store) -> Runner {
        let mut g = Graph::new();
        let page = |g: &mut Graph, name: &str, n: usize, decay| {
            let [param, grad, m, v] =
                ["x", "grad", "m", "v"].map(|kind| g.external(&format!("{kind}:{name}"), [n], DType::F32));
            Page { param, grad, m, v, decay }
        };
        let pages = [page(&mut g, "a", A, true), page(&mut g, "b", B, false)];
        let (norm, step) = (g.external("norm", [2], DType::F32), g.external("step", [8], DType::F32));
        let norm = grad_norm(&mut g, &pages.map(|page| page.grad), 1.0, norm);
        for page in pages {
            adamw(&mut g, page, norm, step);
        }
        for (name, tensor) in g.externals() {
            store.add(name, tensor.shape, tensor.dtype).unwrap();
        }
        Runner::new(Plan::new(&g).unwrap(), store, &mut Vec::new()).unwrap()
    }

    fn write_step(store: &Store, t: i32) {
        let corrections = [1.0 - 0.9f64.powi(t), 1.0 - 0.99f64.powi(t)];
        let step = [0.05, 0.9, 0.99, 1e-8, 0.1, corrections[0], corrections[1], 0.0];
        store.write("step", &step.map(|x: f64| x as f32)).unwrap();
    }

    fn read(store: &Store, name: &str) -> Vec<f32> {
        pollster::block_on(store.read_f32(name)).unwrap()
    }

    #[test]
    fn ten_clipped_steps_end_where_torch_ends() {
        // torch 2 in f64: AdamW with two parameter groups, lr 0.05, betas (0.9, 0.99), weight decay 0.1 and 0,
        // clip_grad_norm_ at 1; parameters start at sin(i) and cos(i).
        let a =
            [-0.09892086743710973, 0.9038021034050009, 0.7565819542157562, 0.24802089151815626, -0.8403749786461954];
        let b = [1.0004410552207907, 0.5558931905175618, -0.4464979248488822];
        let norms = [
            0.37269286593274004,
            0.4463757765091696,
            0.3852679468311741,
            3.6107775664432307,
            4.42971243786731,
            3.9934226522470224,
            3.524401508184388,
            4.362455349097997,
            4.1298786918300046,
            3.4770916143538737,
        ];
        let mut store = Store::new(&Device::cpu());
        let mut runner = optimiser(&mut store);
        let values = |n: usize, f: &dyn Fn(f64) -> f64| (0..n).map(|i| f(i as f64) as f32).collect::<Vec<_>>();
        store.write("x:a", &values(A, &f64::sin)).unwrap();
        store.write("x:b", &values(B, &f64::cos)).unwrap();
        for (t, norm) in (1..).zip(norms) {
            let scale = if t < 4 { 0.2 } else { 2.0 };
            let angle = |i: f64| t as f64 + 3.0 * i;
            store.write("grad:a", &values(A, &|i| angle(i).sin() * scale)).unwrap();
            store.write("grad:b", &values(B, &|i| angle(i).cos() * scale)).unwrap();
            write_step(&store, t);
            runner.run().unwrap();
            let found = read(&store, "norm");
            assert!((found[0] as f64 - norm).abs() < 1e-6 * norm, "step {t}: {} for {norm}", found[0]);
            assert_eq!(read(&store, "grad:a"), [0.0; A]);
        }
        // Ten f32 steps of at most 0.05 from values below 1: some ten roundings of 6e-8.
        for (found, expected) in read(&store, "x:a").iter().chain(&read(&store, "x:b")).zip(a.iter().chain(&b)) {
            assert!((*found as f64 - expected).abs() < 1e-6, "{found} for {expected}");
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_leaves_the_last_good_state() {
        let mut store = Store::new(&Device::cpu());
        let mut runner = optimiser(&mut store);
        let names = ["x:a", "m:a", "v:a", "x:b", "m:b", "v:b"];
        names.iter().for_each(|name| store.write(name, &[0.5f32; B]).unwrap());
        write_step(&store, 1);
        for bad in [f32::NAN, f32::INFINITY, -1e20] {
            let before: Vec<_> = names.iter().map(|name| read(&store, name)).collect();
            store.write("grad:a", &[0.1, 0.2, bad, 0.4, 0.5]).unwrap();
            store.write("grad:b", &[0.1f32; B]).unwrap();
            runner.run().unwrap();
            assert_eq!(read(&store, "norm"), [BAD_NORM, 0.0]);
            assert_eq!(names.iter().map(|name| read(&store, name)).collect::<Vec<_>>(), before);
            assert_eq!((read(&store, "grad:a"), read(&store, "grad:b")), (vec![0.0; A], vec![0.0; B]));
        }
    }
}
