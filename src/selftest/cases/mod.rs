//! The case table, a file a family of ops.

mod adamw;
mod grad_norm;
mod losses;
mod matmul;
mod pointwise;
mod reduce;

use super::Case;

/// Every row.
pub fn all() -> Vec<Case> {
    let families =
        [adamw::cases(), grad_norm::cases(), losses::cases(), matmul::cases(), pointwise::cases(), reduce::cases()];
    families.into_iter().flatten().collect()
}
