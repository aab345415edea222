//! Means of several directions. Both methods only need the Gram matrix: their result is a linear combination.

use super::gram::Gram;
use super::inputs::{Inputs, Kernel};
use super::linear::combination;
use crate::{Error, Result};

/// MultiSLERP as mergekit computes it: its step in the tangent space is 0 by construction (the mean of the projections
/// on the mean's own orthogonal complement), so that what is left is the normalised weighted mean of the directions.
pub(super) async fn multislerp<'k>(
    inputs: &Inputs<'_>,
    mut weights: Vec<f64>,
    normalize: bool,
    eps: f64,
) -> Result<Kernel<'k>> {
    let deltas = inputs.base.is_some();
    let gram = Gram::measure(inputs, deltas).await?;
    let sum: f64 = weights.iter().sum();
    if normalize {
        if sum.abs() < 1e-8 {
            let complaint = Error::at("`weight`").expected("weights that do not sum to 0");
            return complaint.found(format!("{weights:?}")).help("add `normalize_weights: false`").err();
        }
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    let towards: Vec<f64> = weights.iter().enumerate().map(|(i, w)| w / (gram.norm(i) + eps)).collect();
    let length: f64 = weights.iter().enumerate().map(|(i, w)| w * gram.norm(i)).sum();
    let mean = gram.between(&towards, &towards).max(0.0).sqrt();
    if (0..gram.size()).all(|i| gram.norm(i) == 0.0) {
        return Ok(combination(vec![0.0; gram.size()], deltas));
    }
    if mean < eps {
        // Opposite directions have no mean: of two, a straight line; of more there is nothing sensible.
        if gram.size() == 2 {
            return Ok(combination(weights, deltas));
        }
        let complaint = Error::at("multislerp").expected("directions that do not cancel");
        return complaint.found("a mean of no length").help("change the weights, or use karcher").err();
    }
    Ok(combination(towards.into_iter().map(|c| length * c / mean).collect(), deltas))
}

/// The Karcher mean of the directions, each model counting the same, with the mean of the lengths. Iterates in the
/// coefficients of the unit vectors.
pub(super) async fn karcher<'k>(inputs: &Inputs<'_>, max_iter: usize, tol: f64) -> Result<Kernel<'k>> {
    let gram = Gram::measure(inputs, false).await?;
    let size = gram.size();
    let used: Vec<bool> = (0..size).map(|i| gram.norm(i) > tol).collect();
    let share = 1.0 / used.iter().filter(|used| **used).count().max(1) as f64;
    // In terms of the inputs themselves: the unit vector of input i is `unit(i)` times it.
    let unit = |i: usize| if used[i] { 1.0 / gram.norm(i) } else { 0.0 };
    let mut mean: Vec<f64> = (0..size).map(|i| share * unit(i)).collect();
    if gram.between(&mean, &mean).max(0.0).sqrt() < tol {
        let first = used.iter().position(|used| *used);
        mean = (0..size).map(|i| if Some(i) == first { unit(i) } else { 0.0 }).collect();
    }
    normalise(&gram, &mut mean);
    for _ in 0..max_iter {
        let mut step = vec![0.0; size];
        for i in (0..size).filter(|i| used[*i]) {
            let mut direction = vec![0.0; size];
            direction[i] = unit(i);
            let cosine = gram.between(&mean, &direction).clamp(-1.0, 1.0);
            let angle = cosine.acos();
            if angle >= tol {
                let factor = share * angle / angle.sin().max(1e-12);
                step.iter_mut().zip(&mean).for_each(|(step, mean)| *step -= factor * cosine * mean);
                step[i] += factor * unit(i);
            }
        }
        let length = gram.between(&step, &step).max(0.0).sqrt();
        if length < tol {
            break;
        }
        let (cos, sin) = (length.cos(), length.sin() / length);
        mean.iter_mut().zip(&step).for_each(|(mean, step)| *mean = cos * *mean + sin * step);
        normalise(&gram, &mut mean);
    }
    let length = (0..size).map(|i| gram.norm(i)).sum::<f64>() / size.max(1) as f64;
    Ok(combination(mean.into_iter().map(|c| length * c).collect(), false))
}

fn normalise(gram: &Gram, vector: &mut [f64]) {
    let length = gram.between(vector, vector).max(0.0).sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|c| *c /= length);
    }
}
