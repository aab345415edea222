//! Learned coefficients beside the model: what a merge that is stopped while it writes goes on with, and what a user
//! can look at. A safetensors file with a tensor f32 [models, columns] for each parameter.

use super::network::Network;
use super::{Coefficients, Divergence, Learned};
use crate::formats::{Dtype, TensorSpec, Tensors, write_safetensors};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// The file, in the folder of the result.
pub(in crate::merge) const FILE: &str = "dam_coefficients.safetensors";
/// The folder of the checkpoints, there too, while there are some.
pub(in crate::merge) const CHECKPOINTS: &str = "learning";

/// Writes the file, and takes the checkpoints away.
pub(super) fn write(
    out: &Path,
    network: &Network,
    fingerprint: &str,
    coefficients: &Coefficients,
    learned: &Learned,
) -> Result<()> {
    let models = network.sources.len();
    let spec = |(name, columns): (&String, &usize)| TensorSpec {
        name: name.clone(),
        dtype: Dtype::F32,
        shape: vec![models, *columns],
    };
    let specs: Vec<TensorSpec> = network.merged.columns.iter().map(spec).collect();
    let names: Vec<&str> = network.sources.iter().map(|source| source.name.as_str()).collect();
    // As text, which is exact.
    let number = |value: &Option<f64>| value.map(|value| value.to_string());
    let measured = |d: &Divergence| json!({"model": d.model, "before": number(&d.before), "after": number(&d.after)});
    let measured: Vec<Value> = learned.models.iter().map(measured).collect();
    let metadata = [
        ("format", "pt".to_owned()),
        ("models", json!(names).to_string()),
        ("fingerprint", fingerprint.to_owned()),
        ("learned", json!({"steps": learned.steps, "models": measured}).to_string()),
    ];
    let metadata: BTreeMap<String, String> = metadata.map(|(key, value)| (key.to_owned(), value)).into();
    let fill = async |spec: &TensorSpec| {
        let found = coefficients.get(&spec.name).ok_or_else(|| Error::internal("coefficients too few"))?;
        Ok(Cow::Owned(found.concat()))
    };
    pollster::block_on(write_safetensors(&out.join(FILE), &specs, &metadata, fill))?;
    let checkpoints = out.join(CHECKPOINTS);
    match checkpoints.exists() {
        true => std::fs::remove_dir_all(&checkpoints).map_err(Error::io("remove", &checkpoints)),
        false => Ok(()),
    }
}

/// What an earlier run of the merge of this fingerprint wrote into `out`.
pub(super) fn read(out: &Path, network: &Network, fingerprint: &str) -> Result<Option<(Coefficients, Learned)>> {
    let path = out.join(FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let tensors = Tensors::open_safetensors(std::slice::from_ref(&path))?;
    if tensors.metadata("fingerprint") != Some(fingerprint) {
        return Ok(None);
    }
    let mut coefficients = Coefficients::new();
    for (name, columns) in &network.merged.columns {
        tensors.expect_shape(name, &[network.sources.len(), *columns])?;
        let values = tensors.read_f32(name)?;
        coefficients.insert(name.clone(), values.chunks(*columns).map(<[f32]>::to_vec).collect());
    }
    let damaged = || Error::file(&path).expected("what was learned").found("something else").error();
    let learned: Value =
        tensors.metadata("learned").and_then(|text| serde_json::from_str(text).ok()).ok_or_else(damaged)?;
    let number = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
    let model = |value: &Value| {
        let model = value["model"].as_str()?.to_owned();
        Some(Divergence { model, before: number(&value["before"]), after: number(&value["after"]) })
    };
    let models = learned["models"].as_array().and_then(|list| list.iter().map(model).collect::<Option<Vec<_>>>());
    let steps = learned["steps"].as_u64().ok_or_else(damaged)?;
    Ok(Some((coefficients, Learned { steps, models: models.ok_or_else(damaged)? })))
}
