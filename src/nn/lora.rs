//! Low-rank adapters of linear layers: LoRA (arXiv:2106.09685), rsLoRA's scale (arXiv:2312.03732) and DoRA
//! (arXiv:2402.09353), under the names and by the formulas of PEFT.

use super::{ParamSpec, Params};
use crate::graph::{Graph, Tensor};
use crate::ops::{self, Layout};
use std::collections::BTreeMap;

/// Which linear layers are adapted, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// The layers by module name, each with its weight's shape, [out, in].
    pub modules: BTreeMap<String, [usize; 2]>,
    /// r.
    pub rank: usize,
    /// What B A is multiplied by: alpha / r, or alpha / sqrt(r).
    pub scale: f64,
    /// DoRA: the direction is adapted, the rows' magnitudes are parameters of their own.
    pub dora: bool,
}

/// The names of an adapted layer's own parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraNames {
    /// A [r, in].
    pub a: String,
    /// B [out, r].
    pub b: String,
    /// m [out], of DoRA only.
    pub magnitude: String,
}

impl LoraNames {
    /// Those of a module.
    pub fn of(module: &str) -> LoraNames {
        LoraNames {
            a: format!("{module}.lora_A.weight"),
            b: format!("{module}.lora_B.weight"),
            magnitude: format!("{module}.lora_magnitude_vector"),
        }
    }
}

impl Lora {
    /// The adapters' parameters, module by module.
    pub fn parameters(&self) -> Vec<ParamSpec> {
        let mut specs = Vec::new();
        for (module, [out, inner]) in &self.modules {
            let names = LoraNames::of(module);
            specs.push(ParamSpec { name: names.a, shape: [self.rank, *inner].into() });
            specs.push(ParamSpec { name: names.b, shape: [*out, self.rank].into() });
            if self.dora {
                specs.push(ParamSpec { name: names.magnitude, shape: [*out].into() });
            }
        }
        specs
    }

    /// y = W x + s B A x (+ bias) (+ residual), of DoRA (m / |W + s B A|) (W x + s B A x) (+ bias) (+ residual), where
    /// the norm is taken by rows and treated as a constant. W + s B A is never formed.
    pub(super) fn linear(
        &self,
        g: &mut Graph,
        params: &Params<'_>,
        module: &str,
        [x, weight]: [Tensor; 2],
        bias: Option<Tensor>,
        residual: Option<Tensor>,
    ) -> Tensor {
        let (out, inner) = (weight.shape[0], weight.shape[1]);
        let names = LoraNames::of(module);
        let a = params.get(g, &names.a, [self.rank, inner]);
        let b = params.get(g, &names.b, [out, self.rank]);
        let scale = self.scale as f32;
        let low = ops::linear(g, x, a, None, None);
        let low = ops::scale(g, low, scale);
        if !self.dora {
            let base = ops::linear(g, x, weight, bias, residual);
            return ops::linear(g, low, b, None, Some(base));
        }
        let base = ops::linear(g, x, weight, None, None);
        let direction = ops::linear(g, low, b, None, Some(base));
        let (wa, aa) = (ops::matmul(g, Layout::NT, weight, a), ops::matmul(g, Layout::NT, a, a));
        let baa = ops::matmul(g, Layout::NN, b, aa);
        let inverse = ops::inverse_norms(g, weight, b, [wa, baa], scale);
        let magnitude = params.get(g, &names.magnitude, [out]);
        let factors = ops::mul(g, magnitude, inverse);
        ops::scale_columns(g, direction, factors, bias, residual)
    }
}
