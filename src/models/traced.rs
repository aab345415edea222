//! Inner tensors of a forward pass: what losses on hidden states and attention read.

use crate::graph::Tensor;
use crate::{Error, Result};

/// Which inner tensors of [`super::Decoder::forward_traced`] are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taps {
    /// Hidden states by transformers' `hidden_states` index: 0 is the embedding's output, i that of block i (counted
    /// from 1), and the number of blocks the last block's after the final norm.
    pub states: Vec<usize>,
    /// Blocks, counted from 0, whose queries, keys and values are wanted.
    pub relations: Vec<usize>,
}

/// A recorded forward pass. Every tensor may be given to [`crate::graph::Graph::backward`] with a gradient of its own.
#[derive(Debug, Clone)]
pub struct Traced {
    /// Final hidden states after the last norm, [N, hidden].
    pub hidden: Tensor,
    /// The states asked for with their index, [N, hidden] each, in the order asked.
    pub states: Vec<(usize, Tensor)>,
    /// For the blocks asked for, in the order asked: queries [N, heads, head_dim], keys and values
    /// [N, kv heads, head_dim], as attention takes them (queries and keys after their rotation).
    pub relations: Vec<(usize, [Tensor; 3])>,
}

impl Taps {
    /// Refuses what a model of `layers` blocks does not have.
    pub(super) fn check(&self, layers: usize) -> Result<()> {
        let outside = self.states.iter().find(|&&i| i > layers).or(self.relations.iter().find(|&&i| i >= layers));
        match outside {
            None => Ok(()),
            Some(i) => Err(Error::internal(format!("tap {i} of a model of {layers} blocks"))),
        }
    }

