//! The case table, a file a family of ops.

mod adamw;
mod grad_norm;
mod matmul;
mod pointwise;
mod reduce;

use super::Case;

/// Every row.
pub fn all() -> Vec<Case> {
    [adamw::cases(), grad_norm::cases(), matmul::cases(), pointwise::cases(), reduce::cases()]
        .into_iter()
        .flatten()
        .collect()
}
