//! The ops: one file here and one of the same name in `shaders/`, both sides of one operation. A file holds the
//! builder with its shape check, the gradient (which records other ops), the GPU dispatches, the CPU twin and the
//! cost. To add an op: those two files, a `mod` line here, and a row in `src/selftest/cases/`.

pub mod embedding;
mod embedding_grad;
pub mod gelu;
pub mod norm;
mod norm_grad;
pub mod pointwise;
pub mod rope;
pub mod sum_rows;
pub mod swiglu;
pub mod write_rows;

pub use embedding::{Segments, embedding, gather_rows, segments_of};
pub use gelu::gelu;
pub use norm::{layer_norm, rms_norm};
pub use pointwise::{add, add_in_place, mul, scale};
pub use rope::rope;
pub use sum_rows::{add_row_sums, sum_rows};
pub use swiglu::swiglu;
pub use write_rows::write_rows;

use crate::device::Shader;
use crate::graph::{Graph, Tensor};

/// The shader of an op by its file name.
macro_rules! shader {
    ($name:literal) => {
        crate::device::Shader { name: $name, text: include_str!(concat!("../../shaders/", $name, ".wgsl")) }
    };
}
pub(crate) use shader;

/// Every WGSL file of the crate, for the tests that validate them without a GPU.
pub fn shaders() -> Vec<Shader> {
    vec![
        embedding::SHADER,
        embedding_grad::SHADER,
        gelu::SHADER,
        norm::SHADER,
        norm_grad::SHADER,
        pointwise::SHADER,
        rope::SHADER,
        sum_rows::SHADER,
        swiglu::SHADER,
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
