//! The folder that receives the result: shards first, the files that make it a model last, so that a merge that was
//! killed leaves nothing that loads, and the same merge goes on with it.

use super::config::MergeConfig;
use super::dam;
use super::learned::Learned;
use super::model::Model;
use super::output::{INDEX, PARTS};
use super::plan::Plan;
use super::run::{MergeOptions, Progress};
use crate::device::Device;
use crate::digest;
use crate::formats::{claim_output_dir, read_json_if_present, write_json};
use crate::{Error, Result};
use serde_json::json;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// What says that the folder is being written, and by which merge.
const JOURNAL: &str = "merge-unfinished.json";
/// The same of a part that is whole: it serves again when a later document was stopped.
const FINISHED: &str = "merge-finished.json";

/// Where a merge stands when it begins.
pub(super) enum Begun {
    /// There is nothing left to do.
    Whole,
    /// The weights are to be written, by coefficients that were learned for `dam`.
    Weights(Option<Learned>),
}

/// Makes the folder `out` (of a `part` of a merge, or of its result) the merge's own, and learns what has to be learned.
pub(super) fn begin(
    config: &MergeConfig,
    plan: &mut Plan,
    (out, part): (&Path, bool),
    (device, options): (&Device, &MergeOptions),
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Begun> {
    refuse_inputs(plan, out)?;
    let fingerprint = fingerprint(config, plan, options)?;
    if part && is_finished(out, &fingerprint)? {
        return Ok(Begun::Whole);
    }
    // A part is in this merge's own folder: what it holds of an earlier configuration may go.
    claim(out, &fingerprint, options.overwrite || part)?;
    Ok(Begun::Weights(match config.learning.is_some() {
        true => Some(dam::learn(plan, config, out, &fingerprint, (device, options.seed), progress)?),
        false => None,
    }))
}

/// Refuses a folder that holds anything else than what this merge may have left, unless `overwrite`.
pub(super) fn check(folder: &Path, overwrite: bool) -> Result<()> {
    // Parts of this merge, and a journal that was being written when the process was killed.
    let own = |name: &str| name == PARTS || (name.starts_with(JOURNAL) && name.ends_with(".tmp"));
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let barely_begun = folder.is_dir() && entries.into_iter().all(|entry| entry.file_name().to_str().is_some_and(own));
    match folder.join(JOURNAL).exists() || barely_begun {
        true => Ok(()),
        false => claim_output_dir(folder, overwrite),
    }
}

/// Makes `folder` this merge's own. One that an earlier run of the same merge left is gone on with; anything else that
/// is in it is an error unless `overwrite`, which takes an old model away.
fn claim(folder: &Path, fingerprint: &str, overwrite: bool) -> Result<()> {
    let journal = folder.join(JOURNAL);
    let begun = read_json_if_present(&journal)?;
    let same = begun.as_ref().is_some_and(|json| json["fingerprint"] == fingerprint);
    if begun.is_some() && !same && !overwrite {
        let complaint = Error::file(folder).expected("a new folder, or one that this merge began");
        let complaint = complaint.found("another merge, unfinished");
        return complaint.help("name another folder, or begin again with `--overwrite`").err();
    }
    check(folder, overwrite)?;
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let weights = name.starts_with("model") && name.ends_with(".safetensors");
        let model = weights || [INDEX, FINISHED, dam::FILE, "config.json"].contains(&name.as_str());
        let leftover =
            name.ends_with(".tmp") && (name.starts_with("model") || name.starts_with(JOURNAL) || begun.is_some());
        if path.is_file() && (leftover || (model && !same)) {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        if path.is_dir() && name == dam::CHECKPOINTS && begun.is_some() && !same {
            fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
    }
    if same { Ok(()) } else { write_json(&journal, &json!({ "fingerprint": fingerprint })) }
}

/// Whether `folder` is a part that this very merge has finished.
fn is_finished(folder: &Path, fingerprint: &str) -> Result<bool> {
    let finished = read_json_if_present(&folder.join(FINISHED))?;
    Ok(finished.is_some_and(|json| json["fingerprint"] == fingerprint))
}

/// The folder is whole: a `part` of a merge, or the result.
pub(super) fn finish(folder: &Path, part: bool) -> Result<()> {
    let journal = folder.join(JOURNAL);
    match part {
        true => fs::rename(&journal, folder.join(FINISHED)).map_err(Error::io("rename", &journal)),
        false => fs::remove_file(&journal).map_err(Error::io("remove", &journal)),
    }
}

/// A merge never writes over what it reads.
fn refuse_inputs(plan: &Plan, out: &Path) -> Result<()> {
    let Ok(target) = out.canonicalize() else { return Ok(()) };
    let inside = |model: &&Model| model.folder.path().canonicalize().is_ok_and(|path| path == target);
    match plan.models.iter().find(inside) {
        None => Ok(()),
        Some(model) => {
            let complaint = Error::file(out).expected("another folder than those of the models");
            complaint.found(format!("that of `{}`", model.reference)).help("name a new folder").err()
        }
    }
}

/// What makes two runs the same: the configuration, the options that change bytes, and the files that are read.
fn fingerprint(config: &MergeConfig, plan: &Plan, options: &MergeOptions) -> Result<String> {
    let mut text = format!("{}\n{} {}\n", config.text, options.shard_size, options.seed);
    for model in &plan.models {
        let tensors = &model.folder.tensors;
        let mut files: Vec<PathBuf> =
            tensors.names().filter_map(|name| Some(tensors.file(name).ok()?.into())).collect();
        files.extend(model.lora.iter().map(|lora| lora.file()));
        files.sort();
        files.dedup();
        files.iter().try_for_each(|file| stamp(file, &mut text))?;
    }
    dam::texts(config).try_for_each(|file| stamp(file, &mut text))?;
    Ok(digest::sha256(text))
}

/// What tells a file from its earlier self without reading it.
fn stamp(file: &Path, text: &mut String) -> Result<()> {
    let metadata = std::fs::metadata(file).map_err(Error::io("read", file))?;
    let changed = metadata.modified().ok();
    text.push_str(&format!("{} {} {changed:?}\n", file.display(), metadata.len()));
    Ok(())
}
