//! Decoder families from a `config.json`: the common block, and one file a family with what differs.

mod config;
mod decoder;
mod llama;
mod traced;
mod weights;

pub use config::DecoderConfig;
pub use decoder::{Decoder, KvCache, ROPE_TABLE};
pub use traced::{Taps, Traced};
pub use weights::{LayerMap, load_parameters, random_parameters};

use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// The families this crate knows, by transformers' `model_type`.
const FAMILIES: [&str; 1] = ["llama"];

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
    let config = match kind {
        "llama" => llama::config(place, config)?,
        _ => {
            return Error::file(place)
                .field("`model_type`")
                .expected(format!("one of {}", FAMILIES.join(", ")))
                .found(if kind.is_empty() { "nothing".to_owned() } else { format!("`{kind}`") })
                .help("take a model of one of these families")
                .err();
        }
    };
    Ok(Decoder::new(config))
}
