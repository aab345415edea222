//! Random draws from each row's distribution, the same on every device and whatever the batch.

use super::{Chunk, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;
use crate::random::philox;

pub(crate) const SHADER: Shader = shader!("sample_rows");
/// Columns j and j + LANES belong to one lane, as in the shader.
const LANES: usize = 256;
/// Keeps these random numbers apart from others drawn under the same seed and row.
const STREAM: u32 = 2;

#[derive(Debug, Clone, Copy)]
struct SampleRows {
    first_row: usize,
    vocab: usize,
    draws: usize,
    temperature: f32,
}

/// `draws` tokens drawn with replacement from softmax(z / temperature) of each row of the chunk: u32 `[R, draws]`.
/// `lse` `[R]` is the chunk's [`super::log_sum_exp`] at that temperature. `key` is u32 `[4]`: the seed (low word, high
/// word) and the number, in the whole data set, of the batch's first row (low, high); a row's draws depend on the seed
/// and its number alone. Random numbers are Philox4x32-10 (Salmon et al., SC 2011); devices may differ in a draw that
/// falls within rounding of the border between two tokens.
pub fn sample_rows(g: &mut Graph, chunk: Chunk, lse: Tensor, draws: usize, temperature: f32, key: Tensor) -> Tensor {
    let (z, first_row, vocab) = (chunk.z, chunk.first_row, chunk.vocab);
    chunk.check(usize::MAX);
    assert!(key.shape.numel() == 4 && draws > 0 && temperature > 0.0, "sample_rows: {key:?}");
    let op = SampleRows { first_row, vocab, draws, temperature };
    g.record(op, &[z, lse, key], [([z.shape.rows(), draws].into(), DType::U32)])[0]
}

impl Op for SampleRows {
    fn name(&self) -> &'static str {
        "sample_rows"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let z = node.inputs[0].shape;
        let mut params = Chunk::params(z.rows(), z.cols(), self.vocab, self.first_row);
        params.extend([self.draws as u32, (1.0 / self.temperature).to_bits()]);
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: "main",
            constants: vec![],
            binds: vec![Bind::Out(0), Bind::In(0), Bind::In(1), Bind::In(2)],
            params,
            groups: grid(z.rows(), caps),
        }])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        // Each draw walks half a lane's columns on average.
        let (rows, columns) = (node.inputs[0].shape.rows() as u64, node.inputs[0].shape.cols() as u64);
        let walked = rows * (columns + self.draws as u64 * (columns / (2 * LANES as u64) + 60));
        Cost { flops: 4 * walked, bytes: 4 * walked }
    }
}

impl Twin for SampleRows {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (z, lse, key) = (io.f(0), io.f(1), io.u(2));
        let (stride, scale) = (io.in_shape(0).cols(), F::ONE / F::of(self.temperature as f64));
        let seed = [key[0], key[1]];
        let base = (u64::from(key[2]) | u64::from(key[3]) << 32).wrapping_add(self.first_row as u64);
        let rows = z.par_chunks(stride).zip(lse).enumerate();
        io.out_u(0).par_chunks_mut(self.draws).zip(rows).for_each(|(ids, (r, (row, &lse)))| {
            let lanes = Lanes::new(&row[..self.vocab], scale, lse);
            let number = base.wrapping_add(r as u64);
            for (draw, id) in (0u32..).zip(ids) {
                let random = philox([draw, STREAM, number as u32, (number >> 32) as u32], seed);
                *id = lanes.pick(uniform_of(random[0]), uniform_of(random[1]));
            }
        });
    }
}

/// A row's mass, lane by lane.
struct Lanes<'a, F> {
    row: &'a [F],
    scale: F,
    lse: F,
    sums: [F; LANES],
    /// Mass of the lanes up to and including each.
    ends: [F; LANES],
}

impl<'a, F: Real> Lanes<'a, F> {
    fn new(row: &'a [F], scale: F, lse: F) -> Self {
        let (mut sums, mut ends, mut block) = ([F::ZERO; LANES], [F::ZERO; LANES], [F::ZERO; LANES]);
        for columns in row.chunks(LANES) {
            let block = &mut block[..columns.len()];
            F::exp_into(block, columns, F::ONE, scale, lse);
            sums.iter_mut().zip(block).for_each(|(sum, p)| *sum += *p);
        }
        let mut end = F::ZERO;
        for (e, &sum) in ends.iter_mut().zip(&sums) {
            end += sum;
            *e = end;
        }
        Lanes { row, scale, lse, sums, ends }
    }

    /// The column for two random numbers in (0, 1).
    fn pick(&self, first: f64, second: f64) -> u32 {
        let target = F::of(first) * self.ends[LANES - 1];
        let lane = self.ends.partition_point(|&end| end <= target).min(LANES - 1);
        let within = F::of(second) * self.sums[lane];
        let (mut sum, mut column) = (F::ZERO, lane);
        for (step, &z) in self.row.iter().skip(lane).step_by(LANES).enumerate() {
            column = lane + step * LANES;
            sum += (self.scale * z - self.lse).exp();
            if sum > within {
                break;
            }
        }
        column as u32
    }
}

/// In (0, 1): an odd multiple of 2^-24, which f32 holds exactly.
fn uniform_of(word: u32) -> f64 {
    (f64::from(word >> 9) + 0.5) / f64::from(1 << 23)
}
