//! What a path holds: a model (folder, GGUF or single safetensors file) or a teacher-logit shard set, as plain data
//! that prints and serialises. Headers only, unless more is asked for.

mod model;
mod shards;

pub use model::{Group, ModelReport, TensorReport, TokenizerReport};
pub use shards::{ShardsReport, Verification};

use crate::shards::manifest::MANIFEST_FILE;
use crate::{Error, Result};
use serde::Serialize;
use std::path::Path;

/// What there is beyond the headers to look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Read a whole shard set and check every byte of it.
    pub verify: bool,
    /// Hash a model's weights and its tokenizer.
    pub digest: bool,
}

/// What lies at a path.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Report {
    /// A model.
    Model(Box<ModelReport>),
    /// A shard set.
    Shards(Box<ShardsReport>),
}

/// Looks at `path`.
pub fn inspect(path: &Path, depth: Depth) -> Result<Report> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let holds = |name: &str| path.join(name).is_file();
    if path.is_dir() {
        if holds("config.json") {
            return model::folder(path, depth).map(Report::from);
        }
        // Without a manifest the reader says that the capture is unfinished, if it is.
        if holds(MANIFEST_FILE) || holds("journal.jsonl") {
            return shards::set(path, depth).map(Report::from);
        }
    } else if path.is_file() && extension == "gguf" {
        return model::gguf(path, depth).map(Report::from);
    } else if path.is_file() && extension == "safetensors" {
        return model::safetensors(path, depth).map(Report::from);
    }
    let found = match (path.is_dir(), path.exists()) {
        (true, _) => "a folder with neither config.json nor manifest.json",
        (false, true) => "another file",
        (false, false) => "nothing of this name",
    };
    Error::file(path)
        .expected("a model folder, a .gguf or .safetensors file, or a shard set")
        .found(found)
        .help("check the path")
        .err()
}

impl From<ModelReport> for Report {
    fn from(report: ModelReport) -> Report {
        Report::Model(Box::new(report))
    }
}

impl From<ShardsReport> for Report {
    fn from(report: ShardsReport) -> Report {
        Report::Shards(Box::new(report))
    }
}
