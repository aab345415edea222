//! The gradients of the coefficients against central differences, and the regularisers' closed forms.

use super::super::config::Learning;
use super::graphs::{self, BATCH, OVERLAP, SIMILARITY, SUM, Shape};
use super::network::Network;
use crate::device::Caps;
use crate::formats::Tokenizer;
use crate::graph::{DType, Graph, Shape as Dims, Tensor, Values, evaluate};
use crate::models::from_config;
use crate::nn::Merged;
use crate::ops::segments_of;
use crate::random::SplitMix64;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

const ROWS: usize = 6;
const TOKENS: [u32; ROWS] = [4, 1, 4, 0, 7, 1];
const SHAPE: Shape = Shape { batch: 2, context: 3, temperature: 1.5 };

/// A network of `models` models that no plan makes.
fn network(config: &Value, models: usize, learning: &Learning) -> Network {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smollm_tokenizer.json");
    let tokenizer = Tokenizer::from_json(&path, std::fs::read(&path).unwrap(), Map::new()).unwrap();
    let decoder = || from_config(Path::new("config.json"), config).unwrap();
    Network::bare(decoder(), (0..models).map(|_| decoder()).collect(), tokenizer, learning)
}

fn learning() -> Learning {
    Learning {
        learning_rate: 1e-3,
        max_steps: None,
        num_train_epochs: 1.0,
        per_device_train_batch_size: SHAPE.batch,
        sequence_length: SHAPE.context,
        temperature: SHAPE.temperature,
        similarity: 0.01,
        overlap: 0.01,
        max_grad_norm: 1.0,
        holdout: 0.0,
        embeddings: true,
        norms: true,
        save_steps: 1,
    }
}

fn llama(tied: bool) -> Value {
    json!({
        "model_type": "llama", "vocab_size": 341, "hidden_size": 12, "intermediate_size": 10, "head_dim": 4,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": tied,
    })
}

/// With biases, LayerNorm and learned positions.
fn gpt2() -> Value {
    json!({
        "model_type": "gpt2", "vocab_size": 341, "n_embd": 12, "n_inner": 10, "n_layer": 2, "n_head": 3,
        "n_positions": 8,
    })
}

/// Values of every external: two documents of three rows, random weights, coefficients around a half.
fn values(g: &Graph, network: &Network) -> HashMap<String, Values> {
    let (order, starts, tokens) = segments_of(&TOKENS);
    let (position_order, position_start, position_token) = segments_of(&[0, 1, 2, 0, 1, 2]);
    let ints = [
        ("tokens", TOKENS.to_vec()),
        ("positions", vec![0, 1, 2, 0, 1, 2]),
        ("query_range", vec![0, 1, 0, 2, 0, 3, 3, 4, 3, 5, 3, 6]),
        ("key_range", vec![0, 3, 1, 3, 2, 3, 3, 6, 4, 6, 5, 6]),
        ("segment_order", order),
        ("segment_start", starts),
        ("segment_token", tokens),
        ("position_order", position_order),
        ("position_start", position_start),
        ("position_token", position_token),
        ("labels", vec![0; ROWS]),
        ("zero", vec![0]),
    ];
    let name = |name| format!("{BATCH}.{name}");
    let mut all: HashMap<String, Values> = ints.into_iter().map(|(n, v)| (name(n), Values::U(v))).collect();
    all.insert(name("weights"), Values::F(vec![0.25, 0.25, 0.0, 0.25, 0.25, 0.0]));
    all.insert(SUM.into(), Values::F(vec![0.0]));
    for prefix in std::iter::once(&String::new()).chain(&network.merged.models) {
        for (name, rope) in network.decoder.rope_tables(prefix).zip(&network.decoder.config.ropes) {
            let table = rope.table(SHAPE.context).into_iter().map(f64::from).collect();
            all.insert(name, Values::F(table));
        }
    }
    let mut random = SplitMix64::new(11);
    let mut externals: Vec<_> = g.externals().map(|(name, t)| (name.to_owned(), t)).collect();
    externals.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, tensor) in externals {
        let (middle, scale) = if name.starts_with("grad:") {
            (0.0, 0.0)
        } else if name.ends_with(".coefficients") {
            (0.5, 0.1)
        } else {
            (0.0, 0.4)
        };
        let random = (0..tensor.shape.numel()).map(|_| middle + scale * random.normal()).collect();
        all.entry(name).or_insert(Values::F(random));
    }
    all
}

/// What `graph` leaves in `values`, with the gradient of every coefficient tensor it has, and the values of `wanted`.
fn replay(
    mut graph: Graph,
    network: &Network,
    values: &HashMap<String, Values>,
    wanted: &[Tensor],
) -> (HashMap<String, Values>, Vec<Values>) {
    let coefficients = network.coefficients();
    let names = coefficients.iter().filter(|(name, _)| graph.externals().any(|(known, _)| known == name));
    let names: Vec<_> = names.cloned().collect();
    let gradient = |(name, shape): &(String, Dims)| {
        let coefficients = graph.external(name, *shape, DType::F32);
        graph.grad(coefficients).unwrap()
    };
    // What was added last: an external is told only of the first addition.
    let gradients: Vec<Tensor> = names.iter().map(gradient).collect();
    let mut after = values.clone();
    let mut found = evaluate(&graph, &mut after, &[wanted, &gradients].concat()).unwrap();
    let gradients = found.split_off(wanted.len());
    after.extend(names.iter().map(|(name, _)| Graph::grad_name(name)).zip(gradients));
    (after, found)
}

