//! A training run on disk: all it takes to go on exactly where it stopped.
//!
//! A checkpoint is a folder `checkpoint-STEP` with two files: `arrays.safetensors`, the parameters and the optimiser's
//! moments as f32, bit for bit, and `state.json`, which holds [`State`] and the SHA-256 of every array. It is written
//! into a folder of another name, synced, and renamed: a killed process leaves the old checkpoints or the new one.
//! Superseded ones are removed afterwards, renamed first, so that none is ever found half removed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::data::packing::Cursor;
use crate::digest::hex;
use crate::formats::{Dtype, TensorSpec, Tensors, read_json, write_json, write_safetensors};
use crate::platform::fs;
use crate::{Error, Result};

/// The version of the format that this code writes and reads.
pub const FORMAT: u32 = 1;

/// The number of values hashed at once.
const PIECE: usize = 1 << 16;

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// [`FORMAT`]; [`save`] sets it.
    pub format: u32,
    /// Optimiser steps taken.
    pub step: u64,
    /// The next batch.
    pub cursor: Cursor,
    /// Tokens with a label so far.
    pub tokens: u64,
    /// Training time so far.
    pub seconds: f64,
    /// [`crate::distill::recipe::Recipe::canonical`].
    pub recipe: BTreeMap<String, String>,
    /// What the run works on, each by its SHA-256: `student` as it was before training, `teacher` or `shards`,
    /// `corpus`.
    pub digests: BTreeMap<String, String>,
    /// The best held-out numbers so far, by name.
    #[serde(with = "exact")]
    pub best: BTreeMap<String, f64>,
}

/// Numbers as text: serde_json writes every f64 exactly but may read one that is off by its last bit.
mod exact {
    use super::BTreeMap;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub fn serialize<S: Serializer>(map: &BTreeMap<String, f64>, to: S) -> Result<S::Ok, S::Error> {
        map.iter().map(|(name, value)| (name, value.to_string())).collect::<BTreeMap<_, _>>().serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, f64>, D::Error> {
        let texts = BTreeMap::<String, String>::deserialize(from)?;
        texts.into_iter().map(|(name, text)| Ok((name, text.parse().map_err(D::Error::custom)?))).collect()
    }
}

/// Saves `folder/checkpoint-STEP`, then removes the oldest but `keep` (at least 1) checkpoints and whatever a killed
/// process left. `arrays` are named like `param.model.norm.weight` or `exp_avg.model.norm.weight`, all of them
/// [`Dtype::F32`]; `fill` is asked for each once, in the order of their names, and its answer dropped before the next.
/// One process at a time may save to a folder.
///
/// Errors leave the checkpoints there were.
pub async fn save<'a>(
    folder: &Path,
    state: &State,
    arrays: &'a [TensorSpec],
    keep: usize,
    fill: impl AsyncFnMut(&'a TensorSpec) -> Result<Cow<'a, [f32]>>,
) -> Result<PathBuf> {
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    remove_leftovers(folder)?;
    let path = folder.join(format!("checkpoint-{}", state.step));
    let temporary = folder.join(format!("checkpoint-{}.tmp", state.step));
    let written = write(&temporary, state, arrays, fill).await.and_then(|()| replace(folder, &temporary, &path));
    if written.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    }
    written?;
    let found = list(folder)?;
    for (_, old) in &found[..found.len().saturating_sub(keep.max(1))] {
        remove(folder, old)?;
    }
    Ok(path)
}

async fn write<'a>(
    folder: &Path,
    state: &State,
    arrays: &'a [TensorSpec],
    mut fill: impl AsyncFnMut(&'a TensorSpec) -> Result<Cow<'a, [f32]>>,
) -> Result<()> {
    if let Some(array) = arrays.iter().find(|array| array.dtype != Dtype::F32) {
        return Err(Error::internal(format!("a checkpoint's array `{}` is not F32", array.name)));
    }
    fs::create_dir(folder).map_err(Error::io("create", folder))?;
    let mut hashes = BTreeMap::new();
    write_safetensors(&folder.join("arrays.safetensors"), arrays, &BTreeMap::new(), async |array| {
        let values = fill(array).await?;
        hashes.insert(&array.name, hash(&values));
        Ok(values)
    })
    .await?;
    let mut json =
        serde_json::to_value(State { format: FORMAT, ..state.clone() }).map_err(|e| Error::internal(e.to_string()))?;
    json["arrays"] = serde_json::json!(hashes);
    write_json(&folder.join("state.json"), &json)?;
    fs::sync_directory(folder)
}

/// Puts the finished folder in its place. One that is there already (a run that went back to an older checkpoint)
/// steps aside under a name that [`latest`] still finds, until the new one stands.
fn replace(folder: &Path, temporary: &Path, path: &Path) -> Result<()> {
    let aside = path.with_extension("old");
    if fs::exists(path) {
        fs::rename(path, &aside).map_err(Error::io("rename", path))?;
    }
    fs::rename(temporary, path).map_err(Error::io("rename into place", path))?;
    fs::sync_directory(folder)?;
    if fs::exists(&aside) { remove(folder, &aside) } else { Ok(()) }
}

/// Removes a checkpoint so that a kill half-way leaves none that looks whole.
fn remove(folder: &Path, path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let doomed = folder.join(format!("{name}.tmp"));
    fs::rename(path, &doomed).map_err(Error::io("rename", path))?;
    fs::remove_dir_all(&doomed).map_err(Error::io("remove", &doomed))
}

