//! The case table, a file a family of ops.

mod adamw;
mod attention;
mod grad_norm;
mod losses;
mod matmul;
mod pointwise;
mod reduce;

use super::Case;

/// Every row.
pub fn all() -> Vec<Case> {
    [adamw::cases(), attention::cases(), grad_norm::cases(), losses::cases(), matmul::cases(), pointwise::cases(), reduce::cases()].into_iter().flatten().collect()
}
