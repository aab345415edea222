//! The folder that receives the result: shards first, the files that make it a model last, so that a merge that was
//! killed leaves nothing that loads.

use super::dam;
use super::plan::{Plan, Planned};
use crate::formats::{TensorSpec, claim_output_dir, read_json_if_present, write_json};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// What says that the folder is being written, and by which merge.
const JOURNAL: &str = "merge-unfinished.json";
/// The same of a part that is whole: it serves again when a later document was stopped.
const FINISHED: &str = "merge-finished.json";
/// Where the parts of a merge of several documents are made.
pub(super) const PARTS: &str = "intermediate";
const INDEX: &str = "model.safetensors.index.json";

/// One file of weights.
#[derive(Debug)]
pub(super) struct Shard {
    pub path: PathBuf,
    pub specs: Vec<TensorSpec>,
    pub bytes: u64,
}

/// Divides the tensors among files of at most `most` bytes each (but of one tensor at least), in natural order of
/// their names.
pub(super) fn shards(folder: &Path, plan: &Plan, most: u64) -> Vec<Shard> {
    let mut tensors: Vec<&Planned> = plan.tensors.iter().collect();
    tensors.sort_by_key(|tensor| natural(&tensor.name));
    let mut shards: Vec<Shard> = Vec::new();
    for tensor in tensors {
        let bytes = bytes(tensor);
        if shards.last().is_none_or(|shard| shard.bytes + bytes > most) {
            shards.push(Shard { path: PathBuf::new(), specs: Vec::new(), bytes: 0 });
        }
        if let Some(shard) = shards.last_mut() {
            shard.bytes += bytes;
            let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
            shard.specs.push(TensorSpec { name, dtype: tensor.dtype, shape });
        }
    }
    let count = shards.len();
    for (i, shard) in shards.iter_mut().enumerate() {
        shard.path = folder.join(match count {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        });
    }
    shards
}

/// Bytes of a tensor in the file.
pub(super) fn bytes(tensor: &Planned) -> u64 {
    let width = tensor.dtype.block().map_or(4, |(_, width)| width);
    tensor.shape.iter().product::<usize>() as u64 * width as u64
}

/// Layer 2 before layer 10.
fn natural(name: &str) -> Vec<(Option<u64>, String)> {
    name.split('.').map(|part| (part.parse().ok(), part.to_string())).collect()
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
pub(super) fn claim(folder: &Path, fingerprint: &str, overwrite: bool) -> Result<()> {
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
pub(super) fn is_finished(folder: &Path, fingerprint: &str) -> Result<bool> {
    let finished = read_json_if_present(&folder.join(FINISHED))?;
    Ok(finished.is_some_and(|json| json["fingerprint"] == fingerprint))
}

/// Writes the index, if there is more than one file.
pub(super) fn write_index(folder: &Path, shards: &[Shard]) -> Result<()> {
    if shards.len() < 2 {
        return Ok(());
    }
    let mut map = Map::new();
    for shard in shards {
        let file = shard.path.file_name().unwrap_or_default().to_string_lossy();
        map.extend(shard.specs.iter().map(|spec| (spec.name.clone(), json!(file))));
    }
    let size: u64 = shards.iter().map(|shard| shard.bytes).sum();
    let metadata = json!({ "total_size": size });
    write_json(&folder.join(INDEX), &json!({ "metadata": metadata, "weight_map": Value::Object(map) }))
}

/// The folder is whole: a `part` of a merge, or the result.
pub(super) fn finish(folder: &Path, part: bool) -> Result<()> {
    let journal = folder.join(JOURNAL);
    match part {
        true => fs::rename(&journal, folder.join(FINISHED)).map_err(Error::io("rename", &journal)),
        false => fs::remove_file(&journal).map_err(Error::io("remove", &journal)),
    }
}
