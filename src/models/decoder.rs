//! The common decoder block: norm, attention, norm, MLP, with a residual stream through all of it.

use super::{DecoderConfig, Taps, Traced};
use crate::Result;
use crate::graph::{DType, Graph, Shape, Tensor};
use crate::nn::{self, BatchInputs, ParamSpec, Params};
use crate::ops;

/// External tensor with the rotary table, [positions, head_dim]; written once per store and model prefix.
pub const ROPE_TABLE: &str = "rope";

/// A decoder-only transformer that can be recorded into a graph.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// Its configuration.
    pub config: DecoderConfig,
}

/// Keys and values of earlier tokens, for decoding: externals `cache.k.LAYER` and `cache.v.LAYER` of
/// [positions, kv heads * head_dim] each; row = position.
#[derive(Debug, Clone, Copy)]
pub struct KvCache {
    /// Positions the cache holds.
    pub positions: usize,
}

impl KvCache {
    /// The external names of a layer's keys and values.
    pub fn names(layer: usize) -> [String; 2] {
        [format!("cache.k.{layer}"), format!("cache.v.{layer}")]
    }
}

impl Decoder {
    /// A decoder of this configuration.
    pub fn new(config: DecoderConfig) -> Decoder {
        Decoder { config }
    }

    /// Every parameter with its shape, in the order of the network.
    pub fn parameters(&self) -> Vec<ParamSpec> {
        let c = &self.config;
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let mut specs = Vec::new();
        let mut add = |name: String, shape: Shape| specs.push(ParamSpec { name, shape });
        add("model.embed_tokens.weight".into(), [c.vocab_size, d].into());
        for layer in 0..c.num_hidden_layers {
            let at = format!("model.layers.{layer}");
            add(format!("{at}.input_layernorm.weight"), [d].into());
            for (name, out, inner) in [("q_proj", q, d), ("k_proj", kv, d), ("v_proj", kv, d), ("o_proj", d, q)] {
                add(format!("{at}.self_attn.{name}.weight"), [out, inner].into());
                if c.attention_bias {
                    add(format!("{at}.self_attn.{name}.bias"), [out].into());
                }
            }
            add(format!("{at}.post_attention_layernorm.weight"), [d].into());
            for (name, out, inner) in [("gate_proj", f, d), ("up_proj", f, d), ("down_proj", d, f)] {
                add(format!("{at}.mlp.{name}.weight"), [out, inner].into());
                if c.mlp_bias {
                    add(format!("{at}.mlp.{name}.bias"), [out].into());
                }
            }
        }
        add("model.norm.weight".into(), [d].into());
        if !c.tie_word_embeddings {
            add("lm_head.weight".into(), [c.vocab_size, d].into());
        }
        specs
    }

    /// Number of weights.
    pub fn parameter_count(&self) -> usize {
        self.parameters().iter().map(|p| p.shape.numel()).sum()
    }

    /// Records the network from token ids to the final normed hidden states [N, hidden]. With `recompute`, each
    /// block's inner activations are computed again in the backward pass instead of kept.
    pub fn forward(&self, g: &mut Graph, params: &Params<'_>, batch: &BatchInputs, recompute: bool) -> Result<Tensor> {
        Ok(self.forward_traced(g, params, batch, recompute, &Taps::default())?.hidden)
    }

    /// The same, with handles of the inner tensors that `taps` names. What nobody reads of them costs no memory.
    pub fn forward_traced(
        &self,
        g: &mut Graph,
        params: &Params<'_>,
        batch: &BatchInputs,
        recompute: bool,
        taps: &Taps,
    ) -> Result<Traced> {
        let c = &self.config;
        taps.check(c.num_hidden_layers)?;
        let mut h = nn::embedding(g, params, "model.embed_tokens", batch, [c.vocab_size, c.hidden_size])?;
        let table = self.rope_table(g, params, batch.context);
        let (mut states, mut relations) = (vec![h], Vec::new());
        for layer in 0..c.num_hidden_layers {
            let block = |g: &mut Graph| self.block(g, params, layer, h, batch, table, None);
            let (next, qkv) = if recompute { g.checkpoint(block) } else { block(g) };
            h = next;
            states.push(h);
            relations.push(qkv);
        }
        states.pop();
        states.push(nn::rms_norm(g, params, "model.norm", h, c.rms_norm_eps));
        taps.pick(&states, &relations)
    }

