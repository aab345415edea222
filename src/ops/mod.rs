//! The ops: one file here and one of the same name in `shaders/`, both sides of one operation. A file holds the
//! builder with its shape check, the gradient (which records other ops), the GPU dispatches, the CPU twin and the
//! cost. To add an op: those two files, a `mod` line here, and a row in `src/selftest/cases/`.

pub mod adamw;
pub mod adamw_8bit;
pub mod agreement;
pub mod attention;
mod attention_grad;
pub mod blend;
pub mod buckets;
mod buckets_grad;
mod centre;
pub mod cka;
pub mod columns;
pub mod combine;
pub mod cross_entropy;
pub mod dense_kl;
pub mod divergence;
pub mod ema;
pub mod embedding;
mod embedding_grad;
pub mod entropy;
pub mod f16_scale;
pub mod gelu;
pub mod grad_norm;
pub mod hidden_loss;
pub mod inverse_norms;
pub mod likeness;
pub mod lion;
pub mod log_sum_exp;
pub mod matmul;
pub mod norm;
mod norm_grad;
pub mod packed;
mod pages;
pub mod pointwise;
pub mod put_rows;
pub mod ranking;
pub mod reduce;
pub mod relation_kl;
pub mod rope;
pub mod sample_rows;
pub mod scale_columns;
pub mod sgd;
pub mod softcap;
pub mod sparse_kl;
pub mod swiglu;
pub mod taid_step;
pub mod tail_mass;
pub mod teacher_row;
pub mod top_k;
pub mod write_rows;

pub use adamw::{Page, adamw};
pub use adamw_8bit::{Page8Bit, adamw_8bit, dynamic_maps};
pub use agreement::agreement;
pub use attention::{Ranges, attention};
pub use blend::blend;
pub use buckets::{Buckets, buckets};
pub use buckets_grad::add_bucket_grad;
pub use cka::cka;
pub use columns::columns;
pub use combine::{Combination, Election, combine};
pub use cross_entropy::{LossInto, Smoothing, cross_entropy, smoothed_cross_entropy};
pub use dense_kl::{DenseTarget, dense_kl};
pub use divergence::{Divergence, divergence};
pub use ema::ema;
pub use embedding::{Segments, embedding, gather_rows, segments_of};
pub use entropy::entropy;
pub use f16_scale::f16_scale;
pub use gelu::gelu;
pub use grad_norm::{BAD_NORM, grad_norm};
pub use hidden_loss::{hidden_cosine, hidden_mse};
pub use inverse_norms::inverse_norms;
pub use likeness::{cosine, overlap};
pub use lion::lion;
pub use log_sum_exp::{Chunk, log_sum_exp};
pub use matmul::{Layout, View, linear, matmul, matmul_into};
pub use norm::{layer_norm, rms_norm, rms_norm_1p};
pub use packed::{halves, packed_linear, packed_product, packed_rows};
pub use pointwise::{Power, add, add_in_place, mul, scale, scale_by, zeros};
pub use put_rows::{RowsInto, put_rows, put_rows_minus};
pub use ranking::{Ranking, ranking};
pub use reduce::{add_row_sums, sum_rows, sum_rows_into, weighted_sum};
pub use relation_kl::relation_kl;
pub use rope::rope;
pub use sample_rows::sample_rows;
pub use scale_columns::scale_columns;
pub use sgd::sgd;
pub use softcap::{softcap, softcap_grad};
pub use sparse_kl::{Missing, SparseTarget, sparse_kl};
pub use swiglu::swiglu;
pub use taid_step::{TaidStep, taid_step};
pub use tail_mass::tail_mass;
pub use teacher_row::teacher_row;
pub use top_k::top_k;
pub use write_rows::write_rows;

use crate::device::Shader;
use crate::graph::{Graph, Tensor};

/// The shader of an op by its file name. In a browser's module it is without its comments.
macro_rules! shader {
    ($name:literal) => {{
        const FILE: &str = include_str!(concat!("../../shaders/", $name, ".wgsl"));
        #[cfg(not(target_family = "wasm"))]
        const TEXT: &str = FILE;
        #[cfg(target_family = "wasm")]
        const BARE: [u8; crate::device::bare::len(FILE)] = crate::device::bare::bytes(FILE);
        #[cfg(target_family = "wasm")]
        const TEXT: &str = crate::device::bare::text(&BARE);
        crate::device::Shader { name: $name, text: TEXT }
    }};
}
pub(crate) use shader;

/// Every WGSL file of the crate, for the tests that validate them without a GPU.
pub fn shaders() -> Vec<Shader> {
    vec![
        adamw::SHADER,
        adamw_8bit::SHADER,
        agreement::SHADER,
        attention::SHADER,
        attention_grad::SHADER,
        centre::SHADER,
        cka::SHADER,
        blend::SHADER,
        buckets::SHADER,
        buckets_grad::SHADER,
        columns::SHADER,
        combine::SHADER,
        cross_entropy::SHADER,
        dense_kl::SHADER,
        divergence::SHADER,
        ema::SHADER,
        embedding::SHADER,
        embedding_grad::SHADER,
        entropy::SHADER,
        f16_scale::SHADER,
        gelu::SHADER,
        grad_norm::SHADER,
        hidden_loss::SHADER,
        inverse_norms::SHADER,
        likeness::SHADER,
        lion::SHADER,
        log_sum_exp::SHADER,
        matmul::SHADER,
        matmul::ALIGNED,
        #[cfg(not(target_family = "wasm"))]
        matmul::COOPERATIVE,
        norm::SHADER,
        norm_grad::SHADER,
        packed::SHADER,
        pointwise::SHADER,
        put_rows::SHADER,
        ranking::SHADER,
        reduce::SHADER,
        relation_kl::SHADER,
        rope::SHADER,
        sample_rows::SHADER,
        scale_columns::SHADER,
        sgd::SHADER,
        softcap::SHADER,
        sparse_kl::SHADER,
        swiglu::SHADER,
        taid_step::SHADER,
        tail_mass::SHADER,
        teacher_row::SHADER,
        top_k::SHADER,
        write_rows::SHADER,
    ]
}

/// Adds `dt` to the gradient of `t`, if `t` wants one. Ops whose kernels can accumulate look at
/// [`Graph::grad_in_place`] first and save the extra pass.
pub fn add_grad(g: &mut Graph, t: Tensor, dt: Tensor) {
    if !g.requires_grad(t) {
        return;
    }
    let sum = match (g.grad_in_place(t), g.grad(t)) {
        (Some(own), _) => add_in_place(g, own, dt),
        (None, Some(shared)) => add(g, shared, dt),
        (None, None) => dt,
    };
    g.set_grad(t, sum);
}
