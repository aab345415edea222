//! A model under another's tokenizer: rows of tokens that it lacks are built from those that both have.

use super::config_json::text;
use super::names::{canonical, is_head, is_token_table};
use super::pursuit::pursue;
use super::tokenizer::copy;
use crate::formats::{Dtype, ModelFolder, TensorSpec, TokenText, claim_output_dir, write_configs, write_safetensors};
use crate::{Error, Result};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::Path;

/// How to transplant.
#[derive(Clone, Copy, Debug)]
pub struct SurgeonOptions {
    /// Most shared tokens that a new token's row is combined from.
    pub k: usize,
    /// Write into a folder that holds something already.
    pub overwrite: bool,
}

impl Default for SurgeonOptions {
    /// 64 tokens.
    fn default() -> SurgeonOptions {
        SurgeonOptions { k: 64, overwrite: false }
    }
}

/// What was transplanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transplanted {
    /// Tokens of the donor's tokenizer, which are the result's.
    pub tokens: usize,
    /// Those that the model has too, with its own rows.
    pub shared: usize,
}

/// Writes `model` under `donor`'s tokenizer into `out`. A token that both have (the same text, however spelt) keeps the
/// model's row. Each other row of the donor is approximated by rows of shared tokens (orthogonal matching pursuit), and
/// the same combination of the model's rows is the new one; so for the embedding, and for a head of its own.
/// `progress` hears how many rows are done, and of how many.
///
/// Errors where there is nothing shared; [`Error::Cancelled`] when `progress` breaks.
pub async fn tokensurgeon(
    model: &ModelFolder,
    donor: &ModelFolder,
    out: &Path,
    options: &SurgeonOptions,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Transplanted> {
    if options.k == 0 {
        return Error::at("k").expected("at least 1").found(0).err();
    }
    let tables: Vec<&str> = model.tensors.names().filter(|name| is_table(name)).collect();
    let pairs: Vec<(&str, &str)> = tables.iter().map(|name| Ok((*name, same(donor, name)?))).collect::<Result<_>>()?;
    let [Some(own), Some(other)] = [(model, &pairs, 0), (donor, &pairs, 1)].map(|(folder, pairs, side)| {
        let names = pairs.iter().map(|(own, other)| if side == 0 { *own } else { *other });
        names.map(|name| folder.tensors.shape(name).map_or(0, |shape| shape[0])).min()
    }) else {
        let complaint = Error::file(model.path()).expected("an embedding of tokens").found("none");
        return complaint.err();
    };
    let tokens = Tokens::new(model, donor, own, other)?;
    if tokens.shared.is_empty() {
        let complaint = Error::file(donor.path()).expected("tokens that the model has too").found("none");
        return complaint.help("take a donor of the same languages").err();
    }
    claim_output_dir(out, options.overwrite)?;
    let total = tokens.new.len() * pairs.len();
    let (mut done, mut rows) = (0, BTreeMap::new());
    for (name, theirs) in &pairs {
        let mut hear = |count: usize| {
            done += count;
            match progress(done, total) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(Error::Cancelled),
            }
        };
        rows.insert(*name, tokens.table(model, name, donor, theirs, options.k, &mut hear)?);
    }
    write(model, donor, out, &rows, tokens.count).await?;
    Ok(Transplanted { tokens: tokens.count, shared: tokens.shared.len() })
}

fn is_table(name: &str) -> bool {
    is_head(name) || is_token_table(canonical(name).1)
}

/// The donor's tensor for one of the model's; a head that it ties is its embedding.
fn same<'d>(donor: &'d ModelFolder, name: &str) -> Result<&'d str> {
    let find = |wanted: fn(&str) -> bool| donor.tensors.names().find(|name| wanted(canonical(name).1));
    let found = if is_head(name) { find(is_head).or_else(|| find(is_token_table)) } else { find(is_token_table) };
    found.ok_or_else(|| Error::file(donor.path()).expected("an embedding of tokens").found("none").error())
}

/// Which row of the result is which of the two models'.
struct Tokens {
    count: usize,
    /// Tokens of both: the donor's id and the model's.
    shared: Vec<(usize, usize)>,
    /// The donor's others.
    new: Vec<usize>,
}