/// The derivative by every coefficient tensor along a random direction, against central differences of `value`.
fn check(
    network: &Network,
    start: &HashMap<String, Values>,
    gradients: &HashMap<String, Values>,
    value: &dyn Fn(&HashMap<String, Values>) -> f64,
) {
    for (name, shape) in network.coefficients() {
        let Some(gradient) = gradients.get(&Graph::grad_name(&name)) else { continue };
        let mut random = SplitMix64::new(shape.numel() as u64);
        let direction: Vec<f64> = (0..shape.numel()).map(|_| random.normal()).collect();
        let at = |step: f64| {
            let moved = start[&name].floats().iter().zip(&direction).map(|(x, d)| x + step * d).collect();
            let mut values = start.clone();
            values.insert(name.clone(), Values::F(moved));
            value(&values)
        };
        let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
        let found: f64 = gradient.floats().iter().zip(&direction).map(|(g, d)| g * d).sum();
        // The truncation error is of the order of 1e-10 times a third derivative.
        assert!((expected - found).abs() < 1e-6 * (1.0 + expected.abs()), "{name}: {found}, not {expected}");
    }
}

#[test]
fn coefficients_have_the_gradient_of_the_divergence() {
    for config in [llama(true), llama(false), gpt2()] {
        let network = network(&config, 2, &learning());
        for source in 0..2 {
            let graph = |train| graphs::divergence(&network, source, SHAPE, train, &Caps::webgpu()).unwrap();
            let (training, forward) = (graph(true), graph(false));
            let start = values(&training, &network);
            let (after, _) = replay(training, &network, &start, &[]);
            let loss = |values: &HashMap<String, Values>| {
                let mut values = values.clone();
                evaluate(&forward, &mut values, &[]).unwrap();
                values[SUM].floats()[0]
            };
            let first = loss(&start);
            assert!(first > 0.0 && (after[SUM].floats()[0] - first).abs() < 1e-12 * first);
            check(&network, &start, &after, &loss);
            // Every coefficient is learned: its gradient is there, and it is not 0.
            for (name, _) in network.coefficients() {
                let gradient = after[&Graph::grad_name(&name)].floats();
                // What is added to all scores of a row changes nothing: the keys' biases.
                let inert = name.ends_with("k_proj.bias.coefficients");
                assert!(inert || gradient.iter().any(|g| *g != 0.0), "{name}");
            }
        }
    }
}

#[test]
fn one_model_with_coefficients_of_one_is_at_no_distance_from_itself() {
    let network = network(&llama(true), 1, &learning());
    let graph = graphs::divergence(&network, 0, SHAPE, true, &Caps::webgpu()).unwrap();
    let mut values = values(&graph, &network);
    for (name, shape) in network.coefficients() {
        values.insert(name, Values::F(vec![1.0; shape.numel()]));
    }
    let (values, _) = replay(graph, &network, &values, &[]);
    assert_eq!(values[SUM].floats(), [0.0]);
    for (name, _) in network.coefficients() {
        assert!(values[&Graph::grad_name(&name)].floats().iter().all(|g| *g == 0.0), "{name}");
    }
    assert!(graphs::regularisers(&network, [true, true]).unwrap().is_none(), "one model has no pairs");
}

#[test]
fn regularisers_are_means_over_pairs_summed_over_tensors() {
    let network = network(&gpt2(), 3, &learning());
    let (graph, pairs) = graphs::regularisers(&network, [true, true]).unwrap().unwrap();
    let tensors = network.merged.columns.values().filter(|columns| **columns > 1).count();
    assert_eq!(pairs.each_ref().map(Vec::len), [3 * tensors; 2]);
    let factors = [0.01 / 3.0, 1e-5 / 3.0];
    let mut start = values(&graph, &network);
    for (name, factor) in [SIMILARITY, OVERLAP].into_iter().zip(factors) {
        start.insert(name.into(), Values::F(vec![factor]));
    }
    // The definition, from the numbers themselves.
    let value = |values: &HashMap<String, Values>| {
        let mut sum = 0.0;
        for name in network.merged.columns.iter().filter(|(_, columns)| **columns > 1).map(|(name, _)| name) {
            let vectors: Vec<&[f64]> =
                network.merged.models.iter().map(|m| values[&Merged::coefficients(m, name)].floats()).collect();
            for (i, a) in vectors.iter().enumerate() {
                for b in &vectors[i + 1..] {
                    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                    sum += factors[0] * dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
                    sum += factors[1] * a.iter().zip(*b).map(|(a, b)| a.abs().min(b.abs())).sum::<f64>();
                }
            }
        }
        sum
    };
    let all: Vec<_> = pairs.iter().flatten().copied().collect();
    let (after, found) = replay(graph, &network, &start, &all);
    let (cosines, overlaps) = found.split_at(pairs[0].len());
    let total = |values: &[Values]| values.iter().map(|v| v.floats()[0]).sum::<f64>();
    let sum = factors[0] * total(cosines) + factors[1] * total(overlaps);
    assert!((sum - value(&start)).abs() < 1e-14, "{sum}");
    check(&network, &start, &after, &value);
}
