//! The case table, a file a family of ops.

mod matmul;
mod pointwise;
mod reduce;

use super::Case;

/// Every row.
pub fn all() -> Vec<Case> {
    [matmul::cases(), pointwise::cases(), reduce::cases()].into_iter().flatten().collect()
}
