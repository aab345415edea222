//! The case table, a file a family of ops.

mod activation;
mod adamw;
mod attention;
mod columns;
mod combine;
mod divergences;
mod embedding;
mod f16_scale;
mod grad_norm;
mod hidden;
mod likeness;
mod lora;
mod losses;
mod matmul;
mod norm;
mod optimisers;
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
        columns::cases(),
        combine::cases(),
        divergences::cases(),
        embedding::cases(),
        f16_scale::cases(),
        grad_norm::cases(),
        hidden::cases(),
        likeness::cases(),
        lora::cases(),
        losses::cases(),
        matmul::cases(),
        norm::cases(),
        optimisers::cases(),
        pointwise::cases(),
        reduce::cases(),
        rope::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
