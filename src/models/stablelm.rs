//! StableLM (1.6B, 2, 3B): LayerNorm, positions rotated in part of each head, and if asked for biases on queries, keys
//! and values, and blocks whose MLP runs beside attention instead of after it.

use super::config::{DecoderConfig, Defaults, Names, llama_like};
use super::fields::Fields;
use crate::Result;
use crate::nn::Norm;
use serde_json::Value;

/// Reads a `config.json` of `model_type: stablelm` (transformers' StableLmConfig).
pub(super) fn config(fields: &Fields<'_>, value: &Value) -> Result<DecoderConfig> {
    fields.off(&["qk_layernorm"])?;
    let defaults = Defaults {
        num_key_value_heads: Some(32),
        max_position_embeddings: 4096,
        partial_rotary_factor: Some(0.25),
        ..Defaults::LLAMA
    };
    let mut config = llama_like("StableLmForCausalLM", fields, value, &defaults)?;
    config.norm = Norm::Layer(fields.positive_or("layer_norm_eps", 1e-5)?);
    config.qkv_bias = fields.bool_or("use_qkv_bias", false)?;
    if fields.bool_or("use_parallel_residual", false)? {
        config.names = Names { mlp_norm: None, ..Names::LLAMA };
    }
    Ok(config)
}
