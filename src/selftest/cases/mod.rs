//! The case table, a file a family of ops.

mod attention;
mod pointwise;

use super::Case;

/// Every row.
pub fn all() -> Vec<Case> {
    [attention::cases(), pointwise::cases()].into_iter().flatten().collect()
}
