//! The L2 norm of all gradients together, and the factor that clips it (`torch.nn.utils.clip_grad_norm_`).

use super::shader;
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, Slice, grid};
use crate::graph::{CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;
use std::ops::Range;

pub(crate) const SHADER: Shader = shader!("grad_norm");
/// Elements behind one partial sum.
const PART: usize = 4096;
/// A gradient larger than this (or NaN) makes the whole norm [`BAD_NORM`]; below it no sum of squares overflows.
const HUGE: f64 = 1e14;

/// The norm that is reported when a gradient is not finite or absurdly large. The clip factor is then 0, at which
/// [`super::adamw`] changes nothing but clears the gradients.
pub const BAD_NORM: f32 = 3.4e38;

/// Inputs: the pages, then the tensor that takes the result. Outputs: the result, the partial sums.
#[derive(Debug, Clone, Copy)]
struct GradNorm {
    pages: usize,
    max_norm: f32,
}

/// out = [norm, factor]: the L2 norm over all `pages` (flat tensors of any length) and what to multiply each gradient
/// by so that the norm stays within `max_norm`: min(1, max_norm / (norm + 1e-6)), always 1 if `max_norm` <= 0.
/// `out` [2] is written in place; its new handle is returned.
pub fn grad_norm(g: &mut Graph, pages: &[Tensor], max_norm: f32, out: Tensor) -> Tensor {
    assert_eq!(out.shape.numel(), 2, "grad_norm");
    let parts: usize = pages.iter().map(|page| page.shape.numel().div_ceil(PART)).sum();
    let inputs: Vec<Tensor> = pages.iter().copied().chain([out]).collect();
    let outputs = [(out.shape, DType::F32), ([parts].into(), DType::F32)];
    g.record(GradNorm { pages: pages.len(), max_norm }, &inputs, outputs)[0]
}

/// Cuts `elements` into ranges that one binding may cover, all but the last a multiple of `unit` long.
pub(super) fn pieces(elements: usize, unit: usize, caps: &Caps) -> impl Iterator<Item = Range<usize>> {
    let limit = (caps.max_binding / 4).min(elements as u64) as usize;
    let length = if limit == elements { elements.max(1) } else { (limit / unit * unit).max(unit) };
    (0..elements).step_by(length).map(move |start| start..elements.min(start + length))
}

/// The bytes behind a range of f32 elements, as offset and length.
pub(super) fn bytes_of(range: &Range<usize>) -> (u64, u64) {
    (range.start as u64 * 4, range.len() as u64 * 4)
}

impl Op for GradNorm {
    fn name(&self) -> &'static str {
        "grad_norm"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, self.pages)]
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        const { assert!((PART as u64 * 4).is_multiple_of(Slice::ALIGN)) };
        let dispatch = |entry, binds, count: usize, first: usize, groups| Dispatch {
            shader: SHADER,
            entry,
            constants: vec![("PART", format!("{PART}u"))],
            binds,
            params: vec![count as u32, first as u32, self.max_norm.to_bits()],
            groups,
        };
        let mut dispatches = Vec::new();
        let mut first = 0;
        for (i, page) in node.inputs[..self.pages].iter().enumerate() {
            for piece in pieces(page.shape.numel(), PART, caps) {
                let (at, bytes) = bytes_of(&piece);
                let binds = vec![Bind::Out(1), Bind::InRange(i, at, bytes)];
                let parts = piece.len().div_ceil(PART);
                dispatches.push(dispatch("squares", binds, piece.len(), first, grid(parts, caps)));
                first += parts;
            }
        }
        dispatches.push(dispatch("finish", vec![Bind::Out(1), Bind::Out(0)], first, 0, [1, 1, 1]));
        Ok(dispatches)
    }
}

impl Twin for GradNorm {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (out, partials) = (io.out(0), io.out(1));
        let huge = F::of(HUGE);
        let mut rest = &mut partials[..];
        for page in 0..self.pages {
            let page = io.f(page);
            let (here, after) = rest.split_at_mut(page.len().div_ceil(PART));
            rest = after;
            here.par_iter_mut().zip(page.par_chunks(PART)).for_each(|(partial, x)| {
                let sound = x.iter().fold(true, |sound, x| sound & (x.abs() <= huge));
                *partial = if sound { F::dot(x, x) } else { -F::ONE };
            });
        }
        let sound = partials.iter().all(|&partial| partial >= F::ZERO);
        let norm = partials.iter().map(|partial| partial.f64()).sum::<f64>().sqrt();
        let max_norm = self.max_norm as f64;
        let factor = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let result = if sound { [norm, factor] } else { [BAD_NORM as f64, 0.0] };
        out.copy_from_slice(&result.map(F::of));
    }
}
