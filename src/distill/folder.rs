//! The folder that a run writes into: new, begun by the same run, or somebody else's.

use super::checkpoint::{self, Checkpoint};
use crate::formats::claim_output_dir;
use crate::{Error, Result};
use std::ffi::OsString;
use std::fs;
use std::path::Path;

/// What a run writes before its first checkpoint.
const BEGINNINGS: [&str; 2] = ["metrics.jsonl", "samples-before.json"];
/// All that is written beside and then renamed.
const WRITTEN: [&str; 10] = [
    "samples-before.json",
    "samples-after.json",
    "model.safetensors",
    "projections.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",
    "report.html",
];

/// Makes `folder` the run's own and returns the checkpoint to go on from, if there is one. A folder that holds
/// anything else than an earlier part of a run is refused unless `overwrite`.
pub(super) fn claim(folder: &Path, overwrite: bool) -> Result<Option<Checkpoint>> {
    // What is overwritten stays until the new run has begun: a recipe that could not even begin has cost nothing.
    let saved = if overwrite { None } else { checkpoint::latest(&folder.join("checkpoints"))? };
    if saved.is_none() && !(folder.is_dir() && barely_begun(folder)?) {
        claim_output_dir(folder, overwrite)?;
    }
    for name in names(folder)? {
        if is_leftover(&name) {
            let path = folder.join(name);
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(saved)
}

/// Whether `folder` holds only what a run leaves that was killed before its first checkpoint: nothing to go on from,
/// and nothing to lose by beginning again.
fn barely_begun(folder: &Path) -> Result<bool> {
    for name in names(folder)? {
        let own = match name.to_str() {
            Some("checkpoints") => names(&folder.join("checkpoints"))?.iter().all(is_unfinished),
            Some(text) => BEGINNINGS.contains(&text) || is_leftover(&name),
            None => false,
        };
        if !own {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A checkpoint that was being written.
fn is_unfinished(name: &OsString) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("checkpoint-") && name.ends_with(".tmp"))
}

/// A file of the run's that a killed process was writing: `NAME.PROCESS.tmp`.
fn is_leftover(name: &OsString) -> bool {
    let parts = name.to_str().and_then(|name| name.strip_suffix(".tmp")?.rsplit_once('.'));
    parts.is_some_and(|(name, process)| WRITTEN.contains(&name) && process.parse::<u32>().is_ok())
}

fn names(folder: &Path) -> Result<Vec<OsString>> {
    let entries = fs::read_dir(folder).map_err(Error::io("list", folder))?;
    entries.map(|entry| Ok(entry.map_err(Error::io("list", folder))?.file_name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_a_checkpoint_begins_again_and_other_contents_stay() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        assert!(claim(&folder, false).unwrap().is_none() && folder.is_dir());
        fs::create_dir_all(folder.join("checkpoints/checkpoint-5.tmp")).unwrap();
        for name in ["metrics.jsonl", "samples-before.json", "samples-before.json.77.tmp"] {
            fs::write(folder.join(name), "x").unwrap();
        }
        assert!(claim(&folder, false).unwrap().is_none());
        assert!(!folder.join("samples-before.json.77.tmp").exists() && folder.join("metrics.jsonl").exists());
        for other in ["notes.77.tmp", "model.safetensors", "report.html.tmp"] {
            fs::write(folder.join(other), "x").unwrap();
            let error = claim(&folder, false).unwrap_err().to_string();
            assert!(error.contains("a new or empty directory"), "{error}");
            fs::remove_file(folder.join(other)).unwrap();
        }
    }
}
