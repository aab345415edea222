//! Layers: a few lines each over the ops, named as in the literature.

mod batch;
mod lora;
mod merged;
mod params;
pub mod rotary;

pub use batch::{BatchInputs, windows_in};
pub use lora::{Lora, LoraNames};
pub use merged::Merged;
pub use params::{ParamSpec, Params};

use crate::graph::{DType, Graph, Tensor};
use crate::ops::{self, Segments};

/// y = x W^T (+ b) (+ residual); parameters `name.weight` [out, in] and, if `bias`, `name.bias` [out]; adapted where
/// `params` say so.
pub fn linear(
    g: &mut Graph,
    params: &Params<'_>,
    name: &str,
    x: Tensor,
    out: usize,
    bias: bool,
    residual: Option<Tensor>,
) -> Tensor {
    let weight = params.get(g, &format!("{name}.weight"), [out, x.shape.cols()]);
    let bias = bias.then(|| params.get(g, &format!("{name}.bias"), [out]));
    match params.lora.filter(|lora| lora.modules.contains_key(name)) {
        Some(lora) => lora.linear(g, params, name, [x, weight], bias, residual),
        None if matches!(weight.dtype, DType::Packed(_)) => ops::packed_linear(g, x, weight, bias, residual),
        None => ops::linear(g, x, weight, bias, residual),
    }
}

/// The norms of the decoder families, each with its epsilon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Norm {
    /// Root-mean-square norm with a weight.
    Rms(f64),
    /// Root-mean-square norm that multiplies by 1 + weight (Gemma).
    RmsPlusOne(f64),
    /// LayerNorm with weight and bias.
    Layer(f64),
}

impl Norm {
    /// The parameters of such a norm called `name`, over `width` columns.
    pub fn parameters(self, name: &str, width: usize) -> Vec<ParamSpec> {
        let parts: &[&str] = if let Norm::Layer(_) = self { &["weight", "bias"] } else { &["weight"] };
        parts.iter().map(|part| ParamSpec { name: format!("{name}.{part}"), shape: [width].into() }).collect()
    }
}

/// Norm over the last axis with parameters `name.weight` [d] and, for LayerNorm, `name.bias` [d].
pub fn norm(g: &mut Graph, params: &Params<'_>, name: &str, x: Tensor, norm: Norm) -> Tensor {
    let d = x.shape.cols();
    let weight = params.get(g, &format!("{name}.weight"), [d]);
    match norm {
        Norm::Rms(eps) => ops::rms_norm(g, x, weight, eps as f32),
        Norm::RmsPlusOne(eps) => ops::rms_norm_1p(g, x, weight, eps as f32),
        Norm::Layer(eps) => {
            let bias = params.get(g, &format!("{name}.bias"), [d]);
            ops::layer_norm(g, x, weight, Some(bias), eps as f32)
        }
    }
}

/// Activations of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x).
    Silu,
    /// GELU, exact or in its tanh approximation.
    Gelu {
        /// The approximation: transformers' `gelu_new` and `gelu_pytorch_tanh`.
        tanh: bool,
    },
}

impl Activation {
    /// activation(gate) * up; equal shapes.
    pub fn gated(self, g: &mut Graph, gate: Tensor, up: Tensor) -> Tensor {
        match self {
            Activation::Silu => ops::swiglu(g, gate, up),
            Activation::Gelu { tanh } => {
                let opened = ops::gelu(g, gate, tanh);
                ops::mul(g, opened, up)
            }
        }
    }
}

/// `scale` times the rows of the table `name.weight` [rows, d] at `ids`; `segments` are the ids', for the gradient.
pub fn embedding(
    g: &mut Graph,
    params: &Params<'_>,
    name: &str,
    (ids, segments): (Tensor, Option<Segments>),
    shape: [usize; 2],
    scale: f32,
) -> Tensor {
    let table = params.get(g, &format!("{name}.weight"), shape);
    match table.dtype {
        DType::Packed(_) => ops::packed_rows(g, ids, table, scale),
        _ => ops::embedding(g, ids, table, segments, scale),
    }
}
