//! Arcee Fusion: take over the changes whose importance |x - b| KL(row of x || row of b) is an outlier by Tukey's rule.

use super::inputs::{Block, Cut, Inputs, Kernel};
use super::select::{borders, of_signed, signed};
use crate::Result;

/// See [`super::Method::ArceeFusion`]. Quartiles are exact, where mergekit samples large tensors at random.
pub(super) fn arcee_fusion<'k>(inputs: &Inputs) -> Result<Kernel<'k>> {
    let row = inputs.row();
    let cut = Cut { unit: row, deltas: false };
    let mut divergences: Vec<f32> = Vec::new();
    let of = |block: &mut Block| {
        let Some(model) = block.models.first() else { return Vec::new() };
        let rows = model.chunks(row).zip(block.base.chunks(row));
        rows.map(|(x, b)| divergence(x, b) as f32).collect::<Vec<_>>()
    };
    inputs.each(cut, of, |part| divergences.extend(part))?;
    let importance = |block: &Block, i: usize| {
        let x = block.models.first().map_or(0.0, |model| model[i]);
        (x - block.base[i]).abs() * divergences[(block.start + i) / row]
    };
    let keys = |block: &Block, _: usize, out: &mut Vec<u32>| {
        out.extend((0..block.len()).map(|i| signed(importance(block, i))));
    };
    // The value at index q (n - 1) of the ascending order is the last of the first n - index in the descending one.
    let n = inputs.count() as u64;
    let position = |q: f64| n - (q * n.saturating_sub(1) as f64) as u64;
    let found = borders(inputs, cut, &[vec![position(0.25), position(0.5), position(0.75)]], keys)?;
    let values: Vec<f32> = found.iter().flatten().map(|border| of_signed(border.key())).collect();
    let threshold = match values[..] {
        [lower, median, upper] => median + 1.5 * (upper - lower),
        _ => f32::INFINITY,
    };
    Ok(Kernel::new(cut, move |block, out| {
        let Some(model) = block.models.first() else { return };
        for (i, out) in out.iter_mut().enumerate() {
            let (x, b) = (model[i], block.base[i]);
            let important = (x - b).abs() * divergences[(block.start + i) / row] >= threshold;
            *out = if important { b + (x - b) } else { b };
        }
    }))
}

/// sum p ln(p/q) with p = softmax(x) + 1e-8 and q = softmax(b) + 1e-8.
fn divergence(x: &[f32], b: &[f32]) -> f64 {
    let shifted = |values: &[f32]| {
        let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        (f64::from(most), values.iter().map(|v| (f64::from(*v) - f64::from(most)).exp()).sum::<f64>())
    };
    let ((x_most, x_sum), (b_most, b_sum)) = (shifted(x), shifted(b));
    let term = |(x, b): (&f32, &f32)| {
        let p = (f64::from(*x) - x_most).exp() / x_sum + 1e-8;
        let q = (f64::from(*b) - b_most).exp() / b_sum + 1e-8;
        p * (p / q).ln()
    };
    x.iter().zip(b).map(term).sum()
}
