//! What the common decoder block needs to know about a model.

use super::fields::Fields;
use super::rope::rope;
use crate::Result;
use crate::nn::rotary::Rope;
use crate::nn::{Activation, Norm};
use serde_json::{Value, json};

/// A decoder-only transformer as the common block sees it: sizes, then how its block differs from others. Field names
/// are those of transformers where it has one.
#[derive(Debug, Clone)]
pub struct DecoderConfig {
    /// Rows of the embedding, padding included.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest context the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the LM head is the embedding.
    pub tie_word_embeddings: bool,
    /// Its class in transformers.
    pub architecture: &'static str,
    /// What its parameters are called, and with that which parts its block has.
    pub names: Names,
    /// Whether the matrices inside blocks are stored as [in, out] (transformers' Conv1D). In memory all are [out, in].
    pub conv1d: bool,
    /// All its norms.
    pub norm: Norm,
    /// Its MLP.
    pub mlp: Mlp,
    /// Biases on the projections to queries, keys and values.
    pub qkv_bias: bool,
    /// Bias on the attention's output projection.
    pub out_bias: bool,
    /// Biases on the MLP's projections.
    pub mlp_bias: bool,
    /// What embeddings are multiplied by.
    pub embedding_scale: f32,
    /// What q . k is multiplied by.
    pub attention_scale: f32,
    /// Attention scores are `cap * tanh(score / cap)`; 0 leaves them.
    pub attention_softcap: f32,
    /// Logits are `cap * tanh(logit / cap)`.
    pub logit_softcap: Option<f32>,
    /// Every block's attention.
    pub layers: Vec<Layer>,
    /// The rotary positions that layers choose from.
    pub ropes: Vec<Rope>,
    /// The configuration as read, with `layer_types` stated where layers differ: what is written into a model folder.
    pub source: Value,
}

/// What differs from block to block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Rows that a query sees, itself included; all before it if `None`.
    pub window: Option<usize>,
    /// Which of [`DecoderConfig::ropes`]; none where positions are learned.
    pub rope: Option<usize>,
}

/// Names of a family's parameters, those of a block relative to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// Token embedding.
    pub embedding: &'static str,
    /// Embedding of positions, if they are learned.
    pub positions: Option<&'static str>,
    /// What block numbers follow.
    pub layers: &'static str,
    /// Norm after the last block.
    pub final_norm: &'static str,
    /// Norm before attention.
    pub attention_norm: &'static str,
    /// Projections to queries, keys and values.
    pub qkv: Qkv,
    /// Norms of each head's query and key.
    pub head_norms: Option<[&'static str; 2]>,
    /// Attention's output projection.
    pub out: &'static str,
    /// Norm of the attention's output, before it joins the residual stream.
    pub post_attention_norm: Option<&'static str>,
    /// Norm before the MLP; without one the block is parallel: the MLP takes what attention takes.
    pub mlp_norm: Option<&'static str>,
    /// The MLP's way in.
    pub up: &'static str,
    /// The MLP's way out.
    pub down: &'static str,
    /// Norm of the MLP's output, before it joins the residual stream.
    pub post_mlp_norm: Option<&'static str>,
}

