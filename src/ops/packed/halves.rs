//! A frozen matrix of blocks as 16-bit floats, for as long as products need it.

use super::pieces;
use crate::Result;
use crate::device::{Caps, Dispatch, Precision, Real};
use crate::formats::Dtype;
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

/// w -> its values as F16.
#[derive(Debug, Clone, Copy)]
struct Halves {
    stored: Dtype,
}

/// `w` [N, K], packed, as the products of a graph take it best. Where they round their factors to 16-bit floats, blocks are
/// rounded once, to a matrix of F16 that the kernels for large products read: products of it are the same. Anything
/// else stays as it is.
pub fn halves(g: &mut Graph, w: Tensor) -> Tensor {
    let DType::Packed(stored @ Dtype::Quant(_)) = w.dtype else { return w };
    if g.precision() != Precision::F16 {
        return w;
    }
    g.record(Halves { stored }, &[w], [(w.shape, DType::Packed(Dtype::F16))])[0]
}

impl Op for Halves {
    fn name(&self) -> &'static str {
        "packed"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        pieces::of_halves(self.stored, node, caps)
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let bytes = node.inputs[0].bytes() + node.outputs[0].bytes();
        Cost { flops: 4 * node.outputs[0].shape.numel() as u64, bytes }
    }
}

impl Twin for Halves {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (cols, w) = (io.in_shape(0).cols(), io.u(0));
        let words = self.stored.packed_words(cols);
        let out = io.out_u(0);
        let short = Dtype::F16.packed_words(cols);
        out.par_chunks_mut(short).zip(w.par_chunks(words)).for_each_init(
            || vec![0.0f32; cols],
            |row, (out, w)| {
                self.stored.unpack(w, row);
                for (word, pair) in out.iter_mut().zip(row.as_chunks::<2>().0) {
                    let [low, high] = pair.map(|x| half::f16::from_f32(x.clamp(-65504.0, 65504.0)).to_bits());
                    *word = u32::from(low) | u32::from(high) << 16;
                }
            },
        );
    }
}
