//! AdamW with its moments kept in 8 bits: blockwise dynamic quantisation (Dettmers et al. 2021, arXiv:2110.02861).
//!
//! A block is 256 consecutive elements of a page; it has a scale a moment, the block's largest magnitude, and a byte a
//! moment and element that stands for one of 256 values in -1..1 (first moment) or 0..1 (second). Each step decodes a
//! block, updates in f32 and encodes again, all within one workgroup.

use super::grad_norm::{bytes_of, pieces};
use super::shader;
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("adamw_8bit");
/// Elements that share a scale.
pub const BLOCK: usize = 256;
/// Words of a block's codes: a byte an element and moment.
pub const CODE_WORDS: usize = 2 * BLOCK / 4;
/// The signed map's code for 0. Codes are stored relative to it, so that fresh memory, all zeros, holds moments of 0.
const ZERO: u32 = 127;

/// Parameters that are updated together, `n` of them.
#[derive(Debug, Clone, Copy)]
pub struct Page8Bit {
    /// The parameters, f32 [n].
    pub param: Tensor,
    /// Their gradients, f32 [n].
    pub grad: Tensor,
    /// Codes of the moments, u32 [n / 256, rounded up, times 128]: for each block 64 words of the first moment's codes,
    /// then 64 of the second's, four to a word, the first in the lowest byte.
    pub codes: Tensor,
    /// Scales of the moments, f32 [n / 256, rounded up, times 2]: for each block the first moment's, then the second's.
    pub scales: Tensor,
    /// Whether weight decay applies to them.
    pub decay: bool,
}

/// Inputs: parameters, gradients, codes, scales (each updated in place), norm and clip factor, step, maps.
#[derive(Debug, Clone, Copy)]
struct AdamW8Bit {
    decay: bool,
}

/// The values that codes stand for, ascending: 256 signed ones, then 256 unsigned ones (the paper's dynamic tree
/// quantisation as bitsandbytes lays it out). The decade (0.1, 1] x 10^(e-6), e = 0..6, is cut into 2^e equal bins (the
/// unsigned map's into 2^(e+1)), whose middles are the values; 0 and 1 are added.
pub fn dynamic_maps() -> Vec<f32> {
    let middles = |decade: i32, bins: usize| {
        let middle = move |i: usize| (0.1 + 0.9 * (i as f64 + 0.5) / bins as f64) * 10f64.powi(decade - 6);
        (0..bins).map(middle)
    };
    let signed = (0..7).flat_map(|e| middles(e, 1 << e)).flat_map(|x| [x, -x]);
    let unsigned = (0..7).flat_map(|e| middles(e, 2 << e));
    let sorted = |values: Vec<f64>| {
        let mut values = [values, vec![0.0, 1.0]].concat();
        values.sort_by(f64::total_cmp);
        values
    };
    let both = [sorted(signed.collect()), sorted(unsigned.collect())].concat();
    both.into_iter().map(|x| x as f32).collect()
}

/// One AdamW step (as [`super::adamw()`]) whose moments are decoded before and encoded after it: each becomes the
/// nearest value of its map times the block's largest magnitude, but a second moment above 0 never becomes 0, which
/// would make the next step too long. `maps` [512] holds [`dynamic_maps`]. The parameters' update uses the moments as
/// they are before they are encoded. Returns the page's new handles.
pub fn adamw_8bit(g: &mut Graph, page: Page8Bit, norm_and_clip: Tensor, step: Tensor, maps: Tensor) -> Page8Bit {
    let Page8Bit { param, grad, codes, scales, decay } = page;
    let (count, blocks) = (param.shape.numel(), param.shape.numel().div_ceil(BLOCK));
    assert!(grad.shape.numel() == count && scales.shape.numel() == 2 * blocks, "adamw_8bit: {page:?}");
    assert!(codes.shape.numel() == blocks * CODE_WORDS && codes.dtype == DType::U32, "adamw_8bit: {page:?}");
    let fixed = [norm_and_clip, step, maps].map(|t| t.shape.numel());
    assert_eq!(fixed, [2, 8, 512], "adamw_8bit: {norm_and_clip:?} {step:?} {maps:?}");
    let inputs = [param, grad, codes, scales, norm_and_clip, step, maps];
    let outputs = [param, grad, codes, scales].map(|t| (t.shape, t.dtype));
    let [param, grad, codes, scales] = g.record(AdamW8Bit { decay }, &inputs, outputs);
    Page8Bit { param, grad, codes, scales, decay }
}

impl Op for AdamW8Bit {
    fn name(&self) -> &'static str {
        "adamw_8bit"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        (0..4).map(|i| (i, i)).collect()
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let dispatch = |piece: std::ops::Range<usize>| {
            let (at, bytes) = bytes_of(&piece);
            let (first, blocks) = ((piece.start / BLOCK) as u64, piece.len().div_ceil(BLOCK) as u64);
            let code_bytes = 4 * CODE_WORDS as u64;
            Dispatch {
                shader: SHADER,
                entry: "update",
                constants: Vec::new(),
                binds: vec![
                    Bind::OutRange(0, at, bytes),
                    Bind::OutRange(1, at, bytes),
                    Bind::OutRange(2, first * code_bytes, blocks * code_bytes),
                    Bind::OutRange(3, first * 8, blocks * 8),
                    Bind::In(4),
                    Bind::In(5),
                    Bind::In(6),
                ],
                params: vec![piece.len() as u32, u32::from(self.decay)],
                groups: grid(blocks as usize, caps),
            }
        };
        // The scales of a piece begin where a binding may: 32 blocks of 8 bytes.
        Ok(pieces(node.outputs[0].shape.numel(), 32 * BLOCK, caps).map(dispatch).collect())
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let count = node.outputs[0].shape.numel() as u64;
        Cost { flops: 60 * count, bytes: 20 * count }
    }
}

