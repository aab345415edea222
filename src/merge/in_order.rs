//! The work of a merge in a browser, which has one thread and files in memory: one tensor after the other.

use super::making::Making;
use super::output::Shard;
use super::plan::Plan;
use super::run::{MergeOptions, Progress, Stage};
use crate::device::Device;
use crate::formats::begin_safetensors;
use crate::platform::turn;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;

/// Writes every file, with the arithmetic on `device` where it can do it. Between tensors the browser has its turn, so
/// that whoever is behind `progress` can hear of a wish to stop.
///
/// Errors: those of the first tensor that fails; a file for which there is no memory; [`Error::Cancelled`] when `progress`
/// breaks.
pub(super) async fn write_shards(
    plan: &Plan,
    shards: &[Shard],
    options: &MergeOptions,
    device: Option<&Device>,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<()> {
    let (mut done, total) = (0, shards.iter().map(|shard| shard.bytes).sum());
    let making = Making::new(plan, options, device);
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    for shard in shards {
        let (mut file, specs) = begin_safetensors(&shard.path, &shard.specs, &metadata)?;
        let room = usize::try_from(shard.bytes).ok().and_then(|n| file.writer.get_mut().try_reserve_exact(n).ok());
        if room.is_none() {
            let complaint = Error::file(&shard.path).expected(format!("{} bytes of memory", shard.bytes));
            return complaint.found("less").help("merge smaller models here, or these outside a browser").err();
        }
        for spec in specs {
            let tensor = plan.tensors.iter().find(|tensor| tensor.name == spec.name);
            let tensor = tensor.ok_or_else(|| Error::internal("a tensor without a plan"))?;
            let put = &mut |bytes: &[u8]| {
                if progress(Progress { stage: Stage::Writing, done, total }).is_break() {
                    return Err(Error::Cancelled);
                }
                done += bytes.len() as u64;
                file.writer.write_all(bytes).map_err(Error::io("write", &shard.path))
            };
            making.tensor(tensor, put).await?;
            turn().await;
        }
        file.finish()?;
    }
    match progress(Progress { stage: Stage::Writing, done, total }) {
        ControlFlow::Break(()) => Err(Error::Cancelled),
        ControlFlow::Continue(()) => Ok(()),
    }
}
