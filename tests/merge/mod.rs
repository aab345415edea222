//! Merging: against mergekit, with adapters, GGUF and other vocabularies; what is refused; what a kill leaves.

mod dam;
mod devices;
mod extract;
mod faults;
#[cfg(feature = "cli")]
mod kill;
#[cfg(target_os = "linux")]
mod memory;
mod peers;
mod refusals;
mod sources;
mod surgery;
mod tokens;

use potstill::formats::ModelFolder;
use potstill::merge::{MergeConfig, MergeOptions, Merged, merge};
use potstill::{Error, Result};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// One of the four models of tests/golden/make_merge_golden.py.
pub fn tiny(name: &str) -> PathBuf {
    crate::common::golden("merge").join(name)
}

/// The configuration with `{name}` replaced by the folder of a tiny model.
pub fn filled(yaml: &str) -> String {
    ["base", "a", "b", "c"]
        .iter()
        .fold(yaml.to_string(), |text, name| text.replace(&format!("{{{name}}}"), &tiny(name).display().to_string()))
}

/// Merges what `yaml` says into `out`.
pub fn run(yaml: &str, out: &Path) -> Result<Merged> {
    run_with(yaml, out, &MergeOptions::default())
}

pub fn run_with(yaml: &str, out: &Path, options: &MergeOptions) -> Result<Merged> {
    let documents = MergeConfig::parse(yaml, Path::new("merge.yaml"))?;
    merge(&documents, out, options, &mut |_| ControlFlow::Continue(()))
}

/// What `yaml` is refused with.
pub fn refusal(yaml: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let error: Error = run(&filled(yaml), &out).unwrap_err();
    assert!(!out.join("config.json").exists(), "a refused merge left a model");
    error.to_string()
}

pub fn open(folder: &Path) -> ModelFolder {
    ModelFolder::open(folder).unwrap()
}

/// Largest absolute difference of two tensors.
pub fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let worst = |worst: f32, d: f32| if d.is_nan() { f32::INFINITY } else { worst.max(d) };
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, worst)
}
