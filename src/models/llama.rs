//! Llama and everything that follows its configuration: RMS norms, rotary positions, grouped KV heads, gated MLP.

use super::config::{DecoderConfig, Fields};
use crate::Result;
use crate::nn::rotary::{Rope, RopeScaling};
use serde_json::Value;
use std::path::Path;

/// Reads a `config.json` of `model_type: llama` (transformers' LlamaConfig; absent fields take its defaults).
pub(super) fn config(place: &Path, value: &Value) -> Result<DecoderConfig> {
    let fields = Fields::new(place, value);
    let heads = fields.at_most("num_attention_heads", 1 << 12)?;
    let hidden = fields.at_most("hidden_size", 1 << 20)?;
    let kv_heads = fields.usize_or("num_key_value_heads", heads)?;
    if heads % kv_heads != 0 {
        return fields.refuse("num_key_value_heads", &format!("a divisor of the {heads} attention heads"));
    }
    if fields.usize_or("head_dim", 0).is_err() || hidden % heads != 0 && fields.usize_or("head_dim", 0)? == 0 {
        return fields.refuse("head_dim", "a positive integer (hidden_size does not divide by the heads)");
    }
    if fields.str_or("hidden_act", "silu")? != "silu" {
        return fields.refuse("hidden_act", "`silu`");
    }
    let head_dim = fields.usize_or("head_dim", hidden / heads)?;
    if head_dim > 1 << 14 {
        return fields.refuse("head_dim", "at most 16384");
    }
    let max_position_embeddings = fields.usize_or("max_position_embeddings", 2048)?;
    Ok(DecoderConfig {
        vocab_size: fields.at_most("vocab_size", 1 << 24)?,
        hidden_size: hidden,
        intermediate_size: fields.at_most("intermediate_size", 1 << 20)?,
        num_hidden_layers: fields.at_most("num_hidden_layers", 1 << 12)?,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        rms_norm_eps: fields.positive_or("rms_norm_eps", 1e-6)?,
        rope: rope(&fields, head_dim, max_position_embeddings)?,
        tie_word_embeddings: fields.bool_or("tie_word_embeddings", false)?,
        attention_bias: fields.bool_or("attention_bias", false)?,
        mlp_bias: fields.bool_or("mlp_bias", false)?,
        max_position_embeddings,
        source: value.clone(),
    })
}

/// Rotary positions from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).
fn rope(fields: &Fields<'_>, head_dim: usize, max_positions: usize) -> Result<Rope> {
    let scaling = match fields.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => fields.object("rope_scaling")?,
    };
    let top_theta = fields.positive_or("rope_theta", 10_000.0)?;
    if !head_dim.is_multiple_of(2) {
        return fields.refuse("head_dim", "an even number (rotary positions turn pairs)");
    }
    let Some(scaling) = scaling else {
        return Ok(Rope { theta: top_theta, dims: head_dim, scaling: RopeScaling::Default });
    };
    let theta = scaling.positive_or("rope_theta", top_theta)?;
    let kind = scaling.str_or("rope_type", scaling.str_or("type", "default")?)?;
    let original = || scaling.positive_or("original_max_position_embeddings", max_positions as f64);
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: scaling.positive("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: scaling.positive("factor")?,
            low_freq_factor: scaling.positive("low_freq_factor")?,
            high_freq_factor: scaling.positive("high_freq_factor")?,
            original_max_position_embeddings: scaling.positive("original_max_position_embeddings")?,
        },
        "yarn" => yarn(&scaling, original()?)?,
        _ => return scaling.refuse("rope_type", "one of `default`, `linear`, `llama3`, `yarn`"),
    };
    Ok(Rope { theta, dims: head_dim, scaling })
}

fn yarn(scaling: &Fields<'_>, original: f64) -> Result<RopeScaling> {
    let factor = scaling.positive("factor")?;
    let mscale = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let (m, m_all) = (scaling.f64_or("mscale", 0.0)?, scaling.f64_or("mscale_all_dim", 0.0)?);
    let inferred = if m != 0.0 && m_all != 0.0 { mscale(m) / mscale(m_all) } else { mscale(1.0) };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: scaling.positive_or("beta_fast", 32.0)?,
        beta_slow: scaling.positive_or("beta_slow", 1.0)?,
        attention_factor: scaling.positive_or("attention_factor", inferred)?,
        original_max_position_embeddings: original,
        truncate: scaling.bool_or("truncate", true)?,
    })
}
