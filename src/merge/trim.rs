//! TIES's trimming as the paper has it: one threshold for all values of a model's task vector, not one a tensor.

use super::config::MergeConfig;
use super::methods::{Method, Sparsify, Task, find, magnitudes};
use super::plan::{Plan, Planned};
use super::reading::Reading;
use crate::{Error, Result};
use std::collections::BTreeMap;

/// What is known of a model.
struct Trimmed {
    density: f64,
    /// Values of its task vector.
    values: u64,
    /// The highest 16 bits of the threshold, once they are known, and how many of the values with these are kept.
    high: Option<(u32, u64)>,
}

fn trims(tensor: &Planned) -> bool {
    matches!(&tensor.method, Method::Task(Task { sparsify: Sparsify::OfModel, .. }))
}

/// Finds every model's threshold, if the method trims whole models, and puts it into the plan. Reads all tensors twice.
///
/// Errors if a model's density is not the same for all tensors.
pub(super) async fn trim(plan: &mut Plan, config: &MergeConfig, memory: u64) -> Result<()> {
    let mut models: BTreeMap<usize, Trimmed> = BTreeMap::new();
    for tensor in plan.tensors.iter().filter(|tensor| trims(tensor)) {
        for (piece, settings) in tensor.models.iter().zip(&tensor.settings) {
            let density = settings.density;
            let model = models.entry(piece.model).or_insert(Trimmed { density, values: 0, high: None });
            if model.density != density {
                let place =
                    Error::file(&config.file).field(format!("`density` of `{}`", plan.models[piece.model].reference));
                let complaint = place.expected("one density for all tensors with `trim_whole_model`");
                return complaint
                    .found(format!("{} and {density}", model.density))
                    .help("leave out lists and filters")
                    .err();
            }
            model.values += tensor.shape.iter().product::<usize>() as u64;
        }
    }
    if models.is_empty() {
        return Ok(());
    }
    let high = count(plan, &models, memory).await?;
    for (index, model) in &mut models {
        // As of each tensor otherwise: cut down to whole values, but at least one.
        let kept = ((model.density * model.values as f64) as u64).max(1);
        let (bin, left, _) = find(&high[index], kept);
        model.high = Some((bin, left));
    }
    let low = count(plan, &models, memory).await?;
    let threshold = |(index, model): (&usize, &Trimmed)| {
        let (high, left) = model.high.unwrap_or_default();
        (*index, f32::from_bits(high << 16 | find(&low[index], left).0))
    };
    let thresholds: BTreeMap<usize, f32> = models.iter().map(threshold).collect();
    for tensor in plan.tensors.iter_mut().filter(|tensor| trims(tensor)) {
        for (piece, settings) in tensor.models.iter().zip(&mut tensor.settings) {
            settings.threshold = thresholds.get(&piece.model).copied().unwrap_or(0.0);
        }
    }
    Ok(())
}

/// By model how many of its values have which highest 16 bits; of those that have the wanted ones, which lowest.
async fn count(plan: &Plan, models: &BTreeMap<usize, Trimmed>, memory: u64) -> Result<BTreeMap<usize, Vec<u64>>> {
    let reading = Reading::new(plan, memory);
    let mut sums: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for tensor in plan.tensors.iter().filter(|tensor| trims(tensor)) {
        let inside = |index: usize| models.get(&index).and_then(|model| Some(model.high?.0));
        let inside: Vec<Option<u32>> = tensor.models.iter().map(|piece| inside(piece.model)).collect();
        let counted = reading.with(tensor, None, async |inputs| magnitudes(inputs, &inside)).await?;
        for (piece, counts) in tensor.models.iter().zip(counted) {
            match sums.get_mut(&piece.model) {
                Some(sum) => sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count),
                None => _ = sums.insert(piece.model, counts),
            }
        }
    }
    Ok(sums)
}
