//! The case table, a file a family of ops.

mod attention;
mod matmul;
mod pointwise;
mod reduce;

use super::Case;

/// Every row.
pub fn all() -> Vec<Case> {
    [attention::cases(), matmul::cases(), pointwise::cases(), reduce::cases()].into_iter().flatten().collect()
}