fn remove_leftovers(folder: &Path) -> Result<()> {
    for path in fs::list(folder).map_err(Error::io("list", folder))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("checkpoint-") && name.ends_with(".tmp") {
            fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

/// The folder's checkpoints by step. Where one has stepped aside for another of its step, it comes before that.
fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for path in fs::list(folder).map_err(Error::io("list", folder))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.strip_prefix("checkpoint-").map(|rest| rest.strip_suffix(".old").unwrap_or(rest));
        if let Some(step) = number.and_then(|text| text.parse().ok()) {
            let aside = name.ends_with(".old");
            found.push((step, !aside, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(step, _, path)| (step, path)).collect())
}

/// A checkpoint that was opened.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    state: State,
    arrays: Tensors,
    hashes: BTreeMap<String, String>,
}

/// The folder's checkpoint of the highest step, if it has one. What a killed process left unfinished is passed over.
///
/// Errors if that checkpoint is damaged.
pub fn latest(folder: &Path) -> Result<Option<Checkpoint>> {
    if !fs::exists(folder) {
        return Ok(None);
    }
    list(folder)?.pop().map(|(_, path)| Checkpoint::open(&path)).transpose()
}

impl Checkpoint {
    /// Opens the checkpoint folder at `path`. Its arrays are verified when they are read.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let file = path.join("state.json");
        let mut json = read_json(&file)?;
        let hashes = json.as_object_mut().and_then(|map| map.remove("arrays")).unwrap_or(Value::Null);
        let damaged = |error: serde_json::Error| {
            Error::file(&file).expected("a checkpoint's state").found(error).help(GO_BACK).error()
        };
        let hashes = serde_json::from_value(hashes).map_err(damaged)?;
        if let Some(format) = json.get("format").filter(|format| **format != FORMAT) {
            let complaint = Error::file(&file).field("`format`").expected(FORMAT).found(format);
            return complaint.help("resume with the version of potstill that wrote it").err();
        }
        let state = serde_json::from_value(json).map_err(damaged)?;
        let arrays = Tensors::open_safetensors(&[path.join("arrays.safetensors")])?;
        Ok(Checkpoint { path: path.to_path_buf(), state, arrays, hashes })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the run stood.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The names of its arrays, in byte order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.arrays.names()
    }

    /// Checks that a run with this recipe and on these things is the one that was saved.
    ///
    /// Errors name the first key of the recipe, or the thing, that differs.
    pub fn check(&self, recipe: &BTreeMap<String, String>, digests: &BTreeMap<String, String>) -> Result<()> {
        if let Some((key, saved, now)) = difference(&self.state.recipe, recipe) {
            let complaint = Error::file(&self.path).field(format!("recipe key `{key}`")).expected(saved).found(now);
            return complaint.help("restore the key to resume, or write to another `output_path`").err();
        }
        if let Some((name, saved, now)) = difference(&self.state.digests, digests) {
            let complaint = Error::file(&self.path).field(format!("SHA-256 of the {name}")).expected(saved).found(now);
            return complaint.help(format!("bring back the {name} that the run began with, or start anew")).err();
        }
        Ok(())
    }

    /// Reads the array `name` into `out`, bit for bit as it was saved.
    ///
    /// Errors if there is none, `out` is not of its size, or the file is damaged.
    pub fn read_into(&self, name: &str, out: &mut [f32]) -> Result<()> {
        self.arrays.read_f32_into(name, out)?;
        self.verify(name, out)
    }

    /// Like [`Checkpoint::read_into`], into a new vector.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let values = self.arrays.read_f32(name)?;
        self.verify(name, &values)?;
        Ok(values)
    }

    /// Fails unless array `name` has `shape`.
    pub fn expect_shape(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.arrays.expect_shape(name, shape)
    }

    fn verify(&self, name: &str, values: &[f32]) -> Result<()> {
        let (expected, found) = (self.hashes.get(name).map_or("none", String::as_str), hash(values));
        if expected == found {
            return Ok(());
        }
        let complaint = Error::file(self.path.join("arrays.safetensors")).field(format!("SHA-256 of `{name}`"));
        complaint.expected(expected).found(found).help(GO_BACK).err()
    }
}

const GO_BACK: &str = "the checkpoint is damaged: remove its folder to resume from the one before";

/// The first key, in byte order, whose values differ, and both values.
fn difference<'a>(
    saved: &'a BTreeMap<String, String>,
    now: &'a BTreeMap<String, String>,
) -> Option<(&'a str, &'a str, &'a str)> {
    let value = |map: &'a BTreeMap<String, String>, key: &str| map.get(key).map_or("nothing", String::as_str);
    let mut keys: Vec<&str> = saved.keys().chain(now.keys()).map(String::as_str).collect();
    keys.sort_unstable();
    keys.into_iter().map(|key| (key, value(saved, key), value(now, key))).find(|(_, saved, now)| saved != now)
}

fn hash(values: &[f32]) -> String {
    let mut hash = Sha256::new();
    let mut bytes = Vec::with_capacity(4 * PIECE);
    for piece in values.chunks(PIECE) {
        bytes.clear();
        bytes.extend(piece.iter().flat_map(|value| value.to_le_bytes()));
        hash.update(&bytes);
    }
    hex(&hash.finalize())
}
