//! Task arithmetic (Ilharco et al. 2022) and its descendants: thin out, weigh, vote, sum.

use super::PerModel;
use super::inputs::{Block, Cut, Inputs, Kernel};
use super::on_device::Program;
use super::sparsify::{Sparsify, Thinning};
use crate::Result;
use crate::ops::{Combination, Election};
use std::sync::Arc;

/// b + lambda sum w t over the kept values.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// What is kept.
    pub sparsify: Sparsify,
    /// Elect a sign for each value, and drop those against it (TIES).
    pub vote: Vote,
    /// Divide by the sum of the weights (of those that agree, where there was a vote).
    pub normalize: bool,
    /// How what is kept of a task vector is scaled.
    pub rescale: Rescale,
    /// A factor of the sum.
    pub lambda: f64,
}

/// By what the sign of a value is elected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    /// There is none.
    Nothing,
    /// The sum of the weighted task vectors (mergekit).
    Weighted,
    /// The sum of the task vectors as they are (the paper).
    Equal,
}

/// What makes up for dropped values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rescale {
    /// Nothing.
    Nothing,
    /// A factor by which the L1 norm of the task vector stays (mergekit).
    Norm,
    /// Each kept value is divided by the probability to be kept (the papers on DARE and DELLA).
    Chance,
}

impl Task {
    /// See [`super::Method::prepare`].
    pub(super) fn prepare<'k>(&self, inputs: &Inputs, models: &[PerModel], key: [u32; 2]) -> Result<Kernel<'k>> {
        let thinning = Arc::new(self.sparsify.prepare(inputs, models, key, self.rescale == Rescale::Chance)?);
        let cut = self.sparsify.cut(inputs);
        let ratios = match self.rescale == Rescale::Norm && self.sparsify != Sparsify::Nothing {
            true => ratios(inputs, cut, &thinning)?,
            false => vec![1.0; models.len()],
        };
        let weights: Vec<f32> = models.iter().map(|m| m.weight as f32).collect();
        // For each model what its kept values are multiplied by before they are weighed.
        let ratios: Vec<f32> = ratios.into_iter().map(|r| r as f32).collect();
        let (lambda, normalize) = (self.lambda as f32, self.normalize);
        let sum: f64 = models.iter().map(|m| m.weight).sum();
        let divisor = if normalize && sum.abs() >= 1e-8 { sum as f32 } else { 1.0 };
        let vote = self.vote;
        let (before, program) = self.on_device(thinning.clone(), cut, weights.clone(), ratios.clone());
        let kernel = Kernel::new(cut, move |block, out| {
            thinning.apply(block);
            for ((values, weight), ratio) in block.models.iter_mut().zip(&weights).zip(&ratios) {
                let weight = if vote == Vote::Equal { 1.0 } else { *weight };
                values.iter_mut().for_each(|x| *x = weight * (*x * ratio));
                out.iter_mut().zip(values.iter()).for_each(|(out, x)| *out += x);
            }
            match vote {
                Vote::Nothing => out.iter_mut().for_each(|x| *x /= divisor),
                _ => agree(block, &weights, vote == Vote::Equal, normalize, out),
            }
            out.iter_mut().zip(block.base).for_each(|(out, b)| *out = b + lambda * *out);
        });
        Ok(kernel.or_on_device(before, program))
    }

    /// The same with the weighing, the vote and the sum on a device; thresholds too, where they say all that is kept.
    fn on_device<'k>(
        &self,
        thinning: Arc<Thinning>,
        cut: Cut,
        factors: Vec<f32>,
        ratios: Vec<f32>,
    ) -> (Kernel<'k>, Program) {
        let election = match self.vote {
            Vote::Nothing => Election::Nothing,
            Vote::Weighted => Election::Weighted,
            Vote::Equal => Election::Equal,
        };
        let plain = ratios.iter().all(|ratio| *ratio == 1.0);
        let thresholds = thinning.thresholds().filter(|_| plain);
        let differences = thresholds.is_none();
        let how = Combination { election, normalize: self.normalize, lambda: self.lambda as f32, differences };
        let Some(thresholds) = thresholds else {
            let before = Kernel::new(cut, move |block, _| {
                thinning.apply(block);
                for (values, ratio) in block.models.iter_mut().zip(&ratios) {
                    values.iter_mut().for_each(|x| *x *= ratio);
                }
            });
            return (before, Program { thresholds: vec![0.0; factors.len()], factors, how, base: true });
        };
        (Kernel::new(Cut { deltas: false, ..cut }, |_, _| {}), Program { factors, thresholds, how, base: true })
    }
}

/// Values that are voted on together.
const LANES: usize = 64;

/// Replaces the sums in `out` by those of the values that have the sum's sign (0 counts as positive), weighted if
/// the votes were `unweighted`, and divided by the sum of their weights if `normalize`.
fn agree(block: &Block, weights: &[f32], unweighted: bool, normalize: bool, out: &mut [f32]) {
    for (i, out) in out.chunks_mut(LANES).enumerate() {
        let (mut sums, mut divisors) = ([0.0; LANES], [0.0; LANES]);
        for (model, weight) in block.models.iter().zip(weights) {
            let factor = if unweighted { *weight } else { 1.0 };
            add_agreeing(&model[i * LANES..][..out.len()], factor, *weight, out, &mut sums, &mut divisors);
        }
        for (out, (sum, divisor)) in out.iter_mut().zip(sums.iter().zip(&divisors)) {
            *out = if normalize && *divisor != 0.0 { sum / divisor } else { *sum };
        }
    }
}

/// One model's votes.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx2", "x86_64+avx2"))]
fn add_agreeing(values: &[f32], factor: f32, weight: f32, elected: &[f32], sums: &mut [f32], divisors: &mut [f32]) {
    let totals = sums.iter_mut().zip(divisors);
    for ((x, elected), (sum, divisor)) in values.iter().zip(elected).zip(totals) {
        let agrees = (*x > 0.0) & (*elected >= 0.0) | (*x < 0.0) & (*elected < 0.0);
        *sum += if agrees { factor * *x } else { 0.0 };
        *divisor += if agrees { weight } else { 0.0 };
    }
}

/// For each model |t| over |kept t| in the L1 norm; 1 where either is nothing.
fn ratios(inputs: &Inputs, cut: super::inputs::Cut, thinning: &Thinning) -> Result<Vec<f64>> {
    let absolute = |values: &[f32]| values.iter().map(|x| f64::from(x.abs())).sum::<f64>();
    let mut sums = vec![[0.0; 2]; inputs.models.len()];
    let of = |block: &mut Block| {
        let before: Vec<f64> = block.models.iter().map(|values| absolute(values)).collect();
        thinning.apply(block);
        let after = block.models.iter().map(|values| absolute(values));
        before.into_iter().zip(after).collect::<Vec<_>>()
    };
    inputs.each(cut, of, |parts| {
        sums.iter_mut().zip(parts).for_each(|(sum, (before, after))| *sum = [sum[0] + before, sum[1] + after]);
    })?;
    Ok(sums.into_iter().map(|[all, kept]| if all < 1e-7 || kept < 1e-7 { 1.0 } else { all / kept }).collect())
}
