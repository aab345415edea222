//! Mistral: Llama without biases, every layer in a sliding window.

use super::config::{DecoderConfig, Defaults, llama_like};
use super::fields::Fields;
use crate::Result;
use serde_json::Value;

/// Reads a `config.json` of `model_type: mistral` (transformers' MistralConfig).
pub(super) fn config(fields: &Fields<'_>, value: &Value) -> Result<DecoderConfig> {
    let defaults = Defaults { num_key_value_heads: Some(8), max_position_embeddings: 4096 * 32, ..Defaults::LLAMA };
    let mut config = llama_like("MistralForCausalLM", fields, value, &defaults)?;
    let window = fields.usize_if("sliding_window", Some(4096))?;
    config.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(config)
}
