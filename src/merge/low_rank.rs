//! The matrix of least rank that is nearest to a given one.

use crate::device::gemm::{Layout, gemm};
use crate::spectrum::gram;
use crate::{Error, Result};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::{Mat, Par};

/// left right ~ D, where D is [rows, columns].
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// U sqrt(S), [rows, rank], row by row.
    pub left: Vec<f32>,
    /// sqrt(S) V^T, [rank, columns], row by row.
    pub right: Vec<f32>,
    /// The rank that was kept: of D itself if that is less than what was asked for.
    pub rank: usize,
    /// The sum of the squares of D.
    pub energy: f64,
    /// That of what was kept.
    pub kept: f64,
}

/// The matrix of at most `rank` that is nearest to `values` ([rows, columns], row by row; Eckart and Young 1936), as
/// two factors that share the singular values' roots. The singular vectors of the short side are the eigenvectors of
/// the Gram matrix in f64, those of the long side follow from them.
///
/// Errors where `values` are not `rows * columns` finite numbers, at least one.
pub fn low_rank(values: &[f32], rows: usize, columns: usize, rank: usize) -> Result<LowRank> {
    if values.is_empty() || rows.checked_mul(columns) != Some(values.len()) {
        let found = format!("{} for {rows} x {columns}", values.len());
        return Error::at("a low-rank matrix").expected("as many values as a matrix has").found(found).err();
    }
    if values.iter().any(|value| !value.is_finite()) {
        return Error::at("a low-rank matrix").expected("finite numbers").found("NaN or infinity").err();
    }
    let par = Par::rayon(0);
    let (small, large) = (rows.min(columns), rows.max(columns));
    let (eigenvalues, vectors) = decompose(gram(values, rows, columns, par), par)?;
    let energy = eigenvalues.iter().map(|value| value.max(0.0)).sum();
    let zero = eigenvalues.first().map_or(0.0, |largest| largest * large as f64 * f64::EPSILON);
    let rank = eigenvalues.iter().take(rank).take_while(|value| **value > zero && **value > 0.0).count();
    let kept = eigenvalues[..rank].iter().sum();
    // The short side's vectors as columns, [small, rank].
    let short: Vec<f64> = (0..small).flat_map(|i| vectors[..rank].iter().map(move |vector| vector[i])).collect();
    let wide: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
    // D V (tall) or D^T U (wide): the long side's vectors times the singular values, [large, rank].
    let matrix = match rows > columns {
        true => Layout { offset: 0, row: columns, col: 1 },
        false => Layout { offset: 0, row: 1, col: columns },
    };
    let dense = Layout { offset: 0, row: rank, col: 1 };
    let mut long = vec![0.0; large * rank];
    gemm((large, small, rank), &mut long, dense, false, &wide, matrix, &short, dense, true);
    let roots: Vec<f64> = eigenvalues[..rank].iter().map(|value| value.sqrt().sqrt()).collect();
    let scaled = |side: &[f64], by: &dyn Fn(f64) -> f64| -> Vec<f32> {
        side.chunks(rank.max(1)).flat_map(|row| row.iter().zip(&roots).map(|(x, r)| (x * by(*r)) as f32)).collect()
    };
    let (short, long) = (scaled(&short, &|root| root), scaled(&long, &|root| 1.0 / root));
    let (left, right) = if rows > columns { (long, short) } else { (short, long) };
    Ok(LowRank { left, right: transposed(&right, columns, rank), rank, energy, kept })
}

/// Eigenvalues, largest first, and their eigenvectors.
fn decompose(gram: Mat<f64>, par: Par) -> Result<(Vec<f64>, Vec<Vec<f64>>)> {
    let size = gram.nrows();
    let (mut values, mut vectors) = (Diag::<f64>::zeros(size), Mat::<f64>::zeros(size, size));
    let with = ComputeEigenvectors::Yes;
    let mut memory = MemBuffer::new(self_adjoint_evd_scratch::<f64>(size, with, par, Default::default()));
    let stack = MemStack::new(&mut memory);
    self_adjoint_evd(gram.as_ref(), values.as_mut(), Some(vectors.as_mut()), par, stack, Default::default())
        .map_err(|error| Error::internal(format!("eigenvectors of a Gram matrix: {error:?}")))?;
    let mut values: Vec<f64> = values.column_vector().iter().copied().collect();
    let mut vectors: Vec<Vec<f64>> = vectors.col_iter().map(|column| column.iter().copied().collect()).collect();
    values.reverse();
    vectors.reverse();
    Ok((values, vectors))
}

/// [n, m] from [m, n].
fn transposed(values: &[f32], m: usize, n: usize) -> Vec<f32> {
    (0..n).flat_map(|j| (0..m).map(move |i| values[i * n + j])).collect()
}
