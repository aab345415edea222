//! Matrix products on the CPU, through the `gemm` crate.

use super::Real;

/// A matrix in a slice: element (i, j) is at `offset + i * row + j * col`.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// First element.
    pub offset: usize,
    /// Step from one row to the next.
    pub row: usize,
    /// Step from one column to the next.
    pub col: usize,
}

impl Layout {
    /// Whether an m x n matrix of this layout lies inside a slice of `len` elements.
    pub(super) fn fits(&self, m: usize, n: usize, len: usize) -> bool {
        m == 0 || n == 0 || self.offset + (m - 1) * self.row + (n - 1) * self.col < len
    }
}

/// C = A * B, or C += A * B if `accumulate`: C is m x n, A is m x k, B is k x n. `parallel` uses all
/// threads; inside a parallel loop pass false. Panics if a matrix reaches past its slice (a bug in an op).
#[allow(clippy::too_many_arguments)]
pub fn gemm<F: Real>(
    (m, k, n): (usize, usize, usize),
    c: &mut [F],
    lc: Layout,
    accumulate: bool,
    a: &[F],
    la: Layout,
    b: &[F],
    lb: Layout,
    parallel: bool,
) {
    assert!(lc.fits(m, n, c.len()) && la.fits(m, k, a.len()) && lb.fits(k, n, b.len()), "matrix past its slice");
    let threads = threads(parallel);
    let strides = |l: Layout| (l.col as isize, l.row as isize);
    let ((c_cs, c_rs), (a_cs, a_rs), (b_cs, b_rs)) = (strides(lc), strides(la), strides(lb));
    if m == 0 || n == 0 {
        return;
    }
    // SAFETY: the asserts above keep every element that gemm touches inside its slice, and `c` is borrowed alone.
    unsafe {
        let c = c.as_mut_ptr().add(lc.offset);
        let (a, b) = (a.as_ptr().wrapping_add(la.offset), b.as_ptr().wrapping_add(lb.offset));
        let alpha = if accumulate { F::ONE } else { F::ZERO };
        gemm::gemm(
            m,
            n,
            k,
            c,
            c_cs,
            c_rs,
            accumulate,
            a,
            a_cs,
            a_rs,
            b,
            b_cs,
            b_rs,
            alpha,
            F::ONE,
            false,
            false,
            false,
            threads,
        );
    }
}

#[cfg(not(target_family = "wasm"))]
fn threads(parallel: bool) -> gemm::Parallelism {
    if parallel { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None }
}

/// A browser's worker is one thread.
#[cfg(target_family = "wasm")]
fn threads(_: bool) -> gemm::Parallelism {
    gemm::Parallelism::None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gemm_reads_layouts_and_accumulates() {
        // C (2x2) += A^T (A is 3x2, so A^T is 2x3) * B (3x2)
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let b = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0];
        let mut c = [10.0, 20.0, 30.0, 40.0];
        let rows = |row, col| Layout { offset: 0, row, col };
        gemm((2, 3, 2), &mut c, rows(2, 1), true, &a, rows(1, 2), &b, rows(2, 1), false);
        assert_eq!(c, [16.0, 28.0, 38.0, 50.0]);
    }
}
