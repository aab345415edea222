//! The case table, a file a family of ops.

mod losses;
mod pointwise;

use super::Case;

/// Every row.
pub fn all() -> Vec<Case> {
    [losses::cases(), pointwise::cases()].into_iter().flatten().collect()
}
