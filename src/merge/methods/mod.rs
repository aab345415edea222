//! The merge methods: N tensors of one shape, perhaps with a base, become one.
//!
//! A method never holds a whole tensor. It asks for its inputs block by block ([`Inputs`]), first for the statistics it
//! needs (dot products, order statistics, sums), then once more to combine them into the result. All arithmetic on
//! values is in f32, sums over a tensor are in f64, in an order that neither threads nor memory change.
//!
//! b is the base, x_i the models, w_i their weights, t_i = x_i - b their task vectors, n the number of values.

mod fusion;
mod gram;
mod inputs;
mod linear;
mod model_stock;
mod on_device;
mod ram;
mod sce;
mod select;
mod slerp;
mod sparsify;
mod sphere;
mod task;

pub use inputs::{Block, Inputs, Kernel, Read};
pub(super) use select::{find, magnitudes};
pub use sparsify::Sparsify;
pub use task::{Rescale, Task, Vote};

use crate::Result;
use sha2::{Digest, Sha256};

/// A method with the settings that hold for all models.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// sum w x, over sum w if `normalize`.
    Linear {
        /// Divide by the sum of the weights.
        normalize: bool,
    },
    /// The one input, times its `scale`.
    Passthrough,
    /// Spherical interpolation from the first of two inputs to the second (Shoemake 1985).
    Slerp {
        /// 0 is the first, 1 the second.
        t: f64,
    },
    /// The same between weights w_1 and w_2, of task vectors if there is a base.
    NuSlerp {
        /// One angle for the tensor; else one for each row.
        flatten: bool,
        /// Without `flatten`, one angle for each column (the name is mergekit's, and says the opposite).
        row_wise: bool,
    },
    /// The direction of sum w x/|x| with the length sum w |x|.
    MultiSlerp {
        /// Divide the weights by their sum first.
        normalize_weights: bool,
        /// Added to lengths before dividing by them.
        eps: f64,
    },
    /// The Riemannian centre of mass of the directions (Karcher 1977) with the mean length.
    Karcher {
        /// Most iterations.
        max_iter: usize,
        /// Below this a length or a step is nothing.
        tol: f64,
    },
    /// Task arithmetic and all that sparsifies or votes before it.
    Task(Task),
    /// Model Stock (Jang et al. 2024, arXiv 2403.19522): b + t mean(t_i), t from the mean cosine of the task vectors.
    ModelStock {
        /// A cosine for each row instead of one for the tensor.
        filter_wise: bool,
    },
    /// Arcee Fusion: the values of the one model whose change is an outlier, weighted by their row's divergence.
    ArceeFusion,
    /// The one model's values, no further from the base than t.
    NearSwap {
        /// The largest step.
        t: f64,
    },
    /// RAM (arXiv 2601.13572): changes of one model whole, shared ones averaged.
    Ram {
        /// A change counts above this size.
        epsilon: f64,
        /// RAM+ (tensor-local): r and alpha, which strengthen unshared changes.
        plus: Option<(f64, f64)>,
    },
    /// SCE (Wan et al. 2024, arXiv 2408.07990): select by variance, calculate by energy, erase the minority sign.
    Sce {
        /// The share of the positions that vary that is kept.
        select_topk: f64,
    },
    /// DAM (arXiv 2410.08371): sum of the x, each value times the coefficient of its column.
    Columns {
        /// Those of each model.
        coefficients: Vec<Vec<f32>>,
        /// Values in a row that share a coefficient.
        every: usize,
    },
}

/// What a method knows of one model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerModel {
    /// w.
    pub weight: f64,
    /// The share of task-vector values that is kept.
    pub density: f64,
    /// The share of the largest that Breadcrumbs drops.
    pub gamma: f64,
    /// DELLA's half-width of the keep probability.
    pub epsilon: f64,
    /// Passthrough's factor.
    pub scale: f64,
    /// The least magnitude of a task-vector value that is kept where a whole model is trimmed.
    pub threshold: f32,
}

impl Default for PerModel {
    /// What mergekit takes for what is not said.
    fn default() -> PerModel {
        PerModel { weight: 1.0, density: 1.0, gamma: 0.01, epsilon: 0.15, scale: 1.0, threshold: 0.0 }
    }
}

/// The key of a tensor's random numbers: two words of the SHA-256 of the seed and the output's name, so that they
/// depend on neither order nor threads nor blocks.
pub fn random_key(seed: u64, tensor: &str) -> [u32; 2] {
    let hash = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(tensor).finalize();
    let word = |i: usize| u32::from_le_bytes([hash[i], hash[i + 1], hash[i + 2], hash[i + 3]]);
    [word(0), word(4)]
}

impl Method {
    /// Gathers the statistics the method needs and returns what computes each block of the result. `models` belongs to
    /// `inputs.models`; `key` comes from [`random_key`].
    ///
    /// Waits for nothing but a device. Errors are those of reading, and what the numbers themselves rule out (weights
    /// that sum to 0).
    pub async fn prepare<'k>(&self, inputs: &'k Inputs<'k>, models: &[PerModel], key: [u32; 2]) -> Result<Kernel<'k>> {
        let weights = || models.iter().map(|m| m.weight).collect::<Vec<f64>>();
        match self {
            Method::Linear { normalize } => linear::linear(&weights(), *normalize),
            Method::Passthrough => Ok(linear::passthrough(models.first().map_or(1.0, |m| m.scale))),
            Method::Slerp { t } => slerp::slerp(inputs, *t).await,
            Method::NuSlerp { flatten, row_wise } => slerp::nuslerp(inputs, &weights(), *flatten, *row_wise).await,
            Method::MultiSlerp { normalize_weights, eps } => {
                sphere::multislerp(inputs, weights(), *normalize_weights, *eps).await
            }
            Method::Karcher { max_iter, tol } => sphere::karcher(inputs, *max_iter, *tol).await,
            Method::Task(task) => task.prepare(inputs, models, key),
            Method::ModelStock { filter_wise } => model_stock::model_stock(inputs, *filter_wise).await,
            Method::ArceeFusion => fusion::arcee_fusion(inputs),
            Method::NearSwap { t } => Ok(ram::nearswap(*t)),
            Method::Ram { epsilon, plus } => ram::ram(inputs, *epsilon, *plus),
            Method::Sce { select_topk } => sce::sce(inputs, *select_topk),
            Method::Columns { coefficients, every } => linear::columns(inputs, coefficients, *every),
        }
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