impl Twin for AdamW8Bit {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (param, grad, codes, scales) = (io.out(0), io.out(1), io.out_u(2), io.out(3));
        let (factor, step, maps) = (io.f(4)[1], io.f(5), io.f(6));
        let blocks = param.par_chunks_mut(BLOCK).zip(grad.par_chunks_mut(BLOCK));
        let state = codes.par_chunks_mut(CODE_WORDS).zip(scales.par_chunks_mut(2));
        blocks.zip(state).for_each(|((param, grad), (codes, scales))| {
            if factor > F::ZERO {
                self.block(param, grad, codes, scales, factor, step, maps);
            }
            grad.fill(F::ZERO);
        });
    }
}

impl AdamW8Bit {
    #[allow(clippy::too_many_arguments)]
    fn block<F: Real>(
        &self,
        param: &mut [F],
        grad: &[F],
        codes: &mut [u32],
        scales: &mut [F],
        factor: F,
        step: &[F],
        maps: &[F],
    ) {
        let [lr, beta1, beta2, eps, weight_decay, correction1, correction2] = std::array::from_fn(|i| step[i]);
        let keep = if self.decay { F::ONE - lr * weight_decay } else { F::ONE };
        let (mut m, mut v) = ([F::ZERO; BLOCK], [F::ZERO; BLOCK]);
        let byte = |codes: &[u32], i: usize| codes[i / 4] >> (8 * (i % 4)) & 255;
        for (i, (x, g)) in param.iter_mut().zip(grad).enumerate() {
            let g = factor * *g;
            let m_old = scales[0] * maps[((byte(codes, i) + ZERO) & 255) as usize];
            let v_old = scales[1] * maps[256 + byte(codes, BLOCK + i) as usize];
            m[i] = beta1 * m_old + (F::ONE - beta1) * g;
            v[i] = beta2 * v_old + (F::ONE - beta2) * g * g;
            *x = keep * *x - lr * (m[i] / correction1) / ((v[i] / correction2).sqrt() + eps);
        }
        let largest = |values: &[F]| values.iter().fold(F::ZERO, |a, x| if x.abs() > a { x.abs() } else { a });
        scales.copy_from_slice(&[largest(&m), largest(&v)]);
        codes.fill(0);
        for i in 0..param.len() {
            let unit = |x: F, scale: F| if scale > F::ZERO { x / scale } else { F::ZERO };
            let first = (nearest(&maps[..256], unit(m[i], scales[0])) + 256 - ZERO) & 255;
            let second = nearest(&maps[256..], unit(v[i], scales[1])).max(u32::from(v[i] > F::ZERO));
            codes[i / 4] |= first << (8 * (i % 4));
            codes[(BLOCK + i) / 4] |= second << (8 * (i % 4));
        }
    }
}

/// Which of 256 ascending values is nearest to `x`; of two, the lower.
fn nearest<F: Real>(map: &[F], x: F) -> u32 {
    let mut low = 0;
    for half in [128, 64, 32, 16, 8, 4, 2, 1] {
        if map[low + half] <= x {
            low += half;
        }
    }
    (low + usize::from(low < 255 && map[low + 1] - x < x - map[low])) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maps_are_those_of_the_paper() {
        let maps = dynamic_maps();
        let (signed, unsigned) = maps.split_at(256);
        assert!(signed.is_sorted_by(|a, b| a < b) && unsigned.is_sorted_by(|a, b| a < b), "256 different values each");
        assert_eq!((signed[ZERO as usize], signed[255], unsigned[0], unsigned[255]), (0.0, 1.0, 0.0, 1.0));
        // Of bitsandbytes' create_dynamic_map(signed=True) and (signed=False), to the last bit but one.
        let known = [(signed[0], -0.992_968_75), (signed[128], 5.5e-7), (signed[254], 0.992_968_75)];
        let known =
            known.into_iter().chain([(unsigned[1], 3.25e-7), (unsigned[2], 7.75e-7), (unsigned[254], 0.996_484_4)]);
        for (found, expected) in known {
            assert!((found - expected).abs() <= f32::EPSILON * expected.abs(), "{found} for {expected}");
        }
        // Negative ones mirror the positive ones but for 1.
        assert!((0..127).all(|i| signed[i] == -signed[254 - i]));
    }

    #[test]
    fn the_nearest_code_is_found() {
        let maps = dynamic_maps();
        for map in [&maps[..256], &maps[256..]] {
            for (i, &x) in map.iter().enumerate() {
                assert_eq!(nearest(map, x), i as u32);
            }
            for (i, pair) in map.windows(2).enumerate() {
                let (below, above) = (0.6 * pair[0] + 0.4 * pair[1], 0.4 * pair[0] + 0.6 * pair[1]);
                assert_eq!((nearest(map, below), nearest(map, above)), (i as u32, i as u32 + 1));
            }
            assert_eq!((nearest(map, -2.0), nearest(map, 2.0)), (0, 255));
        }
    }
}
