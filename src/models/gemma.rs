//! Gemma: embeddings times sqrt(width), norms by 1 + weight, a GELU-gated MLP. Gemma 2 adds norms of what joins the
//! residual stream, soft-caps on attention scores and logits, and a sliding window on every other layer. Gemma 3 has
//! norms of each head's query and key in the soft-caps' place, and rotary positions of their own in sliding layers.

use super::config::{DecoderConfig, Defaults, Layer, Mlp, Names, llama_like};
use super::fields::Fields;
use super::rope::{rope, scaled};
use crate::Result;
use crate::nn::rotary::{Rope, RopeScaling};
use crate::nn::{Activation, Norm};
use serde_json::Value;

/// Names of a block with four norms.
const FOUR_NORMS: Names = Names {
    post_attention_norm: Some("post_attention_layernorm"),
    mlp_norm: Some("pre_feedforward_layernorm"),
    post_mlp_norm: Some("post_feedforward_layernorm"),
    ..Names::LLAMA
};

/// Reads a `config.json` of `model_type: gemma` (transformers' GemmaConfig).
pub(super) fn gemma(fields: &Fields<'_>, value: &Value) -> Result<DecoderConfig> {
    let mut config = base("GemmaForCausalLM", fields, value, 16, "hidden_act")?;
    // The first release says `gelu` and means the approximation; transformers reads it so.
    config.mlp = match fields.activation("hidden_act", "gelu_pytorch_tanh")? {
        Activation::Gelu { .. } => Mlp::Gated { gate: Names::GATE, activation: Activation::Gelu { tanh: true } },
        Activation::Silu => return fields.refuse("hidden_act", "`gelu_pytorch_tanh` or `gelu`"),
    };
    Ok(config)
}

/// Reads a `config.json` of `model_type: gemma2` (transformers' Gemma2Config).
pub(super) fn gemma2(fields: &Fields<'_>, value: &Value) -> Result<DecoderConfig> {
    let mut config = base("Gemma2ForCausalLM", fields, value, 4, "hidden_activation")?;
    config.names = FOUR_NORMS;
    cap(&mut config, fields, [Some(50.0), Some(30.0)])?;
    let sliding = fields.sliding(config.num_hidden_layers, |layer| layer.is_multiple_of(2))?;
    config.slide(fields, &sliding, fields.usize_if("sliding_window", Some(4096))?)?;
    Ok(config)
}

/// Reads a `config.json` of `model_type: gemma3_text` (transformers' Gemma3TextConfig).
pub(super) fn gemma3_text(fields: &Fields<'_>, value: &Value) -> Result<DecoderConfig> {
    let mut config = base("Gemma3ForCausalLM", fields, value, 4, "hidden_activation")?;
    config.names = Names { head_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..FOUR_NORMS };
    cap(&mut config, fields, [None, None])?;
    let pattern = fields.usize_or("sliding_window_pattern", 6)?;
    let sliding = fields.sliding(config.num_hidden_layers, |layer| !(layer + 1).is_multiple_of(pattern))?;
    config.slide(fields, &sliding, fields.usize_if("sliding_window", Some(4096))?)?;
    config.ropes = gemma3_ropes(fields, config.head_dim, config.max_position_embeddings)?.into();
    for (layer, slides) in config.layers.iter_mut().zip(&sliding) {
        *layer = Layer { rope: Some(usize::from(*slides)), ..*layer };
    }
    Ok(config)
}

/// What all three have.
fn base(
    architecture: &'static str,
    fields: &Fields<'_>,
    value: &Value,
    kv_heads: usize,
    hidden_act: &'static str,
) -> Result<DecoderConfig> {
    fields.off(&["use_bidirectional_attention"])?;
    let defaults = Defaults {
        num_key_value_heads: Some(kv_heads),
        head_dim: Some(256),
        max_position_embeddings: 8192,
        tie_word_embeddings: true,
        hidden_act: (hidden_act, "gelu_pytorch_tanh"),
        partial_rotary_factor: None,
    };
    let mut config = llama_like(architecture, fields, value, &defaults)?;
    config.norm = Norm::RmsPlusOne(fields.positive_or("rms_norm_eps", 1e-6)?);
    config.embedding_scale = (config.hidden_size as f32).sqrt();
    config.qkv_bias = fields.bool_or("attention_bias", false)?;
    config.out_bias = config.qkv_bias;
    Ok(config)
}

/// Soft-caps and the scale of attention; `defaults` are the caps of scores and logits.
fn cap(config: &mut DecoderConfig, fields: &Fields<'_>, defaults: [Option<f64>; 2]) -> Result<()> {
    let scores = fields.positive_if("attn_logit_softcapping", defaults[0])?;
    config.attention_softcap = scores.map_or(0.0, |cap| cap as f32);
    config.logit_softcap = fields.positive_if("final_logit_softcapping", defaults[1])?.map(|cap| cap as f32);
    config.attention_scale = fields.positive_or("query_pre_attn_scalar", 256.0)?.sqrt().recip() as f32;
    Ok(())
}

/// Rotary positions of full and of sliding layers: nested `rope_parameters` (transformers 5), or `rope_theta` with
/// `rope_scaling` and `rope_local_base_freq` (before).
fn gemma3_ropes(fields: &Fields<'_>, dims: usize, max_positions: usize) -> Result<[Rope; 2]> {
    let (global, local) = (1_000_000.0, 10_000.0);
    let plain = |theta| Rope { theta, dims, scaling: RopeScaling::Default };
    if let Some(nested) = fields.object("rope_parameters")? {
        let read = |name: &str, theta: f64| match nested.object(name)? {
            Some(parameters) => scaled(&parameters, dims, theta, max_positions),
            None => Ok(plain(theta)),
        };
        return Ok([read("full_attention", global)?, read("sliding_attention", local)?]);
    }
    let theta = fields.positive_or("rope_theta", global)?;
    let full = Rope { theta, ..rope(fields, dims, None, max_positions)? };
    Ok([full, plain(fields.positive_or("rope_local_base_freq", local)?)])
}
