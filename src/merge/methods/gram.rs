//! Dot products of all inputs with each other: all that the methods on a sphere need to know of the tensors.

use super::inputs::{Cut, Inputs};
use crate::Result;

/// Partial sums side by side, which compilers keep in vector registers.
const LANES: usize = 8;

/// sum a b in f64.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    sums.iter().sum::<f64>() + rest
}

/// A symmetric matrix of dot products.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Gram {
    size: usize,
    values: Vec<f64>,
}

impl Gram {
    /// Of `vectors`.
    pub fn of(vectors: &[&mut [f32]]) -> Gram {
        let size = vectors.len();
        let mut gram = Gram { size, values: vec![0.0; size * size] };
        for (i, a) in vectors.iter().enumerate() {
            for (j, b) in vectors[..=i].iter().enumerate() {
                let product = dot(a, b);
                (gram.values[i * size + j], gram.values[j * size + i]) = (product, product);
            }
        }
        gram
    }

    /// Of whole tensors, or of their differences to the base.
    pub async fn measure(inputs: &Inputs<'_>, deltas: bool) -> Result<Gram> {
        let size = inputs.models.len();
        if let Some(device) = inputs.device {
            return Ok(Gram { size, values: inputs.products_on(device, deltas).await? });
        }
        let mut gram = Gram { size, values: vec![0.0; size * size] };
        let add = |part: Gram| gram.values.iter_mut().zip(part.values).for_each(|(sum, part)| *sum += part);
        inputs.each(Cut { unit: 1, deltas }, |block| Gram::of(&block.models), add)?;
        Ok(gram)
    }

    /// The dot product of two inputs.
    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.size + j]
    }

    /// The length of an input.
    pub fn norm(&self, i: usize) -> f64 {
        self.at(i, i).max(0.0).sqrt()
    }

    /// The number of inputs.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The dot product of two linear combinations.
    pub fn between(&self, a: &[f64], b: &[f64]) -> f64 {
        let row = |i: usize| b.iter().enumerate().map(|(j, b)| b * self.at(i, j)).sum::<f64>();
        a.iter().enumerate().map(|(i, a)| a * row(i)).sum()
    }
}
