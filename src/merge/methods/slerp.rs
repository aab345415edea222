//! Interpolation between two tensors along the sphere.

use super::gram::{Gram, dot};
use super::inputs::{Cut, Inputs, Kernel};
use super::linear::combination;
use crate::Result;

/// Beyond this cosine the arc is as good as a line: mergekit's threshold.
const STRAIGHT: f64 = 0.9995;

/// The coefficients of the two inputs at `t` on the arc of `angle`.
fn on_arc(t: f64, angle: f64) -> [f64; 2] {
    [((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()]
}

/// Slerp of whole tensors: one angle.
pub(super) async fn slerp<'k>(inputs: &Inputs<'_>, t: f64) -> Result<Kernel<'k>> {
    let gram = Gram::measure(inputs, false).await?;
    // A vector of no length has no direction; like mergekit, use it as it is.
    let length = |i: usize| if gram.norm(i) > 1e-8 { gram.norm(i) } else { 1.0 };
    let cosine = (gram.at(0, 1) / (length(0) * length(1))).clamp(-1.0, 1.0);
    let weights = if cosine.abs() > STRAIGHT { [1.0 - t, t] } else { on_arc(t, cosine.acos()) };
    Ok(combination(weights.to_vec(), false))
}

/// NuSLERP's coefficients from the two squared lengths and the dot product.
fn nu_coefficients(t: f64, squares: [f64; 2], product: f64) -> [f64; 2] {
    let length = |square: f64| square.max(0.0).sqrt().max(1e-7);
    let angle = (product / (length(squares[0]) * length(squares[1]))).clamp(-1.0, 1.0).acos();
    if angle.sin().abs() < 1e-8 { [1.0 - t, t] } else { on_arc(t, angle) }
}

/// NuSLERP: of whole tensors, rows or columns; of task vectors where there is a base.
pub(super) async fn nuslerp<'k>(
    inputs: &Inputs<'_>,
    weights: &[f64],
    flatten: bool,
    row_wise: bool,
) -> Result<Kernel<'k>> {
    let sum: f64 = weights.iter().sum();
    let t = if sum.abs() < 1e-6 { 0.5 } else { weights.get(1).map_or(0.5, |w| w / sum) };
    let deltas = inputs.base.is_some();
    if flatten {
        let gram = Gram::measure(inputs, deltas).await?;
        let coefficients = nu_coefficients(t, [gram.at(0, 0), gram.at(1, 1)], gram.at(0, 1));
        return Ok(combination(coefficients.to_vec(), deltas));
    }
    let cut = Cut { unit: inputs.row(), deltas };
    if row_wise && inputs.shape.len() > 1 { by_column(inputs, t, cut) } else { Ok(by_row(t, cut)) }
}

fn by_row<'k>(t: f64, cut: Cut) -> Kernel<'k> {
    Kernel::new(cut, move |block, out| {
        let [first, second] = &block.models[..] else { return };
        let rows = first.chunks(cut.unit).zip(second.chunks(cut.unit));
        for (out, (a, b)) in out.chunks_mut(cut.unit).zip(rows) {
            let c = nu_coefficients(t, [dot(a, a), dot(b, b)], dot(a, b)).map(|c| c as f32);
            out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (a, b))| *out = c[0] * a + c[1] * b);
        }
        out.iter_mut().zip(block.base).for_each(|(out, b)| *out += b);
    })
}

fn by_column<'k>(inputs: &Inputs, t: f64, cut: Cut) -> Result<Kernel<'k>> {
    let mut sums = vec![[0.0f64; 3]; cut.unit];
    let of = |block: &mut super::Block| {
        let mut sums = vec![[0.0f64; 3]; cut.unit];
        let [first, second] = &block.models[..] else { return sums };
        for (a, b) in first.chunks(cut.unit).zip(second.chunks(cut.unit)) {
            for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
                let (a, b) = (f64::from(*a), f64::from(*b));
                *sum = [sum[0] + a * a, sum[1] + b * b, sum[2] + a * b];
            }
        }
        sums
    };
    inputs.each(cut, of, |part| {
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum = [0, 1, 2].map(|i| sum[i] + part[i]));
    })?;
    let coefficients: Vec<[f32; 2]> =
        sums.iter().map(|[aa, bb, ab]| nu_coefficients(t, [*aa, *bb], *ab).map(|c| c as f32)).collect();
    Ok(Kernel::new(cut, move |block, out| {
        let [first, second] = &block.models[..] else { return };
        let rows = first.chunks(cut.unit).zip(second.chunks(cut.unit));
        for (out, (a, b)) in out.chunks_mut(cut.unit).zip(rows) {
            let columns = out.iter_mut().zip(&coefficients).zip(a.iter().zip(b));
            columns.for_each(|((out, c), (a, b))| *out = c[0] * a + c[1] * b);
        }
        out.iter_mut().zip(block.base).for_each(|(out, b)| *out += b);
    }))
}
