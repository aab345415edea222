//! Losses on the order in which a sparse teacher ranks its stored tokens: DistillKit's `hinge` and `logistic_ranking`.

use super::cross_entropy::{LossInto, each_row, in_place};
use super::sparse_kl::{SparseTarget, stored_of};
use super::{Chunk, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, Graph, Node, Op, Tensor, Twin};

pub(crate) const SHADER: Shader = shader!("ranking");

/// What a pair of stored tokens costs, of which the teacher finds a the more probable.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ranking {
    /// max(0, margin - (q_a - q_b)) of the student's probabilities q at temperature 1.
    Hinge {
        /// In probability.
        margin: f32,
    },
    /// log(1 + exp(-(z_a - z_b))) of the student's logits.
    Logistic,
}

#[derive(Debug, Clone, Copy)]
struct Pairs {
    ranking: Ranking,
    first_row: usize,
    vocab: usize,
    gradient: bool,
}

/// Inputs before those of [`LossInto`]: logits, lse, ids, log-probabilities, weights.
const INPUTS: usize = 5;

/// The mean over each row's pairs of stored tokens with different probabilities, and dz += weight * its gradient.
/// `lse` `[R]` is the chunk's [`super::log_sum_exp`] at temperature 1, `weights` is `[N]`; a row without such a pair or
/// of weight 0 has loss 0. Of the target only the order of the log-probabilities counts. O(k^2) a row.
pub fn ranking(
    g: &mut Graph,
    ranking: Ranking,
    chunk: Chunk,
    lse: Tensor,
    target: SparseTarget,
    weights: Tensor,
    into: LossInto,
) -> LossInto {
    let SparseTarget { ids, log_probs, .. } = target;
    let batch = into.loss_rows.shape.numel();
    chunk.check(batch);
    assert!(ids.shape == log_probs.shape && ids.shape.rows() == batch, "ranking: {ids:?} {log_probs:?}");
    assert!(weights.shape.numel() == batch, "ranking: {weights:?}");
    assert!(into.dz.is_none_or(|dz| dz.shape == chunk.z.shape), "ranking: gradient of another shape");
    let op = Pairs { ranking, first_row: chunk.first_row, vocab: chunk.vocab, gradient: into.dz.is_some() };
    into.record(g, op, &[chunk.z, lse, ids, log_probs, weights])
}

impl Op for Pairs {
    fn name(&self) -> &'static str {
        "ranking"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        in_place(INPUTS, self.gradient)
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let (z, k) = (node.inputs[0].shape, node.inputs[2].shape.cols());
        let (hinge, margin) = match self.ranking {
            Ranking::Hinge { margin } => (true, margin),
            Ranking::Logistic => (false, 0.0),
        };
        let mut binds = vec![Bind::Out(0)];
        binds.extend((0..INPUTS).map(Bind::In));
        binds.extend(self.gradient.then_some(Bind::Out(1)));
        let mut params = Chunk::params(z.rows(), z.cols(), self.vocab, self.first_row);
        params.extend([k as u32, margin.to_bits()]);
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: if self.gradient { "gradient" } else { "value" },
            constants: vec![("HINGE", hinge.to_string())],
            binds,
            params,
            groups: grid(z.rows(), caps),
        }])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let (z, k) = (node.inputs[0].shape, node.inputs[2].shape.cols() as u64);
        let pairs = z.rows() as u64 * k * k;
        Cost { flops: 20 * pairs, bytes: 8 * z.numel() as u64 + 32 * pairs }
    }
}

impl Twin for Pairs {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (z, lse, ids, log_probs, weights) = (io.f(0), io.f(1), io.u(2), io.f(3), io.f(4));
        let (rows, stride, k) = (io.in_shape(0).rows(), io.in_shape(0).cols(), io.in_shape(2).cols());
        let (losses, dz) = (io.out(0), self.gradient.then(|| io.out(1)));
        each_row((rows, stride, self.first_row), losses, dz, |r, n, loss, dz| {
            *loss = F::ZERO;
            if weights[n] == F::ZERO {
                return;
            }
            let (z, slots) = (&z[r * stride..][..self.vocab], n * k..(n + 1) * k);
            let stored = stored_of(&ids[slots.clone()], &log_probs[slots], self.vocab);
            let of = |id: usize| match self.ranking {
                Ranking::Hinge { .. } => (z[id] - lse[r]).exp(),
                Ranking::Logistic => z[id],
            };
            let scores: Vec<F> = stored.iter().map(|&(id, _)| of(id)).collect();
            let (value, slopes) = self.pairs(&stored, &scores);
            *loss = value;
            if dz.is_empty() {
                return;
            }
            if self.ranking == Ranking::Logistic {
                stored.iter().zip(&slopes).for_each(|(&(id, _), &slope)| dz[id] += weights[n] * slope);
                return;
            }
            let mean = F::dot(&scores, &slopes);
            F::add_exp(&mut dz[..self.vocab], z, -(weights[n] * mean), F::ONE, lse[r]);
            for ((&(id, _), &q), &slope) in stored.iter().zip(&scores).zip(&slopes) {
                dz[id] += weights[n] * q * slope;
            }
        });
    }
}

impl Pairs {
    /// The mean over the pairs and its derivative by each score.
    fn pairs<F: Real>(&self, stored: &[(usize, F)], scores: &[F]) -> (F, Vec<F>) {
        let (mut value, mut slopes, mut count) = (F::ZERO, vec![F::ZERO; scores.len()], 0);
        for (a, &(_, log_a)) in stored.iter().enumerate() {
            for (b, _) in stored.iter().enumerate().filter(|(_, (_, log_b))| log_a > *log_b) {
                let (cost, slope) = self.pair(scores[a] - scores[b]);
                value += cost;
                slopes[a] += slope;
                slopes[b] -= slope;
                count += 1;
            }
        }
        let share = F::ONE / F::of(f64::from(count.max(1)));
        slopes.iter_mut().for_each(|slope| *slope *= share);
        (value * share, slopes)
    }

    /// A pair's cost and its derivative by the difference of the scores.
    fn pair<F: Real>(&self, difference: F) -> (F, F) {
        match self.ranking {
            Ranking::Hinge { margin } => {
                let short = F::of(f64::from(margin)) - difference;
                if short > F::ZERO { (short, -F::ONE) } else { (F::ZERO, F::ZERO) }
            }
            Ranking::Logistic => {
                // log(1 + e^-|x|) + max(0, -x), and -1 / (1 + e^x), both without overflow.
                let small = (-difference.abs()).exp();
                let value = (F::ONE + small).ln() + (-difference).larger(F::ZERO);
                let near = small / (F::ONE + small);
                (value, if difference > F::ZERO { -near } else { near - F::ONE })
            }
        }
    }
}
