//! A merge from beginning to end.

use super::config::MergeConfig;
use super::execute::write_shards;
use super::journal::{self, Begun};
use super::learned::{Learned, table};
use super::model::Model;
use super::output;
use super::plan::Plan;
use super::tokenizer;
use super::trim::trim;
use crate::device::{Choice, Device};
use crate::formats::{write_configs, write_text};
use crate::platform::fs;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// The least memory a merge can be asked to keep within.
const LEAST_MEMORY: u64 = 64 << 20;

/// How to merge.
#[derive(Clone, Debug)]
pub struct MergeOptions {
    /// Write into a folder that holds something already.
    pub overwrite: bool,
    /// Most bytes of a file of weights.
    pub shard_size: u64,
    /// Bytes of memory to keep within, those of mapped files included.
    pub memory: u64,
    /// Of the random masks, and of the order in which `dam` takes text.
    pub seed: u64,
    /// Where coefficients are learned, and where the arithmetic is done that devices can do.
    pub device: Choice,
}

impl Default for MergeOptions {
    /// 5 GB a file, 2 GiB of memory, seed 42, on the CPU.
    fn default() -> MergeOptions {
        MergeOptions { overwrite: false, shard_size: 5_000_000_000, memory: 2 << 30, seed: 42, device: Choice::Cpu }
    }
}

/// How far a merge is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// What is counted.
    pub stage: Stage,
    /// Steps done or bytes written, those of an earlier run included.
    pub done: u64,
    /// Steps, or bytes of all files of weights, of the document at work.
    pub total: u64,
}

/// What a merge is doing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stage {
    /// Steps that learn coefficients.
    Learning {
        /// What the last one minimised, regularisers left out.
        loss: f64,
    },
    /// Bytes of weights.
    Writing,
}

/// What a merge wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// Tensors of the result.
    pub tensors: usize,
    /// Values of the result.
    pub parameters: usize,
    /// Files of weights.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// What was learned, of `dam`.
    pub learned: Option<Learned>,
}

/// Merges `documents` (of [`MergeConfig::load`]) into the folder `out`. Results of documents that others name are made
/// in `out/intermediate` and removed at the end. A merge that was stopped goes on with the first unfinished file when
/// it is called again.
///
/// Errors: what [`Plan::new`] finds wrong; a source value that is not finite; a result that its type cannot hold;
/// [`Error::Cancelled`] when `progress` breaks.
#[cfg(not(target_family = "wasm"))]
pub fn merge(
    documents: &[MergeConfig],
    out: &Path,
    options: &MergeOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Merged> {
    let device = pollster::block_on(options.device.open())?;
    pollster::block_on(merge_on(documents, out, BTreeMap::new(), (&device, options), progress))
}

/// [`merge`] on an open device; `places` as of [`Plan::new`]. Waits for the device alone; natively it blocks on files.
pub(crate) async fn merge_on(
    documents: &[MergeConfig],
    out: &Path,
    mut places: BTreeMap<String, PathBuf>,
    (device, options): (&Device, &MergeOptions),
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Merged> {
    if options.memory < LEAST_MEMORY {
        return Error::at("memory").expected("at least 64 MiB").found(format!("{} bytes", options.memory)).err();
    }
    let Some((last, others)) = documents.split_last() else {
        return Error::at("the merge").expected("a document").found("none").err();
    };
    let parts = out.join(output::PARTS);
    journal::check(out, options.overwrite)?;
    for document in others {
        let name = document.name.clone().ok_or_else(|| Error::internal("a part without a name"))?;
        let plain = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c));
        if !plain || name.starts_with('.') {
            let complaint = Error::file(&document.file).field("`name`").expected("letters, digits, `-`, `_` and `.`");
            return complaint.found(format!("`{name}`")).err();
        }
        let folder = parts.join(&name);
        write_one(document, &places, (&folder, true), (device, options), progress).await?;
        places.insert(name, folder);
    }
    let merged = write_one(last, &places, (out, false), (device, options), progress).await?;
    if fs::exists(&parts) {
        fs::remove_dir_all(&parts).map_err(Error::io("remove", &parts))?;
    }
    Ok(merged)
}

async fn write_one(
    config: &MergeConfig,
    places: &BTreeMap<String, PathBuf>,
    (out, part): (&Path, bool),
    (device, options): (&Device, &MergeOptions),
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Merged> {
    let mut plan = Plan::new(config, places)?;
    let shards = output::shards(out, &plan, options.shard_size.max(1));
    let parameters = plan.tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    let bytes = shards.iter().map(|shard| shard.bytes).sum();
    let mut merged = Merged { tensors: plan.tensors.len(), parameters, files: shards.len(), bytes, learned: None };
    match journal::begin(config, &mut plan, (out, part), (device, options), progress)? {
        Begun::Weights(learned) => merged.learned = learned,
        #[cfg(not(target_family = "wasm"))]
        Begun::Whole => return Ok(merged),
    }
    trim(&mut plan, config, options.memory).await?;
    // The processor does it without a copy, and in the same way for any number of cores.
    let arithmetic = matches!(device, Device::Gpu(_)).then_some(device);
    write_shards(&plan, &shards, options, arithmetic, progress).await?;
    output::write_index(out, &shards)?;
    tokenizer::write(config, &plan.models, plan.donor, plan.vocabulary.as_ref(), out)?;
    write_text(&out.join("README.md"), &card(config, &plan, merged.learned.as_ref(), out))?;
    write_text(&out.join("mergekit_config.yml"), &config.text)?;
    let tokens = plan.vocabulary.as_ref().map_or(plan.donor, |vocabulary| vocabulary.donor);
    write_configs(out, &plan.config, &plan.models[tokens].folder.generation_config)?;
    journal::finish(out, part)?;
    Ok(merged)
}

/// The model card.
fn card(config: &MergeConfig, plan: &Plan, learned: Option<&Learned>, out: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut text = String::from("---\nlibrary_name: transformers\ntags:\n- merge\n- potstill\n---\n\n");
    text.push_str(&format!("# {}\n\n", name(out)));
    let method = config.method.name;
    text.push_str(&format!("Merged with potstill {} by `{method}`.\n\n## Models\n\n", env!("CARGO_PKG_VERSION")));
    let shown = |model: &Model| {
        let path = Path::new(&model.reference.model);
        // A path says more about a machine than about a model.
        let own = if fs::exists(path) { name(path) } else { model.reference.model.clone() };
        let lora = model.reference.lora.as_deref().map(|lora| format!(" with {}", name(Path::new(lora))));
        format!("{own}{}", lora.unwrap_or_default())
    };
    for (i, model) in plan.models.iter().enumerate() {
        let base = if config.base_model.is_some() && i == plan.donor { " (base)" } else { "" };
        text.push_str(&format!("- {}{base}\n", shown(model)));
    }
    if let Some(learned) = learned {
        text.push_str(&table(learned));
    }
    text.push_str(&format!("\n## Configuration\n\n```yaml\n{}\n```\n", config.text.trim_end()));
    text
}
