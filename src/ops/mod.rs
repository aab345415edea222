//! The ops: one file here and one of the same name in `shaders/`, both sides of one operation. A file holds the
//! builder with its shape check, the gradient (which records other ops), the GPU dispatches, the CPU twin and the
//! cost. To add an op: those two files, a `mod` line here, and a row in `src/selftest/cases/`.

pub mod adamw;
pub mod grad_norm;
pub mod matmul;
pub mod pointwise;
pub mod reduce;

pub use adamw::{Page, adamw};
pub use grad_norm::{BAD_NORM, grad_norm};
pub use matmul::{Layout, View, linear, matmul, matmul_into};
pub use pointwise::{add, add_in_place, mul, scale, zeros};
pub use reduce::{sum_rows, sum_rows_into, weighted_sum};

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
    vec![adamw::SHADER, grad_norm::SHADER, matmul::SHADER, pointwise::SHADER, reduce::SHADER]
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
