//! GPT-2: learned positions, LayerNorm and biases everywhere, one matrix for queries, keys and values, a plain MLP, and
//! matrices that checkpoints hold transposed.

use super::config::{DecoderConfig, Layer, Mlp, Names, Qkv};
use super::fields::Fields;
use crate::Result;
use crate::nn::{Activation, Norm};
use serde_json::Value;

const NAMES: Names = Names {
    embedding: "transformer.wte",
    positions: Some("transformer.wpe"),
    layers: "transformer.h",
    final_norm: "transformer.ln_f",
    attention_norm: "ln_1",
    qkv: Qkv::Fused("attn.c_attn"),
    head_norms: None,
    out: "attn.c_proj",
    post_attention_norm: None,
    mlp_norm: Some("ln_2"),
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    post_mlp_norm: None,
};

/// Reads a `config.json` of `model_type: gpt2` (transformers' GPT2Config; absent fields take its defaults).
pub(super) fn config(fields: &Fields<'_>, value: &Value) -> Result<DecoderConfig> {
    fields.off(&["scale_attn_by_inverse_layer_idx", "add_cross_attention"])?;
    let width = fields.at_most("n_embd", 1 << 20)?;
    let heads = fields.at_most("n_head", 1 << 12)?;
    let head_dim = width / heads;
    if width % heads != 0 || head_dim > 256 {
        return fields.refuse("n_head", &format!("a divisor of `n_embd` {width} that leaves heads of at most 256"));
    }
    let Activation::Gelu { tanh } = fields.activation("activation_function", "gelu_new")? else {
        return fields.refuse("activation_function", "one of `gelu`, `gelu_new`, `gelu_pytorch_tanh`");
    };
    let num_hidden_layers = fields.at_most("n_layer", 1 << 12)?;
    let scaled = fields.bool_or("scale_attn_weights", true)?;
    let max_position_embeddings = match fields.usize_or("n_positions", 1024)? {
        positions if positions <= 1 << 24 => positions,
        _ => return fields.refuse("n_positions", "at most 16777216"),
    };
    Ok(DecoderConfig {
        vocab_size: fields.at_most("vocab_size", 1 << 24)?,
        hidden_size: width,
        intermediate_size: match fields.usize_if("n_inner", None)? {
            None => 4 * width,
            Some(_) => fields.at_most("n_inner", 1 << 20)?,
        },
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        max_position_embeddings,
        tie_word_embeddings: fields.bool_or("tie_word_embeddings", true)?,
        architecture: "GPT2LMHeadModel",
        names: NAMES,
        conv1d: true,
        norm: Norm::Layer(fields.positive_or("layer_norm_epsilon", 1e-5)?),
        mlp: Mlp::Plain { tanh },
        qkv_bias: true,
        out_bias: true,
        mlp_bias: true,
        embedding_scale: 1.0,
        attention_scale: if scaled { 1.0 / (head_dim as f32).sqrt() } else { 1.0 },
        attention_softcap: 0.0,
        logit_softcap: None,
        layers: vec![Layer { window: None, rope: None }; num_hidden_layers],
        ropes: Vec::new(),
        source: value.clone(),
    })
}
