//! The power of two that brings a tensor into the range of 16-bit floats: what loss scaling does for a whole step, found
//! exactly for each tensor (Micikevicius et al. 2018, section 3.2, for why gradients need it).

use super::grad_norm::{bytes_of, pieces};
use super::shader;
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("f16_scale");
/// Elements behind one part.
const PART: usize = 4096;
/// The largest magnitude is brought into [2^14, 2^15).
const TARGET: i32 = 14;
/// The scale's own limit, so that its inverse is a normal float.
const LARGEST_POWER: i32 = 126;
/// Stands for the inverse where a value is not finite: whatever it multiplies is noticed by [`super::grad_norm`].
const NOT_FINITE: f64 = 3.4e38;

/// Inputs: x. Outputs: [s, 1/s], and the parts' largest magnitudes as bits.
#[derive(Debug, Clone, Copy)]
struct F16Scale;

/// [s, 1/s] for a tensor of floats: s is a power of two, 2^14 <= max |x| s < 2^15, at most 2^126. Not differentiable.
pub fn f16_scale(g: &mut Graph, x: Tensor) -> Tensor {
    let parts = x.shape.numel().div_ceil(PART).max(1);
    g.record(F16Scale, &[x], [([2].into(), DType::F32), ([parts].into(), DType::F32)])[0]
}

impl Op for F16Scale {
    fn name(&self) -> &'static str {
        "f16_scale"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let dispatch = |entry, binds, count: usize, first: usize, groups| Dispatch {
            shader: SHADER,
            entry,
            constants: vec![("PART", format!("{PART}u"))],
            binds,
            params: vec![count as u32, first as u32],
            groups,
        };
        let (mut dispatches, mut first) = (Vec::new(), 0);
        for piece in pieces(node.inputs[0].shape.numel(), PART, caps) {
            let (at, bytes) = bytes_of(&piece);
            let binds = vec![Bind::Out(1), Bind::InRange(0, at, bytes)];
            let parts = piece.len().div_ceil(PART);
            dispatches.push(dispatch("parts_of", binds, piece.len(), first, grid(parts, caps)));
            first += parts;
        }
        dispatches.push(dispatch("finish", vec![Bind::Out(1), Bind::Out(0)], first, 0, [1, 1, 1]));
        Ok(dispatches)
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let n = node.inputs[0].shape.numel() as u64;
        Cost { flops: n, bytes: 4 * n }
    }
}

impl Twin for F16Scale {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let out = io.out(0);
        let largest =
            |x: &[F]| x.iter().map(|x| x.abs().f64()).fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a });
        let parts: Vec<f64> = io.f(0).par_chunks(PART).map(largest).collect();
        let largest = parts.into_iter().fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a });
        let result = if largest.is_finite() {
            // The exponent as the bits of the f32 have it.
            let exponent = ((largest as f32).to_bits() >> 23) as i32 - 127;
            let power = (TARGET - exponent).min(LARGEST_POWER);
            [2f64.powi(power), 2f64.powi(-power)]
        } else {
            [1.0, NOT_FINITE]
        };
        out.copy_from_slice(&result.map(F::of));
    }
}
