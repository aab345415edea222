//! A fine-tune as an adapter on its base: the nearest low-rank matrix to each weight's change.

use super::low_rank::{LowRank, low_rank};
use super::names::{canonical, is_head, is_token_table, layer};
use crate::formats::{AdapterConfig, Dtype, HEAD, ModelFolder, TensorSpec, claim_output_dir, write_adapter};
use crate::{Error, Result};
use fancy_regex::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;

/// What to extract.
#[derive(Clone, Debug)]
pub struct ExtractOptions {
    /// The highest rank.
    pub rank: usize,
    /// Only tensors whose name matches.
    pub include: Option<Regex>,
    /// No tensors whose name matches.
    pub exclude: Option<Regex>,
    /// Write into a folder that holds something already.
    pub overwrite: bool,
}

impl Default for ExtractOptions {
    /// Rank 128, every tensor.
    fn default() -> ExtractOptions {
        ExtractOptions { rank: 128, include: None, exclude: None, overwrite: false }
    }
}

/// What was extracted.
#[derive(Clone, Debug, PartialEq)]
pub struct Extracted {
    /// The adapter's rank: the highest that any weight needs, at most that asked for.
    pub rank: usize,
    /// Weights with a low-rank change.
    pub adapted: usize,
    /// Tensors that changed and are stored whole: embeddings, heads, norms, biases.
    pub whole: usize,
    /// Which share of the squares of all low-rank changes the adapter keeps.
    pub kept: f64,
    /// The weight of which the least is kept, and that share.
    pub worst: Option<(String, f64)>,
}

