//! The case table, a file a family of ops.

mod attention;
mod losses;
mod matmul;
mod pointwise;
mod reduce;

use super::Case;

/// Every row.
pub fn all() -> Vec<Case> {
    [attention::cases(), losses::cases(), matmul::cases(), pointwise::cases(), reduce::cases()].into_iter().flatten().collect()
}
