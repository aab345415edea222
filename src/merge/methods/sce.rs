//! SCE (Wan et al. 2024, FuseChat): select positions by variance, weigh models by energy, erase the minority sign.

use super::inputs::{Block, Cut, Inputs, Kernel};
use super::select::{Border, borders, magnitude};
use crate::Result;

const DELTAS: Cut = Cut { unit: 1, deltas: true };

/// Population variance over the models.
fn variance(models: &[&mut [f32]], i: usize) -> f32 {
    let n = models.len().max(1) as f32;
    let mean = models.iter().map(|m| m[i]).sum::<f32>() / n;
    models.iter().map(|m| (m[i] - mean) * (m[i] - mean)).sum::<f32>() / n
}

/// Sets every model's value to 0 where the position is not selected.
fn select(block: &mut Block, border: Option<&Border>) {
    let Some(border) = border else { return };
    let mut walk = border.walk(block.index);
    for i in 0..block.len() {
        if !walk.next(magnitude(variance(&block.models, i))) {
            block.models.iter_mut().for_each(|m| m[i] = 0.0);
        }
    }
}

/// See [`super::Method::Sce`].
pub(super) fn sce<'k>(inputs: &Inputs, select_topk: f64) -> Result<Kernel<'k>> {
    let border = match select_topk < 1.0 {
        true => Some(border(inputs, select_topk)?),
        false => None,
    };
    let mut energy = vec![0.0; inputs.models.len()];
    let of = |block: &mut Block| {
        select(block, border.as_ref());
        let square = |x: &f32| f64::from(*x) * f64::from(*x);
        block.models.iter().map(|m| m.iter().map(square).sum::<f64>()).collect::<Vec<_>>()
    };
    inputs.each(DELTAS, of, |part| energy.iter_mut().zip(part).for_each(|(sum, part)| *sum += part))?;
    let n = inputs.count().max(1) as f64;
    let sum = energy.iter().sum::<f64>() / n;
    // Below this mergekit takes the models for equal, and so do light fine-tunes end up.
    let weight = |energy: &f64| if sum < 1e-6 { 1.0 / inputs.models.len() as f64 } else { energy / n / sum };
    let weights: Vec<f32> = energy.iter().map(|energy| weight(energy) as f32).collect();
    Ok(Kernel::new(DELTAS, move |block, out| {
        select(block, border.as_ref());
        for (i, out) in out.iter_mut().enumerate() {
            let positive = block.models.iter().map(|m| m[i]).sum::<f32>() >= 0.0;
            let (mut change, mut divisor) = (0.0, 0.0f32);
            for (model, weight) in block.models.iter().zip(&weights) {
                let x = model[i];
                if (positive && x > 0.0) || (!positive && x < 0.0) {
                    change += weight * x;
                    divisor += weight;
                }
            }
            *out = block.base[i] + change / divisor.max(1e-6);
        }
    }))
}

/// The border behind the share `select_topk` of the positions that vary.
fn border(inputs: &Inputs, select_topk: f64) -> Result<Border> {
    let add = |count: &mut u64, block: &mut Block| {
        *count += (0..block.len()).filter(|i| variance(&block.models, *i) != 0.0).count() as u64;
    };
    let varying: u64 = inputs.tally(DELTAS, || 0, add)?.into_iter().sum();
    let k = (varying as f64 * select_topk) as u64;
    let keys = |block: &Block, _: usize, out: &mut Vec<u32>| {
        out.extend((0..block.len()).map(|i| magnitude(variance(&block.models, i))));
    };
    let found = borders(inputs, DELTAS, &[vec![k]], keys)?;
    Ok(found.into_iter().flatten().next().unwrap_or_default())
}
