//! Least squares on a fixed basis: the projection from values to coefficients, computed once in double precision.
//!
//! DistillKit solves for every position in single precision, where a basis up to t^4 over 0..112 (condition number
//! 6.5e8) leaves errors of several nats. The basis does not depend on the position, so its pseudo-inverse is a constant
//! matrix and may as well be exact.

/// Singular values up to this are left out, as in DistillKit.
const CUT: f64 = 1e-5;

/// The pseudo-inverse, row-major `[n, m]`, of a basis given as `n` columns of `m` values each, by one-sided Jacobi
/// rotations (Hestenes 1958), which find small singular values to high relative accuracy.
pub(super) fn pseudo_inverse(columns: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let n = columns.len();
    let mut a = columns.to_vec();
    let mut v: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| if i == j { 1.0 } else { 0.0 }).collect()).collect();
    // Converges quadratically; a few dozen sweeps are far more than any basis here needs.
    for _ in 0..60 {
        let mut rotated = false;
        for p in 0..n {
            for q in p + 1..n {
                rotated |= rotate(&mut a, &mut v, p, q);
            }
        }
        if !rotated {
            break;
        }
    }
    // a_j = sigma_j u_j, so the inverse is the sum over j of v_j a_j^T / sigma_j^2.
    let m = columns.first().map_or(0, Vec::len);
    let mut inverse = vec![vec![0.0; m]; n];
    for (a, v) in a.iter().zip(&v) {
        let sigma = dot(a, a).sqrt();
        if sigma > CUT {
            for (row, v) in inverse.iter_mut().zip(v) {
                row.iter_mut().zip(a).for_each(|(out, a)| *out += v / sigma * (a / sigma));
            }
        }
    }
    inverse
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Makes columns `p` and `q` orthogonal; false if they are already.
fn rotate(a: &mut [Vec<f64>], v: &mut [Vec<f64>], p: usize, q: usize) -> bool {
    let (alpha, beta, gamma) = (dot(&a[p], &a[p]), dot(&a[q], &a[q]), dot(&a[p], &a[q]));
    if gamma == 0.0 || gamma.abs() <= 1e-15 * (alpha * beta).sqrt() {
        return false;
    }
    let zeta = (beta - alpha) / (2.0 * gamma);
    let t = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
    let c = 1.0 / t.hypot(1.0);
    let s = c * t;
    for columns in [a, v] {
        let (head, tail) = columns.split_at_mut(q);
        for (x, y) in head[p].iter_mut().zip(&mut tail[0]) {
            (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worst basis of DistillKit's README: t^0..t^4 and sqrt over t = 0..111.
    #[test]
    fn the_projection_of_the_worst_basis_returns_the_coefficients() {
        let t = || (0..112).map(f64::from);
        let mut columns: Vec<Vec<f64>> = (0..5).map(|i| t().map(|t| t.powi(i)).collect()).collect();
        columns.push(t().map(f64::sqrt).collect());
        let inverse = pseudo_inverse(&columns);
        for (i, row) in inverse.iter().enumerate() {
            for (j, column) in columns.iter().enumerate() {
                let expected = if i == j { 1.0 } else { 0.0 };
                // 2.2e-16 times the condition number, relative to the columns' lengths.
                let scale = dot(column, column).sqrt() * dot(row, row).sqrt();
                assert!((dot(row, column) - expected).abs() < 1e-12 * scale.max(1.0), "{i} {j} {}", dot(row, column));
            }
        }
    }

    #[test]
    fn a_column_that_is_a_copy_shares_its_coefficient() {
        // Minimum norm: two equal columns get half each.
        let column: Vec<f64> = (1..6).map(f64::from).collect();
        let inverse = pseudo_inverse(&[column.clone(), column.clone()]);
        for row in inverse {
            assert!((dot(&row, &column) - 0.5).abs() < 1e-12);
        }
    }
}
