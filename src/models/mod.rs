//! Decoder families from a `config.json`: the common block, and one file a family with what differs.

mod config;
mod decoder;
mod llama;
mod weights;

pub use config::DecoderConfig;
pub use decoder::{Decoder, KvCache, ROPE_TABLE};
pub use weights::{LayerMap, load_parameters, random_parameters};

use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// The families this crate knows, by transformers' `model_type`.
const FAMILIES: [&str; 1] = ["llama"];

/// Reads a transformers `config.json` value; `place` names it in errors.
pub fn from_config(place: &Path, config: &Value) -> Result<Decoder> {
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("");
    let config = match kind {
        "llama" => llama::config(place, config)?,
        _ => {
            return Error::file(place)
                .field("`model_type`")
                .expected(format!("one of {}", FAMILIES.join(", ")))
                .found(if kind.is_empty() { "nothing".to_owned() } else { format!("`{kind}`") })
                .help("only these decoder families are supported")
                .err();
        }
    };
    Ok(Decoder::new(config))
}