impl Tokens {
    /// `own` and `other` are how many rows the tables have.
    fn new(model: &ModelFolder, donor: &ModelFolder, own: usize, other: usize) -> Result<Tokens> {
        let (mine, theirs) = (model.tokenizer()?, donor.tokenizer()?);
        let mut ids: HashMap<TokenText, usize> = HashMap::new();
        // Of two tokens of one text (a byte, and the character of that byte) the one with the higher id was learnt.
        ids.extend((0..mine.vocab_size().min(own)).filter_map(|id| Some((mine.token_text(id as u32)?, id))));
        let mut tokens = Tokens { count: theirs.vocab_size(), shared: Vec::new(), new: Vec::new() };
        if tokens.count > other {
            let complaint = Error::file(donor.path()).expected(format!("a row for each of {} tokens", tokens.count));
            return complaint.found(other).err();
        }
        for id in 0..tokens.count {
            match theirs.token_text(id as u32).and_then(|text| ids.get(&text)) {
                Some(own) => tokens.shared.push((id, *own)),
                None => tokens.new.push(id),
            }
        }
        Ok(tokens)
    }

    /// The rows of one table.
    fn table(
        &self,
        model: &ModelFolder,
        own: &str,
        donor: &ModelFolder,
        theirs: &str,
        k: usize,
        hear: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let width = |folder: &ModelFolder, name: &str| -> Result<usize> {
            Ok(folder.tensors.shape(name)?.get(1..).unwrap_or_default().iter().product::<usize>().max(1))
        };
        let (width, wide) = (width(model, own)?, width(donor, theirs)?);
        let (mine, rows) = (model.tensors.read_f32(own)?, donor.tensors.read_f32(theirs)?);
        let row = |id: usize| rows[id * wide..][..wide].iter().copied();
        let atoms: Vec<f32> = self.shared.iter().flat_map(|(id, _)| row(*id)).collect();
        let targets: Vec<f32> = self.new.iter().flat_map(|id| row(*id)).collect();
        let combinations = pursue(&atoms, &targets, wide, k, hear)?;
        let mut table = vec![0.0; self.count * width];
        for (id, own) in &self.shared {
            table[id * width..][..width].copy_from_slice(&mine[own * width..][..width]);
        }
        let combine = |factors: &Vec<(usize, f64)>| {
            let mut sums = vec![0.0f64; width];
            for (atom, factor) in factors {
                let row = &mine[self.shared[*atom].1 * width..][..width];
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += factor * f64::from(*x));
            }
            sums
        };
        let made: Vec<Vec<f64>> = combinations.par_iter().map(combine).collect();
        for (id, sums) in self.new.iter().zip(made) {
            table[id * width..][..width].iter_mut().zip(sums).for_each(|(x, sum)| *x = sum as f32);
        }
        Ok(table)
    }
}

async fn write(
    model: &ModelFolder,
    donor: &ModelFolder,
    out: &Path,
    rows: &BTreeMap<&str, Vec<f32>>,
    count: usize,
) -> Result<()> {
    let spec = |name: &str| {
        let mut shape = model.tensors.shape(name)?.to_vec();
        if rows.contains_key(name) {
            shape[0] = count;
        }
        let dtype = match model.tensors.dtype(name)? {
            dtype @ (Dtype::F32 | Dtype::F16 | Dtype::Bf16) => dtype,
            _ => Dtype::F16,
        };
        Ok(TensorSpec { name: name.to_string(), dtype, shape })
    };
    let specs = model.tensors.names().map(spec).collect::<Result<Vec<_>>>()?;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let fill = async |spec: &TensorSpec| match rows.get(spec.name.as_str()) {
        Some(values) => Ok(Cow::Borrowed(&values[..])),
        None => model.tensors.read_f32(&spec.name).map(Cow::Owned),
    };
    write_safetensors(&out.join("model.safetensors"), &specs, &metadata, fill).await?;
    copy(donor, out)?;
    let (mut config, mut generation) = (model.config.clone(), model.generation_config.clone());
    let theirs = [&donor.generation_config, &donor.config];
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        // What the model's own ids named has another id now.
        let id = theirs.iter().map(|json| &json[key]).find(|id| !id.is_null()).cloned().unwrap_or(Value::Null);
        for json in [&mut config, &mut generation] {
            if let Some(map) = json.as_object_mut().filter(|map| map.contains_key(key)) {
                map.insert(key.into(), id.clone());
            }
        }
    }
    if let Some(root) = config.as_object_mut() {
        text(root).insert("vocab_size".into(), json!(count));
    }
    write_configs(out, &config, &generation)
}
