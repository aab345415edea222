//! A merge from beginning to end.

use super::config::MergeConfig;
use super::dam::{self, Learned};
use super::execute::write_shards;
use super::model::Model;
use super::output;
use super::plan::Plan;
use super::tokenizer;
use super::trim::trim;
use crate::device::{Choice, Device};
use crate::digest;
use crate::formats::{write_configs, write_text};
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
pub fn merge(
    documents: &[MergeConfig],
    out: &Path,
    options: &MergeOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Merged> {
    if options.memory < LEAST_MEMORY {
        return Error::at("memory").expected("at least 64 MiB").found(format!("{} bytes", options.memory)).err();
    }
    let Some((last, others)) = documents.split_last() else {
        return Error::at("the merge").expected("a document").found("none").err();
    };
    let device = pollster::block_on(options.device.open())?;
    let parts = out.join(output::PARTS);
    output::check(out, options.overwrite)?;
    let mut made = BTreeMap::new();
    for document in others {
        let name = document.name.clone().ok_or_else(|| Error::internal("a part without a name"))?;
        let plain = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c));
        if !plain || name.starts_with('.') {
            let complaint = Error::file(&document.file).field("`name`").expected("letters, digits, `-`, `_` and `.`");
            return complaint.found(format!("`{name}`")).err();
        }
        let folder = parts.join(&name);
        write_one(document, &made, (&folder, true), &device, options, progress)?;
        made.insert(name, folder);
    }
    let merged = write_one(last, &made, (out, false), &device, options, progress)?;
    if parts.exists() {
        std::fs::remove_dir_all(&parts).map_err(Error::io("remove", &parts))?;
    }
    Ok(merged)
}

fn write_one(
    config: &MergeConfig,
    made: &BTreeMap<String, PathBuf>,
    (out, part): (&Path, bool),
    device: &Device,
    options: &MergeOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Merged> {
    let mut plan = Plan::new(config, made)?;
    refuse_inputs(&plan, out)?;
    let shards = output::shards(out, &plan, options.shard_size.max(1));
    let parameters = plan.tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    let bytes = shards.iter().map(|shard| shard.bytes).sum();
    let mut merged = Merged { tensors: plan.tensors.len(), parameters, files: shards.len(), bytes, learned: None };
    let fingerprint = fingerprint(config, &plan, options)?;
    if part && output::is_finished(out, &fingerprint)? {
        return Ok(merged);
    }
    // A part is in this merge's own folder: what it holds of an earlier configuration may go.
    output::claim(out, &fingerprint, options.overwrite || part)?;
    if config.learning.is_some() {
        merged.learned = Some(dam::learn(&mut plan, config, out, &fingerprint, (device, options.seed), progress)?);
    }
    trim(&mut plan, config, options.memory)?;
    // The processor does it without a copy, and in the same way for any number of cores.
    let arithmetic = matches!(device, Device::Gpu(_)).then_some(device);
    write_shards(&plan, &shards, options, arithmetic, progress)?;
    output::write_index(out, &shards)?;
    tokenizer::write(config, &plan.models, plan.donor, plan.vocabulary.as_ref(), out)?;
    write_text(&out.join("README.md"), &card(config, &plan, merged.learned.as_ref(), out))?;
    write_text(&out.join("mergekit_config.yml"), &config.text)?;
    let tokens = plan.vocabulary.as_ref().map_or(plan.donor, |vocabulary| vocabulary.donor);
    write_configs(out, &plan.config, &plan.models[tokens].folder.generation_config)?;
    output::finish(out, part)?;
    Ok(merged)
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

/// What was learned, for the card.
fn table(learned: &Learned) -> String {
    let mut text = format!("\n## Learned coefficients\n\n{} steps. ", learned.steps);
    if learned.models.iter().all(|model| model.after.is_none()) {
        text.push_str("Nothing was held out to measure.\n");
        return text;
    }
    text.push_str("Divergence from each model on text of its own that was held out, nats a token:\n\n");
    text.push_str("| model | plain average | learned |\n| --- | --- | --- |\n");
    for model in &learned.models {
        let [before, after] = [model.before, model.after].map(|x| x.map_or("-".to_owned(), |x| format!("{x:.4}")));
        let name = Path::new(&model.model).file_name().map_or(model.model.clone(), |n| n.to_string_lossy().into());
        text.push_str(&format!("| {name} | {before} | {after} |\n"));
    }
    text
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
        let own = if path.exists() { name(path) } else { model.reference.model.clone() };
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