/// How queries, keys and values are projected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qkv {
    /// One matrix each.
    Split([&'static str; 3]),
    /// One matrix, whose outputs are the queries, then the keys, then the values.
    Fused(&'static str),
}

/// The MLP of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mlp {
    /// down(activation(gate(x)) * up(x)).
    Gated {
        /// Name of the gate's projection.
        gate: &'static str,
        /// Its activation.
        activation: Activation,
    },
    /// down(gelu(up(x))).
    Plain {
        /// GELU in its tanh approximation.
        tanh: bool,
    },
}

impl Names {
    /// The names of Llama, which most families share.
    pub const LLAMA: Names = Names {
        embedding: "model.embed_tokens",
        positions: None,
        layers: "model.layers",
        final_norm: "model.norm",
        attention_norm: "input_layernorm",
        qkv: Qkv::Split(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        head_norms: None,
        out: "self_attn.o_proj",
        post_attention_norm: None,
        mlp_norm: Some("post_attention_layernorm"),
        up: "mlp.up_proj",
        down: "mlp.down_proj",
        post_mlp_norm: None,
    };
    /// The gate of the same families.
    pub const GATE: &'static str = "mlp.gate_proj";
}

/// What a family takes where its configuration says nothing.
pub(super) struct Defaults {
    pub num_key_value_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
    pub hidden_act: (&'static str, &'static str),
    /// The rotated part of a head, for families that have `partial_rotary_factor`.
    pub partial_rotary_factor: Option<f64>,
}

impl Defaults {
    pub const LLAMA: Defaults = Defaults {
        num_key_value_heads: None,
        head_dim: None,
        max_position_embeddings: 2048,
        tie_word_embeddings: false,
        hidden_act: ("hidden_act", "silu"),
        partial_rotary_factor: None,
    };
}

/// The widest head that attention's kernels hold.
const MAX_HEAD: usize = 256;

/// Reads what Llama and its descendants have in common; no biases, full attention.
pub(super) fn llama_like(
    architecture: &'static str,
    fields: &Fields<'_>,
    value: &Value,
    defaults: &Defaults,
) -> Result<DecoderConfig> {
    let heads = fields.at_most("num_attention_heads", 1 << 12)?;
    let hidden = fields.at_most("hidden_size", 1 << 20)?;
    let kv_heads = fields.usize_or("num_key_value_heads", defaults.num_key_value_heads.unwrap_or(heads))?;
    if heads % kv_heads != 0 {
        return fields.refuse("num_key_value_heads", &format!("a divisor of the {heads} attention heads"));
    }
    let stated = fields.usize_if("head_dim", defaults.head_dim)?;
    if stated.is_none() && hidden % heads != 0 {
        return fields.refuse("head_dim", "a positive integer (hidden_size does not divide by the heads)");
    }
    let head_dim = stated.unwrap_or(hidden / heads);
    if head_dim > MAX_HEAD {
        return fields.refuse("head_dim", &format!("at most {MAX_HEAD} (it is {head_dim})"));
    }
    let num_hidden_layers = fields.at_most("num_hidden_layers", 1 << 12)?;
    let max_position_embeddings = fields.usize_or("max_position_embeddings", defaults.max_position_embeddings)?;
    let (activation, default) = defaults.hidden_act;
    let rope = rope(fields, head_dim, defaults.partial_rotary_factor, max_position_embeddings)?;
    Ok(DecoderConfig {
        vocab_size: fields.at_most("vocab_size", 1 << 24)?,
        hidden_size: hidden,
        intermediate_size: fields.at_most("intermediate_size", 1 << 20)?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        max_position_embeddings,
        tie_word_embeddings: fields.bool_or("tie_word_embeddings", defaults.tie_word_embeddings)?,
        architecture,
        names: Names::LLAMA,
        conv1d: false,
        norm: Norm::Rms(fields.positive_or("rms_norm_eps", 1e-6)?),
        mlp: Mlp::Gated { gate: Names::GATE, activation: fields.activation(activation, default)? },
        qkv_bias: false,
        out_bias: false,
        mlp_bias: false,
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_softcap: 0.0,
        logit_softcap: None,
        layers: vec![Layer { window: None, rope: Some(0) }; num_hidden_layers],
        ropes: vec![rope],
        source: value.clone(),
    })
}

impl DecoderConfig {
    /// Gives the layers that slide their window, and states each layer's type in the configuration that is written: a
    /// rule by layer number would mean something else once layers are chosen.
    pub(super) fn slide(&mut self, fields: &Fields<'_>, sliding: &[bool], window: Option<usize>) -> Result<()> {
        if !sliding.contains(&true) {
            return Ok(());
        }
        let Some(window) = window else {
            return fields.refuse("sliding_window", "a positive integer (some layers have sliding attention)");
        };
        for (layer, _) in self.layers.iter_mut().zip(sliding).filter(|(_, slides)| **slides) {
            layer.window = Some(window);
        }
        let kind = |slides: &bool| if *slides { "sliding_attention" } else { "full_attention" };
        self.source["layer_types"] = json!(sliding.iter().map(kind).collect::<Vec<_>>());
        Ok(())
    }
}