    /// Records the network for decoding: the batch's rows are new tokens at `batch.positions`, earlier ones are in
    /// the cache, which the new ones join.
    pub fn forward_cached(
        &self,
        g: &mut Graph,
        params: &Params<'_>,
        batch: &BatchInputs,
        cache: KvCache,
    ) -> Result<Tensor> {
        let c = &self.config;
        let mut h = nn::embedding(g, params, "model.embed_tokens", batch, [c.vocab_size, c.hidden_size])?;
        let table = self.rope_table(g, params, batch.context);
        for layer in 0..c.num_hidden_layers {
            (h, _) = self.block(g, params, layer, h, batch, table, Some(cache));
        }
        Ok(nn::rms_norm(g, params, "model.norm", h, c.rms_norm_eps))
    }

    /// The LM head's weight [vocab, hidden]: its own or the embedding's.
    pub fn head_weight(&self, g: &mut Graph, params: &Params<'_>) -> Tensor {
        let name = if self.config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        params.get(g, name, [self.config.vocab_size, self.config.hidden_size])
    }

    /// The rotary table's external; its rows are the positions that can occur.
    fn rope_table(&self, g: &mut Graph, params: &Params<'_>, positions: usize) -> Tensor {
        g.external(&format!("{}{ROPE_TABLE}", params.prefix), [positions, self.config.rope.dims], DType::F32)
    }

    #[allow(clippy::too_many_arguments)]
    fn block(
        &self,
        g: &mut Graph,
        params: &Params<'_>,
        layer: usize,
        h: Tensor,
        batch: &BatchInputs,
        table: Tensor,
        cache: Option<KvCache>,
    ) -> (Tensor, [Tensor; 3]) {
        let c = &self.config;
        let at = format!("model.layers.{layer}");
        let (attended, qkv) = self.attention(g, params, layer, h, batch, table, cache);
        let out = format!("{at}.self_attn.o_proj");
        let h = nn::linear(g, params, &out, attended, c.hidden_size, c.attention_bias, Some(h));
        let names = [&*format!("{at}.post_attention_layernorm"), &*format!("{at}.mlp")];
        (nn::gated_mlp(g, params, names, h, c.rms_norm_eps, c.intermediate_size, c.mlp_bias), qkv)
    }

    /// Heads of attention over the norm of h [N, hidden]; returns [N, heads * head_dim], before the output projection,
    /// and the new rows' queries, keys and values.
    #[allow(clippy::too_many_arguments)]
    fn attention(
        &self,
        g: &mut Graph,
        params: &Params<'_>,
        layer: usize,
        h: Tensor,
        batch: &BatchInputs,
        table: Tensor,
        cache: Option<KvCache>,
    ) -> (Tensor, [Tensor; 3]) {
        let c = &self.config;
        let (n, at) = (h.shape.rows(), format!("model.layers.{layer}"));
        // The norm is cheap beside the projections: computed again in the backward pass, not kept.
        let [q, k, mut v] = g.checkpoint(|g| {
            let x = nn::rms_norm(g, params, &format!("{at}.input_layernorm"), h, c.rms_norm_eps);
            let heads = [c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads];
            [("q_proj", heads[0]), ("k_proj", heads[1]), ("v_proj", heads[2])].map(|(part, heads)| {
                let name = format!("{at}.self_attn.{part}");
                let y = nn::linear(g, params, &name, x, heads * c.head_dim, c.attention_bias, None);
                g.reshape(y, [n, heads, c.head_dim])
            })
        });
        let q = ops::rope(g, q, batch.positions, table);
        let mut k = ops::rope(g, k, batch.positions, table);
        let qkv = [q, k, v];
        if let Some(KvCache { positions }) = cache {
            let width = c.num_key_value_heads * c.head_dim;
            [k, v] = [(k, 0), (v, 1)].map(|(new, which)| {
                let held = g.external(&KvCache::names(layer)[which], [positions, width], DType::F32);
                let new = g.reshape(new, [n, width]);
                let held = ops::write_rows(g, held, new, batch.positions);
                g.reshape(held, [positions, c.num_key_value_heads, c.head_dim])
            });
        }
        let scale = 1.0 / (c.head_dim as f32).sqrt();
        let y = ops::attention(g, q, k, v, batch.ranges, scale, 0.0);
        (g.reshape(y, [n, c.num_attention_heads * c.head_dim]), qkv)
    }
}
