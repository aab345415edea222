//! The case table, a file a family of ops.

mod activation;
mod embedding;
mod norm;
mod pointwise;
mod rope;

use super::Case;

/// Every row.
pub fn all() -> Vec<Case> {
    [pointwise::cases(), activation::cases(), norm::cases(), rope::cases(), embedding::cases()]
        .into_iter()
        .flatten()
        .collect()
}
