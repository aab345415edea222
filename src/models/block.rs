//! One forward pass through the common decoder block: norm, attention, norm, MLP, with a residual stream through all of
//! it; a family's variations are in its [`DecoderConfig`].

use super::config::{Mlp, Qkv};
use super::{Decoder, DecoderConfig, KvCache};
use crate::graph::{DType, Graph, Tensor};
use crate::nn::{self, BatchInputs, Params};
use crate::ops;
use crate::{Error, Result};

/// A pass being recorded.
pub(super) struct Pass<'a> {
    config: &'a DecoderConfig,
    params: &'a Params<'a>,
    batch: &'a BatchInputs,
    cache: Option<KvCache>,
    /// The tables of the model's rotary positions.
    tables: Vec<Tensor>,
}

impl<'a> Pass<'a> {
    /// Starts a pass; returns the embedded tokens [N, hidden] with it.
    pub fn start(
        g: &mut Graph,
        decoder: &'a Decoder,
        params: &'a Params<'a>,
        batch: &'a BatchInputs,
        cache: Option<KvCache>,
    ) -> Result<(Self, Tensor)> {
        let mut pass = Pass { config: &decoder.config, params, batch, cache, tables: Vec::new() };
        let h = pass.embed(g)?;
        for (name, rope) in decoder.rope_tables(params.prefix).zip(&decoder.config.ropes) {
            pass.tables.push(g.external(&name, [batch.context, rope.dims], DType::F32));
        }
        Ok((pass, h))
    }

    fn embed(&self, g: &mut Graph) -> Result<Tensor> {
        let (c, batch) = (self.config, self.batch);
        let shape = [c.vocab_size, c.hidden_size];
        let tokens = (batch.tokens, batch.segments);
        let h = nn::embedding(g, self.params, c.names.embedding, tokens, shape, c.embedding_scale);
        let Some(name) = c.names.positions else { return Ok(h) };
        let most = c.max_position_embeddings;
        if batch.context > most {
            let place =
                Error::at("the context").expected(format!("at most {most} tokens, the model's learned positions"));
            return place
                .found(format!("{} tokens", batch.context))
                .help("lower `sequence_length`, or the tokens asked for")
                .err();
        }
        let positions = (batch.positions, batch.position_segments(g));
        let at = nn::embedding(g, self.params, name, positions, [most, c.hidden_size], 1.0);
        Ok(ops::add(g, h, at))
    }

    /// The norm after the last block.
    pub fn final_norm(&self, g: &mut Graph, h: Tensor) -> Tensor {
        nn::norm(g, self.params, self.config.names.final_norm, h, self.config.norm)
    }

    /// A block from h [N, hidden] to the next h, and its attention's queries, keys and values.
    pub fn block(&self, g: &mut Graph, layer: usize, h: Tensor) -> (Tensor, [Tensor; 3]) {
        let (c, at) = (self.config, format!("{}.{layer}", self.config.names.layers));
        let (attended, qkv) = self.attention(g, layer, &at, h);
        let out = |g: &mut Graph, residual: Option<Tensor>| {
            nn::linear(g, self.params, &format!("{at}.{}", c.names.out), attended, c.hidden_size, c.out_bias, residual)
        };
        let joined = self.join(g, &at, c.names.post_attention_norm, h, out);
        // A parallel block's MLP takes what attention took, after the same norm.
        let (norm, input) = c.names.mlp_norm.map_or((c.names.attention_norm, h), |norm| (norm, joined));
        (self.mlp(g, &at, norm, input, joined), qkv)
    }

    /// h + x, or h + norm(x) in families that have such a norm; `x` records x, onto a residual if it is given one.
    fn join(
        &self,
        g: &mut Graph,
        at: &str,
        norm: Option<&str>,
        h: Tensor,
        x: impl Fn(&mut Graph, Option<Tensor>) -> Tensor,
    ) -> Tensor {
        let Some(norm) = norm else { return x(g, Some(h)) };
        let x = x(g, None);
        let normed = nn::norm(g, self.params, &format!("{at}.{norm}"), x, self.config.norm);
        ops::add(g, h, normed)
    }

