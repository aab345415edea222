//! The case table, a file a family of ops.

mod activation;
mod adamw;
mod attention;
mod divergences;
mod embedding;
mod grad_norm;
mod losses;
mod matmul;
mod norm;
mod pointwise;
mod reduce;
mod rope;

use super::Case;

/// Every row.
pub fn all() -> Vec<Case> {
    [
        activation::cases(),
        adamw::cases(),
        attention::cases(),
        divergences::cases(),
        embedding::cases(),
        grad_norm::cases(),
        losses::cases(),
        matmul::cases(),
        norm::cases(),
        pointwise::cases(),
        reduce::cases(),
        rope::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