    /// Picks what was asked for out of all `states` (the embedding's output, then each block's, the last one normed)
    /// and all blocks' `relations`.
    pub(super) fn pick(&self, states: &[Tensor], relations: &[[Tensor; 3]]) -> Result<Traced> {
        let hidden = *states.last().ok_or_else(|| Error::internal("a decoder without states"))?;
        let at = |i: &usize| states.get(*i).map(|state| (*i, *state));
        let of = |i: &usize| relations.get(*i).map(|relation| (*i, *relation));
        let states = self.states.iter().filter_map(at).collect();
        Ok(Traced { hidden, states, relations: self.relations.iter().filter_map(of).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{DType, Graph, Values, evaluate};
    use crate::models::{Decoder, from_config};
    use crate::nn::{BatchInputs, Params};
    use crate::ops::segments_of;
    use crate::random::SplitMix64;
    use serde_json::json;
    use std::collections::HashMap;
    use std::path::Path;

    const ROWS: usize = 6;
    /// Two documents of three rows.
    const QUERY: [[u32; 2]; ROWS] = [[0, 1], [0, 2], [0, 3], [3, 4], [3, 5], [3, 6]];
    const KEY: [[u32; 2]; ROWS] = [[0, 3], [1, 3], [2, 3], [3, 6], [4, 6], [5, 6]];
    const TOKENS: [u32; ROWS] = [4, 1, 4, 0, 7, 1];

    fn decoder() -> Decoder {
        let config = json!({
            "model_type": "llama", "vocab_size": 9, "hidden_size": 12, "intermediate_size": 10, "head_dim": 4,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": true,
        });
        from_config(Path::new("config.json"), &config).unwrap()
    }

    /// Every tap of the model with a seed each, and the backward pass from them. Returns the tapped tensors.
    fn record(g: &mut Graph, decoder: &Decoder, recompute: bool) -> Vec<Tensor> {
        let batch = BatchInputs::declare(g, "t", ROWS, 3, true);
        let taps = Taps { states: vec![0, 2, 3, 1], relations: vec![2, 0] };
        let params = Params { prefix: "", trainable: &|_| true, lora: None, merged: None, packed: None };
        let traced = decoder.forward_traced(g, &params, &batch, recompute, &taps).unwrap();
        assert_eq!(traced.states.iter().map(|(i, _)| *i).collect::<Vec<_>>(), taps.states);
        assert_eq!(traced.relations.iter().map(|(i, _)| *i).collect::<Vec<_>>(), taps.relations);
        assert_eq!(traced.states[2].1, traced.hidden, "the last state is the normed one");
        let relations = traced.relations.iter().flat_map(|(_, qkv)| *qkv);
        let tapped: Vec<Tensor> = traced.states.iter().map(|(_, t)| *t).chain(relations).collect();
        let seed = |(i, t): (usize, &Tensor)| (*t, g.external(&format!("seed{i}"), t.shape, DType::F32));
        let seeds: Vec<_> = tapped.iter().enumerate().map(seed).collect();
        g.backward(&seeds).unwrap();
        tapped
    }

    /// Values of every external; gradients start at 0.
    fn values(g: &Graph, decoder: &Decoder) -> HashMap<String, Values> {
        let (order, starts, tokens) = segments_of(&TOKENS);
        let ints = [
            ("t.tokens", TOKENS.to_vec()),
            ("t.positions", vec![0, 1, 2, 0, 1, 2]),
            ("t.query_range", QUERY.as_flattened().to_vec()),
            ("t.key_range", KEY.as_flattened().to_vec()),
            ("t.segment_order", order),
            ("t.segment_start", starts),
            ("t.segment_token", tokens),
        ];
        let mut all: HashMap<_, _> = ints.into_iter().map(|(name, v)| (name.to_owned(), Values::U(v))).collect();
        for (name, rope) in decoder.rope_tables("").zip(&decoder.config.ropes) {
            all.insert(name, Values::F(rope.table(3).into_iter().map(f64::from).collect()));
        }
        let mut random = SplitMix64::new(7);
        let mut externals: Vec<_> = g.externals().map(|(name, t)| (name.to_owned(), t)).collect();
        externals.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, tensor) in externals {
            let scale = if name.starts_with("grad:") { 0.0 } else { 0.6 };
            let random = (0..tensor.shape.numel()).map(|_| scale * random.normal()).collect();
            all.entry(name).or_insert(Values::F(random));
        }
        all
    }

    /// The weighted sum of all tapped tensors that the seeds are the gradient of.
    fn scalar(g: &Graph, tapped: &[Tensor], values: &HashMap<String, Values>) -> f64 {
        let found = evaluate(g, &mut values.clone(), tapped).unwrap();
        let dot = |(i, t): (usize, &Values)| -> f64 {
            t.floats().iter().zip(values[&format!("seed{i}")].floats()).map(|(t, s)| t * s).sum()
        };
        found.iter().enumerate().map(dot).sum()
    }

    #[test]
    fn seeds_at_inner_tensors_give_the_derivative_of_every_parameter() {
        let decoder = decoder();
        for recompute in [false, true] {
            let mut g = Graph::new();
            let tapped = record(&mut g, &decoder, recompute);
            let start = values(&g, &decoder);
            let mut after = start.clone();
            evaluate(&g, &mut after, &[]).unwrap();
            let mut forward = Graph::new();
            let tapped_alone = record(&mut forward, &decoder, false);
            for spec in decoder.parameters() {
                // Along a random direction of this parameter, by central differences.
                let mut random = SplitMix64::new(spec.shape.numel() as u64);
                let direction: Vec<f64> = (0..spec.shape.numel()).map(|_| random.normal()).collect();
                let at = |step: f64| {
                    let moved = start[&spec.name].floats().iter().zip(&direction).map(|(x, d)| x + step * d).collect();
                    let mut values = start.clone();
                    values.insert(spec.name.clone(), Values::F(moved));
                    scalar(&forward, &tapped_alone, &values)
                };
                let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
                let gradient = after[&Graph::grad_name(&spec.name)].floats();
                let found: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
                // The truncation error is of the order of 1e-10 times a third derivative.
                assert!(
                    (expected - found).abs() < 1e-6 * (1.0 + expected.abs()),
                    "{}: {found}, not {expected}",
                    spec.name
                );
            }
            assert_eq!(tapped.len(), 4 + 6);
        }
    }

    #[test]
    fn taps_outside_the_model_are_refused() {
        let mut g = Graph::new();
        let batch = BatchInputs::declare(&mut g, "t", ROWS, 3, false);
        for taps in [Taps { states: vec![4], ..Taps::default() }, Taps { relations: vec![3], ..Taps::default() }] {
            assert!(decoder().forward_traced(&mut g, &Params::frozen(""), &batch, false, &taps).is_err());
        }
    }
}
