//! The exponential moving average of parameters (Polyak and Juditsky 1992), in one pass over a page.

use super::pages::{self, CHUNK};
use super::shader;
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("ema");

/// Inputs: the average (updated in place), the parameters.
#[derive(Debug, Clone, Copy)]
struct Ema {
    /// 1 - decay.
    share: f32,
}

/// average += share * (x - average), in the average's memory; flat tensors of one length. `share` is 1 - decay. Returns
/// the average's new handle.
pub fn ema(g: &mut Graph, average: Tensor, x: Tensor, share: f32) -> Tensor {
    assert_eq!(average.shape.numel(), x.shape.numel(), "ema");
    g.record(Ema { share }, &[average, x], [(average.shape, DType::F32)])[0]
}

impl Op for Ema {
    fn name(&self) -> &'static str {
        "ema"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![(0, 0)]
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let count = node.outputs[0].shape.numel();
        let binds = |at, bytes| vec![Bind::OutRange(0, at, bytes), Bind::InRange(1, at, bytes)];
        Ok(pages::dispatches((SHADER, "average"), count, &[self.share.to_bits()], caps, binds))
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let count = node.outputs[0].shape.numel() as u64;
        Cost { flops: 3 * count, bytes: 12 * count }
    }
}

impl Twin for Ema {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (average, x, share) = (io.out(0), io.f(1), F::of(self.share as f64));
        average.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(average, x)| {
            average.iter_mut().zip(x).for_each(|(a, &x)| *a += share * (x - *a));
        });
    }
}
