//! Layers: a few lines each over the ops, named as in the literature.

mod lora;
mod params;
pub mod rotary;

pub use lora::{Lora, LoraNames};
pub use params::{ParamSpec, Params};

use crate::Result;
use crate::graph::{DType, Graph, Shape, Tensor};
use crate::ops::{self, Ranges, Segments};

/// A token batch's tensors on the device; all external, written by whoever packs the batch. N rows in all.
#[derive(Debug, Clone, Copy)]
pub struct BatchInputs {
    /// Token ids, u32 [N].
    pub tokens: Tensor,
    /// Position of each row in its document, u32 [N].
    pub positions: Tensor,
    /// Which rows may see which.
    pub ranges: Ranges,
    /// Rows sorted by token, for the embedding's gradient; absent where nothing is trained.
    pub segments: Option<Segments>,
    /// Positions are below this.
    pub context: usize,
}

impl BatchInputs {
    /// Declares the inputs of a batch of `n` rows as externals `PREFIX.tokens`, `PREFIX.positions`,
    /// `PREFIX.query_range` and, with `train`, those that only gradients need: `PREFIX.key_range`,
    /// `PREFIX.segment_order`, `PREFIX.segment_start`, `PREFIX.segment_token`.
    pub fn declare(g: &mut Graph, prefix: &str, n: usize, context: usize, train: bool) -> BatchInputs {
        let mut input = |name: &str, shape: Shape| g.external(&format!("{prefix}.{name}"), shape, DType::U32);
        let key = train.then(|| input("key_range", [n, 2].into()));
        let segments = train.then(|| Segments {
            order: input("segment_order", [n].into()),
            starts: input("segment_start", [n + 1].into()),
            tokens: input("segment_token", [n].into()),
        });
        BatchInputs {
            tokens: input("tokens", [n].into()),
            positions: input("positions", [n].into()),
            ranges: Ranges { query: input("query_range", [n, 2].into()), key },
            segments,
            context,
        }
    }
}

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
        None => ops::linear(g, x, weight, bias, residual),
    }
}

/// Root-mean-square norm over the last axis with parameter `name.weight` [d].
pub fn rms_norm(g: &mut Graph, params: &Params<'_>, name: &str, x: Tensor, eps: f64) -> Tensor {
    let weight = params.get(g, &format!("{name}.weight"), [x.shape.cols()]);
    ops::rms_norm(g, x, weight, eps as f32)
}

/// Rows of the token embedding `name.weight` [vocab, d].
pub fn embedding(
    g: &mut Graph,
    params: &Params<'_>,
    name: &str,
    batch: &BatchInputs,
    shape: [usize; 2],
) -> Result<Tensor> {
    let table = params.get(g, &format!("{name}.weight"), shape);
    Ok(ops::embedding(g, batch.tokens, table, batch.segments, 1.0))
}

/// Gated MLP over the norm of h: h + down(silu(gate(n)) * up(n)), n = norm(h), with parameters `norm.weight` and
/// those under `name`.
pub fn gated_mlp(
    g: &mut Graph,
    params: &Params<'_>,
    [norm, name]: [&str; 2],
    h: Tensor,
    eps: f64,
    intermediate: usize,
    bias: bool,
) -> Tensor {
    // Norm and product are cheap beside the projections: computed again in the backward pass, not kept.
    let [gate, up] = g.checkpoint(|g| {
        let x = rms_norm(g, params, norm, h, eps);
        ["gate_proj", "up_proj"].map(|part| linear(g, params, &format!("{name}.{part}"), x, intermediate, bias, None))
    });
    g.checkpoint(|g| {
        let inner = ops::swiglu(g, gate, up);
        linear(g, params, &format!("{name}.down_proj"), inner, h.shape.cols(), bias, Some(h))
    })
}