    /// Heads of attention over the norm of h [N, hidden]: [N, heads * head_dim], before the output projection, and the
    /// new rows' queries, keys and values.
    fn attention(&self, g: &mut Graph, layer: usize, at: &str, h: Tensor) -> (Tensor, [Tensor; 3]) {
        let (c, n) = (self.config, h.shape.rows());
        let kind = c.layers[layer];
        // The norm is cheap beside the projections: computed again in the backward pass, not kept.
        let [mut q, mut k, v] = g.checkpoint(|g| {
            let x = nn::norm(g, self.params, &format!("{at}.{}", c.names.attention_norm), h, c.norm);
            self.project(g, at, x)
        });
        if let Some(names) = c.names.head_norms {
            [q, k] = [(q, names[0]), (k, names[1])]
                .map(|(x, name)| nn::norm(g, self.params, &format!("{at}.{name}"), x, c.norm));
        }
        if let Some(&table) = kind.rope.and_then(|which| self.tables.get(which)) {
            [q, k] = [q, k].map(|x| ops::rope(g, x, self.batch.positions, table));
        }
        let [keys, values] = self.cached(g, layer, [k, v]);
        let ranges = self.batch.windowed(g, kind.window);
        let y = ops::attention(g, q, keys, values, ranges, c.attention_scale, c.attention_softcap);
        (g.reshape(y, [n, c.num_attention_heads * c.head_dim]), [q, k, v])
    }

    /// Queries [N, heads, head_dim], keys and values [N, kv heads, head_dim] of x [N, hidden].
    fn project(&self, g: &mut Graph, at: &str, x: Tensor) -> [Tensor; 3] {
        let (c, n) = (self.config, x.shape.rows());
        let [q, kv] = [c.num_attention_heads, c.num_key_value_heads];
        let parts = match c.names.qkv {
            Qkv::Split(names) => [(names[0], q), (names[1], kv), (names[2], kv)].map(|(name, heads)| {
                nn::linear(g, self.params, &format!("{at}.{name}"), x, heads * c.head_dim, c.qkv_bias, None)
            }),
            Qkv::Fused(name) => {
                let width = (q + 2 * kv) * c.head_dim;
                let all = nn::linear(g, self.params, &format!("{at}.{name}"), x, width, c.qkv_bias, None);
                [0..q, q..q + kv, q + kv..q + 2 * kv]
                    .map(|heads| ops::columns(g, all, heads.start * c.head_dim..heads.end * c.head_dim))
            }
        };
        parts.map(|part| g.reshape(part, [n, part.shape.cols() / c.head_dim, c.head_dim]))
    }

    /// The new rows' keys and values; in decoding, all that the cache holds after they joined it.
    fn cached(&self, g: &mut Graph, layer: usize, new: [Tensor; 2]) -> [Tensor; 2] {
        let Some(KvCache { positions }) = self.cache else { return new };
        let c = self.config;
        let width = c.num_key_value_heads * c.head_dim;
        let names = KvCache::names(layer);
        [(new[0], &names[0]), (new[1], &names[1])].map(|(new, name)| {
            let held = g.external(name, [positions, width], DType::F32);
            let new = g.reshape(new, [new.shape[0], width]);
            let held = ops::write_rows(g, held, new, self.batch.positions);
            g.reshape(held, [positions, c.num_key_value_heads, c.head_dim])
        })
    }

    /// The MLP over the norm of `input` [N, hidden], joined to `h`.
    fn mlp(&self, g: &mut Graph, at: &str, norm: &str, input: Tensor, h: Tensor) -> Tensor {
        let c = self.config;
        let project = |g: &mut Graph, name: &str, x: Tensor| {
            nn::linear(g, self.params, &format!("{at}.{name}"), x, c.intermediate_size, c.mlp_bias, None)
        };
        // Norm and activation are cheap beside the projections: computed again in the backward pass, not kept.
        let (gate, up) = g.checkpoint(|g| {
            let x = nn::norm(g, self.params, &format!("{at}.{norm}"), input, c.norm);
            let gate = match c.mlp {
                Mlp::Gated { gate, activation } => Ok((project(g, gate, x), activation)),
                Mlp::Plain { tanh } => Err(tanh),
            };
            (gate, project(g, c.names.up, x))
        });
        let down = |g: &mut Graph, residual: Option<Tensor>| {
            g.checkpoint(|g| {
                let inner = match gate {
                    Ok((gate, activation)) => activation.gated(g, gate, up),
                    Err(tanh) => ops::gelu(g, up, tanh),
                };
                nn::linear(
                    g,
                    self.params,
                    &format!("{at}.{}", c.names.down),
                    inner,
                    c.hidden_size,
                    c.mlp_bias,
                    residual,
                )
            })
        };
        self.join(g, at, c.names.post_mlp_norm, h, down)
    }
}
