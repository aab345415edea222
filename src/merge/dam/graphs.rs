//! What is learned, as graphs: the divergence of the merged model from one it is made of, and the regularisers.

use super::network::{Network, prefix};
use crate::Result;
use crate::device::Caps;
use crate::graph::{DType, Graph, Tensor};
use crate::losses::{Divergent, Head, Live, Loss, Target, Temperature, chunk_rows, fused_head};
use crate::models::Decoder;
use crate::nn::{BatchInputs, Merged, Params};
use crate::ops::{self, Divergence};
use std::collections::BTreeSet;

/// The prefix of the batch's externals.
pub(super) const BATCH: &str = "dam";
/// The sum of the divergences of a batch's rows, weighted, f32 [1].
pub(super) const SUM: &str = "dam.sum";
/// The gradients of the regularisers' values, f32 [1] each: their factors, shared out among the pairs.
pub(super) const SIMILARITY: &str = "dam.similarity";
/// See [`SIMILARITY`].
pub(super) const OVERLAP: &str = "dam.overlap";

/// The size and temperature of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub context: usize,
    /// Softmax temperature T.
    pub temperature: f32,
}

/// T^2 KL(source || merged) on a batch of the source's text, added row by row, weighted, to [`SUM`]; with `train` its
/// gradients too, added to the coefficients'. Externals besides: those of [`BatchInputs`], `dam.labels`, which nothing
/// reads, `dam.weights` f32 [N] and `dam.zero` u32 [1].
pub(super) fn divergence(network: &Network, source: usize, shape: Shape, train: bool, caps: &Caps) -> Result<Graph> {
    let mut g = Graph::new();
    let n = shape.batch * shape.context;
    let inputs = BatchInputs::declare(&mut g, BATCH, n, shape.context, train);
    g.external(&format!("{BATCH}.labels"), [n], DType::U32);
    let weights = g.external(&format!("{BATCH}.weights"), [n], DType::F32);
    let learned: BTreeSet<String> = network.coefficients().into_iter().map(|(name, _)| name).collect();
    let trainable = |name: &str| train && learned.contains(name);
    let params = Params { prefix: "", trainable: &trainable, lora: None, merged: Some(&network.merged), packed: None };
    let (prefix, model) = (prefix(source), &network.sources[source].decoder);
    let own = Params::frozen(&prefix);
    let taught = model.forward(&mut g, &own, &inputs, false)?;
    let teacher = [model.head_weight(&mut g, &own)];
    let hidden = network.decoder.forward(&mut g, &params, &inputs, false)?;
    let weight = [network.decoder.head_weight(&mut g, &params)];
    let head = |decoder: &Decoder, weight| {
        let softcap = decoder.config.logit_softcap;
        Head { weight, vocab: network.tokenizer.vocab_size(), softcap }
    };
    let teacher = Live { hidden: taught, head: head(model, &teacher) };
    let loss = Loss::Divergence(Divergent {
        divergence: Divergence::Kl,
        parameters: None,
        blend: None,
        target: Target::Live(teacher, Temperature::Fixed(shape.temperature)),
        weights,
    });
    let rows = chunk_rows(network.decoder.config.vocab_size, caps);
    let fused = fused_head(&mut g, hidden, &head(&network.decoder, &weight), &[loss], rows, train)?;
    let seeds: Vec<(Tensor, Tensor)> = fused.d_hidden.map(|d_hidden| (hidden, d_hidden)).into_iter().collect();
    if !seeds.is_empty() {
        g.backward(&seeds)?;
    }
    let (sum, zero) = (g.external(SUM, [1], DType::F32), g.external("dam.zero", [1], DType::U32));
    for rows in fused.loss_rows {
        ops::weighted_sum(&mut g, rows, weights, sum, zero);
    }
    Ok(g)
}

/// The regularisers' gradients, added to the coefficients'; `None` where there is none. Returns the values of every
/// pair too: cosines, then overlaps, tensor by tensor. The factor of each is an external, [`SIMILARITY`] and
/// [`OVERLAP`].
pub(super) fn regularisers(
    network: &Network,
    [similar, overlapping]: [bool; 2],
) -> Result<Option<(Graph, [Vec<Tensor>; 2])>> {
    let mut g = Graph::new();
    let factors = [SIMILARITY, OVERLAP].map(|name| g.external(name, [1], DType::F32));
    let (mut seeds, mut values) = (Vec::new(), [Vec::new(), Vec::new()]);
    let models = &network.merged.models;
    // A single number has no direction, and nothing to share its inputs with.
    for (name, &columns) in network.merged.columns.iter().filter(|(_, columns)| **columns > 1) {
        let vectors: Vec<Tensor> =
            models.iter().map(|model| g.param(&Merged::coefficients(model, name), [columns], true)).collect();
        for (i, &a) in vectors.iter().enumerate() {
            for &b in &vectors[i + 1..] {
                if similar {
                    let cosine = ops::cosine(&mut g, a, b);
                    seeds.push((cosine, factors[0]));
                    values[0].push(cosine);
                }
                if overlapping {
                    let overlap = ops::overlap(&mut g, a, b);
                    seeds.push((overlap, factors[1]));
                    values[1].push(overlap);
                }
            }
        }
    }
    if seeds.is_empty() {
        return Ok(None);
    }
    g.backward(&seeds)?;
    Ok(Some((g, values)))
}
