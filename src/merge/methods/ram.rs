//! Methods that decide value by value: NearSwap, RAM and RAM+.

use super::inputs::{Block, Cut, Inputs, Kernel};
use crate::Result;

const DELTAS: Cut = Cut { unit: 1, deltas: true };

/// w x + (1 - w) b with w = clamp(t / max(|x - b|, 1e-6), 0, 1).
pub(super) fn nearswap<'k>(t: f64) -> Kernel<'k> {
    let t = t as f32;
    Kernel::new(DELTAS, move |block, out| {
        let Some(delta) = block.models.first() else { return };
        for ((out, b), d) in out.iter_mut().zip(block.base).zip(delta.iter()) {
            *out = b + (t / d.abs().max(1e-6)).clamp(0.0, 1.0) * d;
        }
    })
}

/// How many models changed a value.
fn active(models: &[&mut [f32]], position: usize, epsilon: f32) -> usize {
    models.iter().filter(|model| model[position].abs() > epsilon).count()
}

/// b + the mean of the changes above epsilon; with `plus` (r, alpha) a change of one model alone is multiplied by
/// 1 + r clamp(shared/unique, 0, alpha), by that model's counts in the tensor.
pub(super) fn ram<'k>(inputs: &Inputs, epsilon: f64, plus: Option<(f64, f64)>) -> Result<Kernel<'k>> {
    let small = epsilon as f32;
    let factors: Vec<f32> = match plus {
        None => vec![1.0; inputs.models.len()],
        Some((r, alpha)) => {
            let counts = overlap(inputs, small)?;
            let factor = |[shared, unique]: [u64; 2]| {
                (1.0 + r * (shared as f64 / (unique as f64).max(epsilon)).clamp(0.0, alpha)) as f32
            };
            counts.into_iter().map(factor).collect()
        }
    };
    Ok(Kernel::new(DELTAS, move |block, out| {
        for (i, out) in out.iter_mut().enumerate() {
            let count = active(&block.models, i, small);
            let share = 1.0 / count.max(1) as f32;
            let mut change = 0.0;
            for (model, factor) in block.models.iter().zip(&factors) {
                if model[i].abs() > small {
                    change += model[i] * if count == 1 { *factor } else { share };
                }
            }
            *out = block.base[i] + change;
        }
    }))
}

/// For each model the number of its changes that others share, and of those that none does.
fn overlap(inputs: &Inputs, epsilon: f32) -> Result<Vec<[u64; 2]>> {
    let models = inputs.models.len();
    let new = || vec![[0u64; 2]; models];
    let add = |counts: &mut Vec<[u64; 2]>, block: &mut Block| {
        for i in 0..block.len() {
            let alone = usize::from(active(&block.models, i, epsilon) == 1);
            for (count, model) in counts.iter_mut().zip(&block.models) {
                count[alone] += u64::from(model[i].abs() > epsilon);
            }
        }
    };
    let mut sum = new();
    for part in inputs.tally(DELTAS, new, add)? {
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum = [sum[0] + part[0], sum[1] + part[1]]);
    }
    Ok(sum)
}
