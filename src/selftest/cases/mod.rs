//! The case table, a file a family of ops.

mod pointwise;

use super::Case;

/// Every row.
pub fn all() -> Vec<Case> {
    [pointwise::cases()].into_iter().flatten().collect()
}
