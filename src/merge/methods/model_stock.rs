//! Model Stock (Jang et al. 2024): how far from the base towards the mean of the models, by the angle between their
//! task vectors.

use super::gram::Gram;
use super::inputs::{Cut, Inputs, Kernel};
use super::linear::combination;
use crate::Result;

/// t = N c / (1 + (N - 1) c), c the mean cosine of all pairs (as the authors confirmed for N > 2). Not clamped.
fn ratio(gram: &Gram) -> f64 {
    let n = gram.size();
    let mut cosines = Vec::new();
    for i in 0..n {
        for j in 0..i {
            let lengths = (gram.norm(i) * gram.norm(j)).max(1e-6);
            cosines.push((gram.at(i, j) / lengths).clamp(-1.0, 1.0));
        }
    }
    let c = cosines.iter().sum::<f64>() / cosines.len().max(1) as f64;
    let n = n as f64;
    let denominator = 1.0 + (n - 1.0) * c;
    // There the task vectors cancel: their mean says nothing, and the formula has a pole.
    if denominator.abs() < 1e-6 { 0.0 } else { n * c / denominator }
}

/// b + t mean(t_i), with one t or one a row.
pub(super) async fn model_stock<'k>(inputs: &Inputs<'_>, filter_wise: bool) -> Result<Kernel<'k>> {
    let n = inputs.models.len();
    if !filter_wise {
        let t = ratio(&Gram::measure(inputs, true).await?);
        return Ok(combination(vec![t / n as f64; n], true));
    }
    let cut = Cut { unit: inputs.row(), deltas: true };
    Ok(Kernel::new(cut, move |block, out| {
        let rows = out.len().div_ceil(cut.unit);
        for row in 0..rows {
            let range = row * cut.unit..((row + 1) * cut.unit).min(out.len());
            let mut vectors: Vec<&mut [f32]> = block.models.iter_mut().map(|m| &mut m[range.clone()]).collect();
            let t = (ratio(&Gram::of(&vectors)) / n as f64) as f32;
            let out = &mut out[range.clone()];
            for vector in &mut vectors {
                out.iter_mut().zip(vector.iter()).for_each(|(out, x)| *out += t * x);
            }
            out.iter_mut().zip(&block.base[range]).for_each(|(out, b)| *out += b);
        }
    }))
}
