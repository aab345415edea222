//! DAM, differentiable adaptive merging (Gauthier-Caron et al. 2024, arXiv:2410.08371): W = sum_i W_i diag(c_i), with
//! coefficients c_i that are learned by distilling each model into the merged one on the model's own text.
//!
//! [`network`] says which parameter of the network is which tensor of the plan, [`graphs`] records what is learned,
//! [`learner`] does it, [`saved`] keeps the result. What is learned goes into the plan, which then writes the model as
//! it does any other.

mod graphs;
mod learner;
mod network;
mod saved;
#[cfg(test)]
mod tests;

use super::config::MergeConfig;
use super::learned::{Divergence, Learned};
use super::plan::Plan;
use super::run::Progress;
use crate::device::Device;
use crate::{Error, Result};
use learner::Learner;
use network::Network;
pub(super) use saved::{CHECKPOINTS, FILE};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

/// By parameter of the network the coefficients of every model, in the order of the sources.
type Coefficients = BTreeMap<String, Vec<Vec<f32>>>;

/// Learns the coefficients of a plan, or reads those that an earlier run of the same merge has learned into `out`, and
/// puts them into the plan.
///
/// Errors: an architecture that cannot be run, models that differ in more than their weights, text that cannot be
/// read; [`Error::NotFinite`]; [`Error::Cancelled`] when `progress` breaks, after a checkpoint.
pub(super) fn learn(
    plan: &mut Plan,
    config: &MergeConfig,
    out: &Path,
    fingerprint: &str,
    (device, seed): (&Device, u64),
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Learned> {
    let learning = config.learning.as_ref().ok_or_else(|| Error::internal("nothing to learn"))?;
    let network = Network::of(plan, config)?;
    let (coefficients, learned) = match saved::read(out, &network, fingerprint)? {
        Some(found) => found,
        None => {
            let mut learner = Learner::new(&network, plan, learning, seed, device)?;
            let learned = pollster::block_on(learner.run(out, progress))?;
            let coefficients = pollster::block_on(learner.coefficients())?;
            saved::write(out, &network, fingerprint, &coefficients, &learned)?;
            (coefficients, learned)
        }
    };
    network.apply(plan, &coefficients);
    Ok(learned)
}

/// The files that learning reads besides the models, for the merge's fingerprint.
pub(super) fn texts(config: &MergeConfig) -> impl Iterator<Item = &Path> {
    let slices = config.modules.iter().flat_map(|module| &module.slices);
    slices.flat_map(|slice| &slice.sources).flat_map(|source| source.data.iter().map(|path| path.as_path()))
}
