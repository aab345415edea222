//! Decoder families from a `config.json`: the common block, and one file a family with what differs.

mod block;
mod config;
mod decoder;
mod fields;
mod gemma;
mod gpt2;
mod llama;
mod mistral;
mod qwen;
mod rope;
mod stablelm;
mod traced;
mod weights;

pub use config::{DecoderConfig, Layer, Mlp, Names, Qkv};
pub use decoder::{Decoder, KvCache};
pub use traced::{Taps, Traced};
pub use weights::{FrozenWeights, LayerMap, load_parameter, load_parameters, random_parameters};

use crate::{Error, Result};
use fields::Fields;
use serde_json::Value;
use std::path::Path;

/// Reads a family's configuration.
type Family = fn(&Fields<'_>, &Value) -> Result<DecoderConfig>;

/// The families this crate knows, by transformers' `model_type`.
const FAMILIES: [(&str, Family); 9] = [
    ("llama", llama::config),
    ("mistral", mistral::config),
    ("qwen2", qwen::qwen2),
    ("qwen3", qwen::qwen3),
    ("stablelm", stablelm::config),
    ("gpt2", gpt2::config),
    ("gemma", gemma::gemma),
    ("gemma2", gemma::gemma2),
    ("gemma3_text", gemma::gemma3_text),
];

/// Reads a transformers `config.json` value; `place` names it in errors.
pub fn from_config(place: &Path, config: &Value) -> Result<Decoder> {
    if let Some(found) = config.get("quantization_config").filter(|value| !value.is_null()) {
        let method = found.get("quant_method").and_then(Value::as_str).unwrap_or("of some kind");
        return Error::file(place)
            .field("`quantization_config`")
            .expected("weights stored as F32, F16 or BF16, or a .gguf file")
            .found(format!("quantisation `{method}`"))
            .help("take the model's unquantised folder, or a GGUF of it")
            .err();
    }
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("");
    match FAMILIES.iter().find(|(name, _)| *name == kind) {
        Some((_, family)) => Ok(Decoder::new(family(&Fields::new(place, config), config)?)),
        None => Error::file(place)
            .field("`model_type`")
            .expected(format!("one of {}", FAMILIES.map(|(name, _)| name).join(", ")))
            .found(if kind.is_empty() { "nothing".to_owned() } else { format!("`{kind}`") })
            .help("take a model of one of these families")
            .err(),
    }
}
