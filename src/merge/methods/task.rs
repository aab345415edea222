//! Task arithmetic (Ilharco et al. 2022) and its descendants: thin out, weigh, vote, sum.

use super::PerModel;
use super::inputs::{Block, Inputs, Kernel};
use super::sparsify::{Sparsify, Thinning};
use crate::Result;

/// b + lambda sum w t over the kept values.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// What is kept.
    pub sparsify: Sparsify,
    /// Elect a sign for each value by the sum of the weighted task vectors, and drop those against it (TIES).
    pub consensus: bool,
    /// Divide by the sum of the weights (of those that agree, where there was a vote).
    pub normalize: bool,
    /// Scale what is kept of a task vector so that its L1 norm stays.
    pub rescale: bool,
    /// A factor of the sum.
    pub lambda: f64,
}

impl Task {
    /// See [`super::Method::prepare`].
    pub(super) fn prepare<'k>(&self, inputs: &Inputs, models: &[PerModel], key: [u32; 2]) -> Result<Kernel<'k>> {
        let thinning = self.sparsify.prepare(inputs, models, key)?;
        let cut = self.sparsify.cut(inputs);
        let ratios = match self.rescale && self.sparsify != Sparsify::Nothing {
            true => ratios(inputs, cut, &thinning)?,
            false => vec![1.0; models.len()],
        };
        let weights: Vec<f32> = models.iter().map(|m| m.weight as f32).collect();
        // For each model what its kept values are multiplied by before they are weighed.
        let ratios: Vec<f32> = ratios.into_iter().map(|r| r as f32).collect();
        let (lambda, normalize) = (self.lambda as f32, self.normalize);
        let sum: f64 = models.iter().map(|m| m.weight).sum();
        let divisor = if normalize && sum.abs() >= 1e-8 { sum as f32 } else { 1.0 };
        let consensus = self.consensus;
        Ok(Kernel::new(cut, move |block, out| {
            thinning.apply(block);
            for ((values, weight), ratio) in block.models.iter_mut().zip(&weights).zip(&ratios) {
                values.iter_mut().for_each(|x| *x = weight * (*x * ratio));
                out.iter_mut().zip(values.iter()).for_each(|(out, x)| *out += x);
            }
            match consensus {
                true => agree(block, &weights, normalize, out),
                false => out.iter_mut().for_each(|x| *x /= divisor),
            }
            out.iter_mut().zip(block.base).for_each(|(out, b)| *out = b + lambda * *out);
        }))
    }
}

/// Replaces the sums in `out` by those of the values that have the sum's sign (0 counts as positive), divided by the
/// sum of their weights if `normalize`.
fn agree(block: &Block, weights: &[f32], normalize: bool, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        let positive = *out >= 0.0;
        let (mut sum, mut divisor) = (0.0, 0.0);
        for (model, weight) in block.models.iter().zip(weights) {
            let x = model[i];
            if (positive && x > 0.0) || (!positive && x < 0.0) {
                sum += x;
                divisor += weight;
            }
        }
        *out = if normalize && divisor != 0.0 { sum / divisor } else { sum };
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
