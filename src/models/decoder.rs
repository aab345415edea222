//! A decoder: its parameters, and its forward passes recorded into a graph.

use super::block::Pass;
use super::config::{DecoderConfig, Mlp, Qkv};
use super::{Taps, Traced};
use crate::Result;
use crate::formats::Dtype;
use crate::graph::{DType, Graph, Shape, Tensor};
use crate::nn::{BatchInputs, ParamSpec, Params};
use crate::ops::{self, Layout, View};
use std::collections::BTreeMap;

/// A decoder-only transformer that can be recorded into a graph.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// Its configuration.
    pub config: DecoderConfig,
    /// The matrices that stay as their file stores them, by name: none unless [`Decoder::with_frozen`] was asked, and
    /// only of a model that is not trained.
    pub packed: BTreeMap<String, Dtype>,
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
        Decoder { config, packed: BTreeMap::new() }
    }

    /// Every parameter with its shape, in the order of the network.
    pub fn parameters(&self) -> Vec<ParamSpec> {
        let (c, names) = (&self.config, &self.config.names);
        let mut specs = vec![spec(format!("{}.weight", names.embedding), [c.vocab_size, c.hidden_size])];
        if let Some(name) = names.positions {
            specs.push(spec(format!("{name}.weight"), [c.max_position_embeddings, c.hidden_size]));
        }
        (0..c.num_hidden_layers).for_each(|layer| self.block_parameters(layer, &mut specs));
        specs.extend(c.norm.parameters(names.final_norm, c.hidden_size));
        if !c.tie_word_embeddings {
            specs.push(spec("lm_head.weight".into(), [c.vocab_size, c.hidden_size]));
        }
        specs
    }

    fn block_parameters(&self, layer: usize, specs: &mut Vec<ParamSpec>) {
        let (c, names) = (&self.config, &self.config.names);
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let at = |name: &str| format!("{}.{layer}.{name}", names.layers);
        let linear = |name: &str, out: usize, inner: usize, bias: bool| {
            let bias = bias.then(|| spec(format!("{}.bias", at(name)), [out]));
            [Some(spec(format!("{}.weight", at(name)), [out, inner])), bias].into_iter().flatten()
        };
        let norm = |name: Option<&'static str>, width: usize| {
            name.into_iter().flat_map(move |n| c.norm.parameters(&at(n), width))
        };
        specs.extend(norm(Some(names.attention_norm), d));
        match names.qkv {
            Qkv::Split([wq, wk, wv]) => {
                specs.extend(
                    [(wq, q), (wk, kv), (wv, kv)].into_iter().flat_map(|(n, out)| linear(n, out, d, c.qkv_bias)),
                );
            }
            Qkv::Fused(name) => specs.extend(linear(name, q + 2 * kv, d, c.qkv_bias)),
        }
        specs.extend(names.head_norms.into_iter().flatten().flat_map(|name| norm(Some(name), c.head_dim)));
        specs.extend(linear(names.out, d, q, c.out_bias));
        specs.extend(norm(names.post_attention_norm, d));
        specs.extend(norm(names.mlp_norm, d));
        if let Mlp::Gated { gate, .. } = c.mlp {
            specs.extend(linear(gate, f, d, c.mlp_bias));
        }
        specs.extend(linear(names.up, f, d, c.mlp_bias));
        specs.extend(linear(names.down, d, f, c.mlp_bias));
        specs.extend(norm(names.post_mlp_norm, d));
    }

    /// Names of the externals that hold the tables of its rotary positions, [positions, rotated dimensions] each.
    pub fn rope_tables(&self, prefix: &str) -> impl Iterator<Item = String> {
        (0..self.config.ropes.len()).map(move |which| format!("{prefix}rope.{which}"))
    }

    /// Its parameters under `prefix`, of which none is trained.
    pub fn frozen<'a>(&'a self, prefix: &'a str) -> Params<'a> {
        Params { packed: Some(&self.packed), ..Params::frozen(prefix) }
    }

    /// Number of weights.
    pub fn parameter_count(&self) -> usize {
        self.parameters().iter().map(|p| p.shape.numel()).sum()
    }

    /// Bytes of all weights on a device.
    pub fn parameter_bytes(&self) -> u64 {
        self.parameters().iter().map(|p| self.dtype(&p.name).bytes(p.shape)).sum()
    }

    /// Bytes of the LM head's weight on a device.
    pub fn head_bytes(&self) -> u64 {
        self.dtype(&self.head_name()).bytes([self.config.vocab_size, self.config.hidden_size].into())
    }

    /// How a parameter lies on a device.
    pub(super) fn dtype(&self, name: &str) -> DType {
        self.packed.get(name).map_or(DType::F32, |&stored| DType::Packed(stored))
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
        taps.check(self.config.num_hidden_layers)?;
        let (pass, mut h) = Pass::start(g, self, params, batch, None)?;
        let (mut states, mut relations) = (vec![h], Vec::new());
        for layer in 0..self.config.num_hidden_layers {
            let block = |g: &mut Graph| pass.block(g, layer, h);
            let (next, qkv) = if recompute { g.checkpoint(block) } else { block(g) };
            h = next;
            states.push(h);
            relations.push(qkv);
        }
        states.pop();
        states.push(pass.final_norm(g, h));
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
        let (pass, mut h) = Pass::start(g, self, params, batch, Some(cache))?;
        for layer in 0..self.config.num_hidden_layers {
            (h, _) = pass.block(g, layer, h);
        }
        Ok(pass.final_norm(g, h))
    }

    /// The LM head's weight [vocab, hidden]: its own or the embedding's.
    pub fn head_weight(&self, g: &mut Graph, params: &Params<'_>) -> Tensor {
        let c = &self.config;
        let weight = params.get(g, &self.head_name(), [c.vocab_size, c.hidden_size]);
        // Once, not for every chunk of rows.
        ops::halves(g, weight)
    }

    fn head_name(&self) -> String {
        let c = &self.config;
        format!("{}.weight", if c.tie_word_embeddings { c.names.embedding } else { "lm_head" })
    }

    /// All logits [N, vocab] of the final hidden states at once: for decoding. Training goes chunk by chunk
    /// ([`crate::losses::fused_head`]).
    pub fn logits(&self, g: &mut Graph, params: &Params<'_>, hidden: Tensor) -> Tensor {
        let weight = self.head_weight(g, params);
        let logits = match weight.dtype {
            DType::Packed(_) => ops::packed_product(g, hidden, weight),
            _ => ops::matmul(g, Layout::NT, View::from(hidden), View::from(weight)),
        };
        self.config.logit_softcap.map_or(logits, |cap| ops::softcap(g, logits, cap))
    }
}

fn spec(name: String, shape: impl Into<Shape>) -> ParamSpec {
    ParamSpec { name, shape: shape.into() }
}
