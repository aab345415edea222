//! Qwen 2 and 2.5: Llama with biases on queries, keys and values; the upper layers may slide. Qwen 3: instead a norm
//! of each head's query and key.

use super::config::{DecoderConfig, Defaults, Names, llama_like};
use super::fields::Fields;
use crate::Result;
use serde_json::Value;

const DEFAULTS: Defaults =
    Defaults { num_key_value_heads: Some(32), max_position_embeddings: 32768, ..Defaults::LLAMA };

/// Reads a `config.json` of `model_type: qwen2` (transformers' Qwen2Config).
pub(super) fn qwen2(fields: &Fields<'_>, value: &Value) -> Result<DecoderConfig> {
    let mut config = llama_like("Qwen2ForCausalLM", fields, value, &DEFAULTS)?;
    config.qkv_bias = true;
    slide(&mut config, fields)?;
    Ok(config)
}

/// Reads a `config.json` of `model_type: qwen3` (transformers' Qwen3Config).
pub(super) fn qwen3(fields: &Fields<'_>, value: &Value) -> Result<DecoderConfig> {
    let defaults = Defaults { head_dim: Some(128), ..DEFAULTS };
    let mut config = llama_like("Qwen3ForCausalLM", fields, value, &defaults)?;
    config.names = Names { head_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..Names::LLAMA };
    config.qkv_bias = fields.bool_or("attention_bias", false)?;
    config.out_bias = config.qkv_bias;
    slide(&mut config, fields)?;
    Ok(config)
}

/// `sliding_window` holds from layer `max_window_layers` on, if `use_sliding_window` says so.
fn slide(config: &mut DecoderConfig, fields: &Fields<'_>) -> Result<()> {
    let used = fields.bool_or("use_sliding_window", false)?;
    let window = if used { fields.usize_if("sliding_window", Some(4096))? } else { None };
    let full = fields.index_or("max_window_layers", 28)?;
    let sliding = fields.sliding(config.num_hidden_layers, |layer| window.is_some() && layer >= full)?;
    config.slide(fields, &sliding, window)
}
