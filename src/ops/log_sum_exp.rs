//! The normaliser of each row of logits: log sum exp(z / T).

use super::shader;
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("log_sum_exp");

/// A chunk of logits: consecutive rows of a batch of `N` rows, of which only as many as memory allows are alive.
#[derive(Debug, Clone, Copy)]
pub struct Chunk {
    /// The logits, `[R, V_padded]`.
    pub z: Tensor,
    /// The batch row of the first one.
    pub first_row: usize,
    /// Columns that are tokens; the surplus takes part in nothing and gets no gradient.
    pub vocab: usize,
}

impl Chunk {
    /// Panics unless the columns are there and the rows lie in a batch of `batch` rows: a bug in the caller.
    pub(crate) fn check(&self, batch: usize) {
        assert!((1..=self.z.shape.cols()).contains(&self.vocab), "{} tokens in {:?}", self.vocab, self.z);
        assert!(self.first_row + self.z.shape.rows() <= batch, "rows {}.. of {batch}: {:?}", self.first_row, self.z);
    }

    /// The uniform block's first words: rows, stride, vocabulary, first row.
    pub(crate) fn params(rows: usize, stride: usize, vocab: usize, first_row: usize) -> Vec<u32> {
        [rows, stride, vocab, first_row].iter().map(|&n| n as u32).collect()
    }
}

#[derive(Debug, Clone, Copy)]
struct LogSumExp {
    vocab: usize,
    temperature: f32,
}

/// log sum over j < `vocab` of exp(z_j / temperature), one number a row of `z` `[R, V_padded]`: `[R]`.
pub fn log_sum_exp(g: &mut Graph, z: Tensor, vocab: usize, temperature: f32) -> Tensor {
    assert!((1..=z.shape.cols()).contains(&vocab) && temperature > 0.0, "log_sum_exp");
    g.record(LogSumExp { vocab, temperature }, &[z], [([z.shape.rows()].into(), DType::F32)])[0]
}

impl Op for LogSumExp {
    fn name(&self) -> &'static str {
        "log_sum_exp"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let z = node.inputs[0].shape;
        let sizes = [z.rows() as u32, z.cols() as u32, self.vocab as u32];
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: "main",
            constants: vec![],
            binds: vec![Bind::Out(0), Bind::In(0)],
            params: [&sizes[..], &[(1.0 / self.temperature).to_bits()]].concat(),
            groups: grid(z.rows(), caps),
        }])
    }
}

impl Twin for LogSumExp {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (z, stride, scale) = (io.f(0), io.in_shape(0).cols(), F::ONE / F::of(self.temperature as f64));
        io.out(0).par_iter_mut().zip(z.par_chunks(stride)).for_each(|(lse, row)| {
            let row = &row[..self.vocab];
            let high = scale * F::max_of(row);
            *lse = high + F::sum_exp(row, scale, high).ln();
        });
    }
}
