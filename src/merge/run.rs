//! A merge from beginning to end.

use super::config::MergeConfig;
use super::methods::{Inputs, Read, random_key};
use super::model::{Model, Reader};
use super::output::{self, Shard};
use super::plan::{Piece, Plan, Planned};
use super::tokenizer;
use crate::digest;
use crate::formats::{Dtype, write_configs, write_safetensors_bytes, write_text};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

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
    /// Of the random masks.
    pub seed: u64,
}

impl Default for MergeOptions {
    /// 5 GB a file, 2 GiB of memory, seed 42.
    fn default() -> MergeOptions {
        MergeOptions { overwrite: false, shard_size: 5_000_000_000, memory: 2 << 30, seed: 42 }
    }
}

/// How far a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes written, those of an earlier run included.
    pub done: u64,
    /// Bytes of all files of weights of the document at work.
    pub total: u64,
}

/// What a merge wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Tensors of the result.
    pub tensors: usize,
    /// Values of the result.
    pub parameters: usize,
    /// Files of weights.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
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
        write_one(document, &made, &folder, true, options, progress)?;
        made.insert(name, folder);
    }
    let merged = write_one(last, &made, out, false, options, progress)?;
    if parts.exists() {
        std::fs::remove_dir_all(&parts).map_err(Error::io("remove", &parts))?;
    }
    Ok(merged)
}

fn write_one(
    config: &MergeConfig,
    made: &BTreeMap<String, PathBuf>,
    out: &Path,
    part: bool,
    options: &MergeOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Merged> {
    let plan = Plan::new(config, made)?;
    refuse_inputs(&plan, out)?;
    let shards = output::shards(out, &plan, options.shard_size.max(1));
    let parameters = plan.tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    let bytes = shards.iter().map(|shard| shard.bytes).sum();
    let merged = Merged { tensors: plan.tensors.len(), parameters, files: shards.len(), bytes };
    let fingerprint = fingerprint(config, &plan, options)?;
    if part && output::is_finished(out, &fingerprint)? {
        return Ok(merged);
    }
    // A part is in this merge's own folder: what it holds of an earlier configuration may go.
    output::claim(out, &fingerprint, options.overwrite || part)?;
    let mut run = Run { plan: &plan, options, progress, done: 0, total: bytes, touched: AtomicU64::new(0) };
    for shard in &shards {
        run.shard(shard)?;
    }
    output::write_index(out, &shards)?;
    tokenizer::write(config, &plan.models, plan.donor, plan.vocabulary.as_ref(), out)?;
    write_text(&out.join("README.md"), &card(config, &plan, out))?;
    write_text(&out.join("mergekit_config.yml"), &config.text)?;
    let tokens = plan.vocabulary.as_ref().map_or(plan.donor, |vocabulary| vocabulary.donor());
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
        for file in files {
            let metadata = std::fs::metadata(&file).map_err(Error::io("read", &file))?;
            let changed = metadata.modified().ok();
            text.push_str(&format!("{} {} {changed:?}\n", file.display(), metadata.len()));
        }
    }
    Ok(digest::sha256(text))
}

struct Run<'a> {
    plan: &'a Plan,
    options: &'a MergeOptions,
    progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
    done: u64,
    total: u64,
    /// Bytes of mapped files read since their pages were let go.
    touched: AtomicU64,
}

