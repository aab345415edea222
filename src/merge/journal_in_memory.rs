//! The folder that receives the result in a browser: one in memory, which nothing outlives, so that there is nothing to
//! go on with.

use super::config::MergeConfig;
use super::learned::Learned;
use super::plan::Plan;
use super::run::{MergeOptions, Progress};
use crate::device::Device;
use crate::formats::claim_output_dir;
use crate::{Error, Result};
use std::ops::ControlFlow;
use std::path::Path;

/// Where a merge stands when it begins.
pub(super) enum Begun {
    /// The weights are to be written.
    Weights(Option<Learned>),
}

/// Refuses a folder that holds something.
pub(super) fn check(folder: &Path, overwrite: bool) -> Result<()> {
    claim_output_dir(folder, overwrite)
}

/// Refuses what is not there in a browser.
pub(super) fn begin(
    config: &MergeConfig,
    _: &mut Plan,
    _: (&Path, bool),
    _: (&Device, &MergeOptions),
    _: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Begun> {
    match config.learning {
        None => Ok(Begun::Weights(None)),
        Some(_) => {
            let complaint = Error::file(&config.file).field("`merge_method`").expected("a method that only computes");
            let complaint = complaint.found("`dam`, which trains: it runs all models at once, on text of each");
            complaint.help("merge with it outside a browser: `potstill merge`").err()
        }
    }
}

/// The folder is whole.
pub(super) fn finish(_: &Path, _: bool) -> Result<()> {
    Ok(())
}
