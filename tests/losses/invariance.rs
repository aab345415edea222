//! What must not change a loss: how its rows are cut into chunks and micro-batches, and rows that do not count.

use super::reference::{KINDS, identity};
use super::{Bench, assert_close, random};
use potstill::graph::Tensor;
use potstill::losses::{Divergent, Head, Live, Loss, Target, Temperature, fused_head};
use potstill::ops::{Divergence, Missing, Ranking, Smoothing, SparseTarget};
use std::ops::Range;

const N: usize = 11;
const V: usize = 23;
const K: usize = 4;
/// Rows that do not count.
const MASKED: [usize; 3] = [0, 4, 8];

/// Inputs of some of the rows, and every loss there is on them.
struct Part {
    b: Bench,
    rows: Range<usize>,
    weights: Tensor,
}

impl Part {
    fn new(rows: Range<usize>) -> Part {
        let mut b = Bench::default();
        // 1 / the rows that count in the whole batch.
        let count = (N - MASKED.len()) as f64;
        let weights: Vec<f64> = rows.clone().map(|r| if MASKED.contains(&r) { 0.0 } else { 1.0 / count }).collect();
        let weights = b.floats("weights", [rows.len()], &weights);
        Part { b, rows, weights }
    }

    fn floats(&mut self, name: &str, columns: usize, values: &[f64]) -> Tensor {
        let Range { start, end } = self.rows;
        self.b.floats(name, [end - start, columns], &values[start * columns..end * columns])
    }

    fn target(&mut self, missing: &str) -> SparseTarget {
        let Range { start, end } = self.rows;
        let ids: Vec<u32> = (start..end).flat_map(|r| (0..K).map(move |i| ((r * 3 + i * 5) % V) as u32)).collect();
        let log_probs: Vec<f64> = random(52, N * K).iter().map(|x| x - 2.5).collect();
        let tail = self.b.floats("tail", [end - start], &vec![0.125; end - start]);
        SparseTarget {
            ids: self.b.ints("ids", [end - start, K], &ids),
            log_probs: self.floats("log_probs", K, &log_probs),
            missing: match missing {
                "ghost" => Missing::Ghost { tail },
                "uniform" => Missing::Uniform { tail },
                _ => Missing::BothRenormalised,
            },
            temperature: 1.5,
        }
    }

    /// Every kind from every sort of teacher.
    fn losses(&mut self) -> Vec<Loss<'static>> {
        let weights = self.weights;
        let teacher = self.floats("teacher", V, &random(51, N * V));
        let weight = identity(&mut self.b, V);
        let live =
            Live { hidden: teacher, head: Head { weight: Box::leak(Box::new([weight])), vocab: V, softcap: None } };
        let t = self.b.floats("t", [1], &[1.5]);
        let scalar = Target::Live(live, Temperature::Scalar(t));
        let mut losses = Vec::new();
        for (i, (divergence, values)) in KINDS.into_iter().enumerate() {
            let parameters = Some(self.b.floats(&format!("parameters{i}"), [2], &values));
            let term = |target| Divergent { divergence, parameters, blend: None, target, weights };
            if divergence == Divergence::LogitMse {
                losses.push(Loss::Divergence(term(Target::Live(live, Temperature::Fixed(1.0)))));
                continue;
            }
            losses.push(Loss::Divergence(term(Target::Live(live, Temperature::Fixed(1.5)))));
            losses.push(Loss::Divergence(term(scalar)));
            for missing in ["ghost", "uniform", "both"] {
                losses.push(Loss::Divergence(term(Target::Stored(self.target(missing)))));
            }
        }
        let blend = Some(self.b.floats("blend", [1], &[0.25]));
        let target = Target::Stored(self.target("ghost"));
        losses.push(Loss::Divergence(Divergent {
            divergence: Divergence::Kl,
            parameters: None,
            blend,
            target,
            weights,
        }));
        for ranking in [Ranking::Hinge { margin: 0.0625 }, Ranking::Logistic] {
            losses.push(Loss::Ranking { ranking, target: self.target("ghost"), weights });
        }
        let labels: Vec<u32> = self.rows.clone().map(|r| (r * 5 % V) as u32).collect();
        let labels = self.b.ints("labels", [self.rows.len()], &labels);
        let smoothing = Smoothing { label_smoothing: 0.125, z_loss: 0.0625 };
        losses.push(Loss::CrossEntropy { labels, smoothing, weights });
        losses
    }

    /// Loss `i`'s rows and the gradient by the hidden states and by the head.
    fn run(mut self, i: usize, chunk_rows: usize) -> [Vec<f64>; 3] {
        let hidden = self.floats("hidden", 5, &random(53, N * 5));
        self.b.g.require_grad(hidden);
        let weight: Vec<f64> = random(54, V * 5).iter().map(|x| 3.0 * x).collect();
        let weight = self.b.param("weight", [V, 5], &weight);
        let loss = self.losses().swap_remove(i);
        let head = Head { weight: &[weight], vocab: V, softcap: None };
        let fused = fused_head(&mut self.b.g, hidden, &head, &[loss], chunk_rows, true).unwrap();
        let d_weight = self.b.g.grad(weight).unwrap();
        let found = self.b.eval(&[fused.loss_rows[0], fused.d_hidden.unwrap(), d_weight]);
        found.try_into().unwrap()
    }
}

#[test]
fn chunks_micro_batches_and_masked_rows_change_nothing() {
    let count = Part::new(0..N).losses().len();
    for i in 0..count {
        let whole = Part::new(0..N).run(i, N);
        let scale = whole[0].iter().chain(&whole[2]).fold(0f64, |a, b| a.max(b.abs()));
        assert!(scale > 1e-4, "loss {i} is {scale}");
        for chunk_rows in [1, 7] {
            for (found, expected) in Part::new(0..N).run(i, chunk_rows).iter().zip(&whole) {
                assert_close(&format!("loss {i} in chunks of {chunk_rows}"), found, expected, 1e-12);
            }
        }
        // 5 rows of which 3 count, and 6 of which 5 do.
        let (a, b) = (Part::new(0..5).run(i, 2), Part::new(5..N).run(i, 4));
        let joined = [
            [&a[0][..], &b[0]].concat(),
            [&a[1][..], &b[1]].concat(),
            a[2].iter().zip(&b[2]).map(|(a, b)| a + b).collect(),
        ];
        for (found, expected) in joined.iter().zip(&whole) {
            assert_close(&format!("loss {i} in two micro-batches"), found, expected, 1e-12);
        }
        for row in MASKED {
            assert!(whole[0][row] == 0.0 && whole[1][row * 5..][..5].iter().all(|x| *x == 0.0), "loss {i}, row {row}");
        }
    }
}
