//! The files of weights that the result is divided among.

use super::plan::{Plan, Planned};
use crate::Result;
use crate::formats::{TensorSpec, write_json};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Where the parts of a merge of several documents are made.
pub(super) const PARTS: &str = "intermediate";
pub(super) const INDEX: &str = "model.safetensors.index.json";

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