impl Run<'_> {
    fn shard(&mut self, shard: &Shard) -> Result<()> {
        if shard.path.is_file() {
            self.done += shard.bytes;
            return self.report();
        }
        let plan = self.plan;
        let tensors: BTreeMap<&str, &Planned> = plan.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        write_safetensors_bytes(&shard.path, &shard.specs, &metadata, |spec, put| {
            match tensors.get(spec.name.as_str()) {
                Some(tensor) => {
                    self.tensor(tensor, put).map_err(|error| error.inside(format!("merging `{}`", tensor.name)))
                }
                None => Err(Error::internal("a tensor without a plan")),
            }
        })
    }

    fn report(&mut self) -> Result<()> {
        match (self.progress)(Progress { done: self.done, total: self.total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }

    fn tensor(&mut self, tensor: &Planned, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (plan, limit) = (self.plan, self.options.memory / 2);
        let touched = &self.touched;
        // Called by all threads; letting go of pages that another thread reads only makes it fetch them again.
        let touch = |bytes: usize| {
            let bytes = bytes as u64;
            if touched.fetch_add(bytes, Ordering::Relaxed) + bytes > limit {
                touched.store(0, Ordering::Relaxed);
                plan.models.iter().for_each(|model| model.folder.tensors.release());
            }
        };
        let sources = Sources::new(plan, tensor)?;
        let (sources, touch) = (&sources, &touch);
        let read = |piece: &Piece| {
            let (reader, model) = (sources.of(piece)?, piece.model);
            let table = sources.tables.get(&model);
            let padding = table.map_or(&[][..], |table| table.as_slice());
            let columns = tensor.shape.get(1..).map_or(1, |rest| rest.iter().product::<usize>()).max(1);
            let width = plan.models[model].folder.tensors.dtype(&piece.stored)?.block().map_or(4, |(_, width)| width);
            Ok(move |start: usize, out: &mut [f32]| {
                touch(out.len() * width.min(4));
                match (&plan.vocabulary, tensor.by_token) {
                    (Some(vocabulary), true) => vocabulary.read(model, &sources.readers, columns, padding, start, out),
                    _ => reader.read(start, out),
                }
            })
        };
        let base = tensor.base.as_ref().map(&read).transpose()?;
        let models = tensor.models.iter().map(&read).collect::<Result<Vec<_>>>()?;
        let inputs = Inputs {
            shape: &tensor.shape,
            base: base.as_ref().map(|read| read as &Read),
            models: models.iter().map(|read| read as &Read).collect(),
        };
        let key = random_key(self.options.seed, &tensor.name);
        let kernel = tensor.method.prepare(&inputs, &tensor.settings, key)?;
        let band = (self.options.memory / 64).clamp(1 << 16, 1 << 23) as usize;
        let finish = |start: usize, values: &[f32]| encode(tensor, start, values);
        inputs.compute(&kernel, band, finish, |parts, _| {
            let bytes: usize = parts.iter().map(Vec::len).sum();
            parts.iter().try_for_each(|part| put(part))?;
            self.done += bytes as u64;
            match (self.progress)(Progress { done: self.done, total: self.total }) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(Error::Cancelled),
            }
        })
    }
}

/// The tensors of all models that a tensor is made from.
struct Sources<'p> {
    readers: Vec<Reader<'p>>,
    /// Which reader is that of a piece.
    pieces: Vec<Piece>,
    /// By model, the row that fills up its vocabulary.
    tables: BTreeMap<usize, Vec<f32>>,
}

impl<'p> Sources<'p> {
    fn new(plan: &'p Plan, tensor: &'p Planned) -> Result<Sources<'p>> {
        let own: Vec<&Piece> = tensor.base.iter().chain(&tensor.models).collect();
        let mut sources = Sources { readers: Vec::new(), pieces: Vec::new(), tables: BTreeMap::new() };
        let (Some(vocabulary), true) = (&plan.vocabulary, tensor.by_token) else {
            for piece in own {
                sources.readers.push(plan.models[piece.model].reader(&piece.stored)?);
                sources.pieces.push(piece.clone());
            }
            return Ok(sources);
        };
        // A token that a model lacks may come from any other.
        let name = own.first().map_or("", |piece| piece.name.as_str());
        for (i, model) in plan.models.iter().enumerate() {
            let stored = model.stored_or_tied(name).ok_or_else(|| {
                let complaint = model.reference.complaint().expected(format!("a tensor `{name}`"));
                complaint.found("none").error()
            })?;
            let reader = model.reader(stored)?;
            let shape = model.shape(stored)?;
            let columns = shape.get(1..).map_or(1, |rest| rest.iter().product::<usize>());
            let count = shape.first().copied().unwrap_or(0);
            sources.tables.insert(i, vocabulary.padding(i, &reader, count, columns)?);
            sources.readers.push(reader);
            sources.pieces.push(Piece { model: i, name: name.to_string(), stored: stored.to_string() });
        }
        Ok(sources)
    }

    fn of(&self, piece: &Piece) -> Result<&Reader<'p>> {
        let same = |own: &Piece| own.model == piece.model && own.stored == piece.stored;
        let index = self.pieces.iter().position(same);
        index.and_then(|i| self.readers.get(i)).ok_or_else(|| Error::internal("a piece without its reader"))
    }
}

/// The bytes of `values`, which the type must be able to hold.
fn encode(tensor: &Planned, start: usize, values: &[f32]) -> Result<Vec<u8>> {
    let most = match tensor.dtype {
        Dtype::F16 => 65_519.0,
        Dtype::Bf16 => 3.395e38,
        _ => f32::MAX,
    };
    if let Some(at) = values.iter().position(|x| x.is_nan() || x.abs() > most) {
        let complaint =
            Error::at(format!("value {}", start + at)).expected(format!("a number that {} holds", tensor.dtype));
        return complaint
            .found(values[at])
            .help("set `out_dtype` to `bfloat16` or `float32`, or lower the weights")
            .err();
    }
    let mut bytes = Vec::with_capacity(values.len() * 4);
    tensor.dtype.encode(values, &mut bytes);
    Ok(bytes)
}

/// The model card.
fn card(config: &MergeConfig, plan: &Plan, out: &Path) -> String {
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
    text.push_str(&format!("\n## Configuration\n\n```yaml\n{}\n```\n", config.text.trim_end()));
    text
}
