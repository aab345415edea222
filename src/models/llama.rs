//! Llama: RMS norms, rotary positions, grouped key/value heads, gated MLP; biases if asked for.

use super::config::{DecoderConfig, Defaults, llama_like};
use super::fields::Fields;
use crate::Result;
use serde_json::Value;

/// Reads a `config.json` of `model_type: llama` (transformers' LlamaConfig; absent fields take its defaults).
pub(super) fn config(fields: &Fields<'_>, value: &Value) -> Result<DecoderConfig> {
    let mut config = llama_like("LlamaForCausalLM", fields, value, &Defaults::LLAMA)?;
    config.qkv_bias = fields.bool_or("attention_bias", false)?;
    config.out_bias = config.qkv_bias;
    config.mlp_bias = fields.bool_or("mlp_bias", false)?;
    Ok(config)
}
