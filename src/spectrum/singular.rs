//! Singular values of one weight matrix, by faer.
//!
//! They are the square roots of the eigenvalues of the smaller Gram matrix, formed and reduced in f64. Products of f32
//! values are exact in f64 and only their sums round, so that a singular value s has an absolute error of about
//! eps * s_max^2 / s, with eps = 2e-16: below f32's own resolution of the matrix for all s > 1e-8 s_max. A direct SVD in
//! f32 is wrong by 1e-7 s_max everywhere, and several times slower.

use crate::{Error, Result};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par};

/// Columns (or rows) of the matrix that are widened to f64 at a time.
const PANEL: usize = 256;

/// The `min(rows, columns)` singular values of a row-major matrix, largest first. What cannot be told from zero
/// (an eigenvalue up to max(rows, columns) * eps times the largest) is zero. All threads take part.
///
/// Errors where `values` are not `rows * columns` finite numbers, at least one.
pub fn singular_values(values: &[f32], rows: usize, columns: usize) -> Result<Vec<f64>> {
    let par = Par::rayon(0);
    if values.is_empty() || rows.checked_mul(columns) != Some(values.len()) {
        let found = format!("{} for {rows} x {columns}", values.len());
        return Error::at("singular values").expected("as many values as a matrix has").found(found).err();
    }
    if values.iter().any(|value| !value.is_finite()) {
        return Error::at("singular values").expected("finite numbers").found("NaN or infinity").err();
    }
    eigen(gram(values, rows, columns, par), rows.max(columns), par)
}

/// W W^T where W is wide, else W^T W; the lower triangle only.
pub(crate) fn gram(values: &[f32], rows: usize, columns: usize, par: Par) -> Mat<f64> {
    let (small, large) = (rows.min(columns), rows.max(columns));
    let mut gram = Mat::zeros(small, small);
    let mut wide = Vec::with_capacity(small * PANEL.min(large));
    for begin in (0..large).step_by(PANEL) {
        let end = large.min(begin + PANEL);
        wide.clear();
        let panel = if rows > columns {
            // The rows of a tall matrix are the columns of its transpose, as they lie.
            wide.extend(values[begin * columns..end * columns].iter().map(|v| f64::from(*v)));
            MatRef::from_column_major_slice(&wide, small, end - begin)
        } else {
            let part = |row: &[f32]| row[begin..end].iter().for_each(|v| wide.push(f64::from(*v)));
            values.chunks_exact(columns).for_each(part);
            MatRef::from_row_major_slice(&wide, small, end - begin)
        };
        let (lower, whole) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
        triangular::matmul(&mut gram, lower, Accum::Add, panel, whole, panel.transpose(), whole, 1.0, par);
    }
    gram
}

/// Square roots of the eigenvalues of a Gram matrix of sums over `terms` products, largest first.
pub(super) fn eigen(gram: Mat<f64>, terms: usize, par: Par) -> Result<Vec<f64>> {
    let size = gram.nrows();
    let mut eigenvalues = Diag::<f64>::zeros(size);
    let mut memory =
        MemBuffer::new(self_adjoint_evd_scratch::<f64>(size, ComputeEigenvectors::No, par, Default::default()));
    let stack = MemStack::new(&mut memory);
    self_adjoint_evd(gram.as_ref(), eigenvalues.as_mut(), None, par, stack, Default::default())
        .map_err(|error| Error::internal(format!("eigenvalues of a Gram matrix: {error:?}")))?;
    let mut eigenvalues: Vec<f64> = eigenvalues.column_vector().iter().copied().collect();
    eigenvalues.reverse();
    let zero = eigenvalues.first().map_or(0.0, |largest| largest * terms as f64 * f64::EPSILON);
    Ok(eigenvalues.into_iter().map(|value| if value > zero { value.sqrt() } else { 0.0 }).collect())
}
