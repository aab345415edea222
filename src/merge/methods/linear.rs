//! Weighted sums, and no merge at all.

use super::inputs::{Cut, Inputs, Kernel};
use super::on_device::Program;
use crate::ops::{Combination, Election};
use crate::{Error, Result};

const VALUES: Cut = Cut { unit: 1, deltas: false };

/// sum w x, or sum w x / sum w.
pub(super) fn linear<'k>(weights: &[f64], normalize: bool) -> Result<Kernel<'k>> {
    let sum: f64 = weights.iter().sum();
    if normalize && sum.abs() < 1e-8 {
        let complaint = Error::at("`weight`").expected("weights that do not sum to 0").found(format!("{weights:?}"));
        return complaint.help("add `normalize: false` to use them as they are").err();
    }
    let divisor = if normalize { sum } else { 1.0 };
    Ok(combination(weights.iter().map(|w| w / divisor).collect(), false))
}

/// sum c x, or b + sum c t.
pub(super) fn combination<'k>(coefficients: Vec<f64>, deltas: bool) -> Kernel<'k> {
    let coefficients: Vec<f32> = coefficients.into_iter().map(|c| c as f32).collect();
    let program = weighted(coefficients.clone(), deltas);
    let kernel = Kernel::new(Cut { unit: 1, deltas }, move |block, out| {
        for (values, c) in block.models.iter().zip(&coefficients) {
            out.iter_mut().zip(values.iter()).for_each(|(out, x)| *out += c * x);
        }
        if deltas {
            out.iter_mut().zip(block.base).for_each(|(out, b)| *out += b);
        }
    });
    kernel.or_on_device(Kernel::new(VALUES, |_, _| {}), program)
}

/// The same as data.
fn weighted(factors: Vec<f32>, base: bool) -> Program {
    let how = Combination { election: Election::Nothing, normalize: false, lambda: 1.0, differences: false };
    Program { thresholds: vec![0.0; factors.len()], factors, how, base }
}

/// sum c x with the coefficient c of the value at position p being number p / `every` of its model's, from the first
/// again after the last.
pub(super) fn columns<'k>(inputs: &Inputs, coefficients: &[Vec<f32>], every: usize) -> Result<Kernel<'k>> {
    let fits = |c: &Vec<f32>| !c.is_empty() && inputs.count().is_multiple_of(c.len() * every.max(1));
    if coefficients.len() != inputs.models.len() || every == 0 || !coefficients.iter().all(fits) {
        return Err(Error::internal(format!("coefficients that do not fit {:?}", inputs.shape)));
    }
    let coefficients = coefficients.to_vec();
    Ok(Kernel::new(VALUES, move |block, out| {
        let start = block.start;
        for (values, c) in block.models.iter().zip(&coefficients) {
            let at = |i: usize| c[(start + i) / every % c.len()];
            out.iter_mut().zip(values.iter()).enumerate().for_each(|(i, (out, x))| *out += at(i) * x);
        }
    }))
}

/// s x.
pub(super) fn passthrough<'k>(scale: f64) -> Kernel<'k> {
    let scale = scale as f32;
    let kernel = Kernel::new(VALUES, move |block, out| {
        let Some(values) = block.models.first() else { return };
        out.iter_mut().zip(values.iter()).for_each(|(out, x)| *out = if scale == 1.0 { *x } else { scale * x });
    });
    kernel.or_on_device(Kernel::new(VALUES, |_, _| {}), weighted(vec![scale], false))
}