/// Writes the change from `base` to `model` as a PEFT LoRA adapter into `out`. Weights of layers become
/// B A = U sqrt(S) sqrt(S) V^T, of `lora_alpha` = r, in float32; other tensors that differ are stored whole
/// (`modules_to_save`); what is equal is left out. Weights of less rank than the adapter's are filled up with zeros.
/// `progress` hears how many tensors are done, and of how many.
///
/// Errors list every tensor that one of the two lacks or has in another shape; [`Error::Cancelled`] when `progress`
/// breaks.
pub async fn extract_lora(
    model: &ModelFolder,
    base: &ModelFolder,
    out: &Path,
    options: &ExtractOptions,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Extracted> {
    if options.rank == 0 {
        return Error::at("the rank").expected("at least 1").found(0).err();
    }
    let names = matching(model, base)?;
    claim_output_dir(out, options.overwrite)?;
    // GPT-2's weights lie as [in, out].
    let fan_in_fan_out = model.config["model_type"] == "gpt2";
    let (mut low, mut whole) = (BTreeMap::new(), BTreeSet::new());
    for (done, name) in names.iter().enumerate() {
        if progress(done, names.len()).is_break() {
            return Err(Error::Cancelled);
        }
        if !wanted(name, options)? {
            continue;
        }
        let mut change = model.tensors.read_f32(name)?;
        change.iter_mut().zip(base.tensors.read_f32(name)?).for_each(|(x, b)| *x -= b);
        if change.iter().all(|x| *x == 0.0) {
            continue;
        }
        match (name.strip_suffix(".weight"), model.tensors.shape(name)?) {
            (Some(module), [rows, columns]) if layer(name).is_some() => {
                let part = low_rank(&change, *rows, *columns, options.rank);
                low.insert(module.to_string(), part.map_err(|error| error.inside(format!("tensor `{name}`")))?);
            }
            _ => _ = whole.insert(name.clone()),
        }
    }
    if low.is_empty() && whole.is_empty() {
        return Error::file(model.path()).expected("other weights than its base's").found("the same").err();
    }
    let extracted = summary(&low, whole.len());
    write(model, base, out, &low, &whole, extracted.rank, fan_in_fan_out).await?;
    let _ = progress(names.len(), names.len());
    Ok(extracted)
}

/// The tensors of both, which must be alike.
fn matching(model: &ModelFolder, base: &ModelFolder) -> Result<Vec<String>> {
    let names: BTreeSet<&str> = model.tensors.names().chain(base.tensors.names()).collect();
    let mut wrong = Vec::new();
    for name in &names {
        match [model, base].map(|folder| folder.tensors.shape(name).ok()) {
            [Some(own), Some(other)] if own == other => {}
            [Some(_), Some(other)] => wrong.extend(model.tensors.expect_shape(name, other).err()),
            [own, _] => {
                let lacks = if own.is_some() { base } else { model };
                let complaint = Error::file(lacks.path()).field(format!("tensor `{name}`"));
                wrong.push(complaint.expected("the tensors of the other model").found("none of this name").error());
            }
        }
    }
    Error::all(wrong)?;
    Ok(names.into_iter().map(str::to_string).collect())
}

fn wanted(name: &str, options: &ExtractOptions) -> Result<bool> {
    let matches = |pattern: &Option<Regex>| {
        let found = pattern.as_ref().map(|pattern| pattern.is_match(name)).transpose();
        found.map_err(|error| Error::at("a pattern").expected("one that can be matched").found(error).error())
    };
    Ok(matches(&options.include)?.unwrap_or(true) && !matches(&options.exclude)?.unwrap_or(false))
}

fn summary(low: &BTreeMap<String, LowRank>, whole: usize) -> Extracted {
    let share = |kept: f64, energy: f64| if energy > 0.0 { kept / energy } else { 1.0 };
    let sum = |of: fn(&LowRank) -> f64| low.values().map(of).sum::<f64>();
    let worst = low.iter().map(|(module, part)| (module.clone(), share(part.kept, part.energy)));
    Extracted {
        // An adapter of whole tensors alone has a rank all the same.
        rank: low.values().map(|part| part.rank).max().unwrap_or(1),
        adapted: low.len(),
        whole,
        kept: share(sum(|part| part.kept), sum(|part| part.energy)),
        worst: worst.min_by(|(_, a), (_, b)| a.total_cmp(b)),
    }
}

async fn write(
    model: &ModelFolder,
    base: &ModelFolder,
    out: &Path,
    low: &BTreeMap<String, LowRank>,
    whole: &BTreeSet<String>,
    r: usize,
    fan_in_fan_out: bool,
) -> Result<()> {
    let (mut specs, mut factors) = (Vec::new(), BTreeMap::new());
    let spec = |name: &str, shape: Vec<usize>| TensorSpec { name: name.to_string(), dtype: Dtype::F32, shape };
    for (module, part) in low {
        // A maps what goes in, B gives what comes out.
        let (a, b) = match fan_in_fan_out {
            false => (padded_rows(&part.right, part.rank, r), padded_columns(&part.left, part.rank, r)),
            true => (
                padded_rows(&transposed(&part.left, part.rank), part.rank, r),
                padded_columns(&transposed(&part.right, part.right.len() / part.rank.max(1)), part.rank, r),
            ),
        };
        for (half, values) in [("lora_A", a), ("lora_B", b)] {
            let long = values.len() / r;
            let name = format!("{module}.{half}.weight");
            specs.push(spec(&name, if half == "lora_A" { vec![r, long] } else { vec![long, r] }));
            factors.insert(name, values);
        }
    }
    for name in whole {
        specs.push(spec(name, model.tensors.shape(name)?.to_vec()));
    }
    let last = |module: &str| module.rsplit('.').next().unwrap_or(module).to_string();
    let targets: BTreeSet<String> = low.keys().map(|module| last(module)).collect();
    let module = |name: &String| name.rsplit_once('.').map_or(name.clone(), |(module, _)| module.to_string());
    let saved: BTreeSet<String> = whole.iter().map(module).collect();
    let tied = !model.tensors.names().any(is_head);
    // PEFT looks for a second copy of an embedding that a head follows.
    let table = whole.iter().find(|name| tied && is_token_table(canonical(name).1));
    let head = format!("{HEAD}.weight");
    if let Some(table) = table {
        specs.push(spec(&head, model.tensors.shape(table)?.to_vec()));
    }
    let config = AdapterConfig {
        base_model_name_or_path: base.path().file_name().map(|name| name.to_string_lossy().into_owned()),
        r,
        lora_alpha: r as f64,
        target_modules: targets.into_iter().collect(),
        modules_to_save: saved.into_iter().collect(),
        ensure_weight_tying: table.is_some(),
        use_dora: false,
        use_rslora: false,
        fan_in_fan_out,
    };
    write_adapter(out, &config, &specs, async |name| match factors.get(name) {
        Some(values) => Ok(values.clone()),
        None if name == head => model.tensors.read_f32(table.map_or(name, String::as_str)),
        None => model.tensors.read_f32(name),
    })
    .await
}

/// [r, n] from [rank, n].
fn padded_rows(values: &[f32], rank: usize, r: usize) -> Vec<f32> {
    let columns = values.len() / rank.max(1);
    values.iter().copied().chain(std::iter::repeat_n(0.0, (r - rank) * columns)).collect()
}

/// [n, r] from [n, rank].
fn padded_columns(values: &[f32], rank: usize, r: usize) -> Vec<f32> {
    let row = |row: &[f32]| row.iter().copied().chain(std::iter::repeat_n(0.0, r - rank)).collect::<Vec<_>>();
    values.chunks(rank.max(1)).flat_map(row).collect()
}

/// [columns, rows] from [rows, columns].
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let columns = columns.max(1);
    (0..columns).flat_map(|j| values.iter().skip(j).step_by(columns).copied()).collect()
}
