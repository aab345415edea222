//! Weighted sums, and no merge at all.

use super::inputs::{Cut, Kernel};
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
    Kernel::new(Cut { unit: 1, deltas }, move |block, out| {
        for (values, c) in block.models.iter().zip(&coefficients) {
            out.iter_mut().zip(values.iter()).for_each(|(out, x)| *out += c * x);
        }
        if deltas {
            out.iter_mut().zip(block.base).for_each(|(out, b)| *out += b);
        }
    })
}

/// s x.
pub(super) fn passthrough<'k>(scale: f64) -> Kernel<'k> {
    let scale = scale as f32;
    Kernel::new(VALUES, move |block, out| {
        let Some(values) = block.models.first() else { return };
        out.iter_mut().zip(values.iter()).for_each(|(out, x)| *out = if scale == 1.0 { *x } else { scale * x });
    })
}
