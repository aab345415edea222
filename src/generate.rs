//! Text from a model, one token at a time, with a KV cache.

use crate::device::Device;
use crate::formats::ModelFolder;
use crate::graph::{DType, Graph, Plan, Runner, Store};
use crate::models::{self, Decoder, FrozenWeights, KvCache};
use crate::nn::{BatchInputs, windows_in};
use crate::random::SplitMix64;
use crate::{Error, Result};
use std::ops::ControlFlow;

/// Prompt tokens that go through the network at once.
const PREFILL: usize = 32;

/// Longest context: above what any model has, and low enough that no count overflows.
const MAX_CONTEXT: usize = 1 << 24;

/// How the next token is chosen.
#[derive(Debug, Clone)]
pub struct Sampling {
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// 0 takes the likeliest token; else logits are divided by this.
    pub temperature: f64,
    /// Keep only this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens that together have this probability; 1 keeps all.
    pub top_p: f64,
    /// Seed of the draws.
    pub seed: u64,
    /// Tokens that end the text.
    pub stop: Vec<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { max_tokens: 128, temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0, stop: Vec::new() }
    }
}

impl Sampling {
    fn check(&self) -> Result<()> {
        let rule = |holds: bool, name: &str, expected: &str, found: &dyn std::fmt::Display| match holds {
            true => Ok(()),
            false => Error::at("sampling").field(format!("`{name}`")).expected(expected).found(found).err(),
        };
        rule(self.max_tokens > 0, "max_tokens", "at least 1", &self.max_tokens)?;
        rule(self.temperature >= 0.0, "temperature", "0 (the likeliest token) or more", &self.temperature)?;
        rule(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", "above 0 and at most 1", &self.top_p)
    }
}

/// A model ready to continue texts of up to a fixed number of tokens.
pub struct Generator {
    decoder: Decoder,
    store: Store,
    prefill: Runner,
    decode: Runner,
    context: usize,
    vocabulary: usize,
}

impl Generator {
    /// Loads a model folder or GGUF onto a device, with a cache for `context` tokens (prompt and answer).
    /// Tokens from `vocabulary` on (padding of the embedding) are never chosen.
    pub fn new(device: &Device, folder: &ModelFolder, context: usize, vocabulary: usize) -> Result<Generator> {
        let decoder = models::from_config(folder.path(), &folder.config)?;
        let decoder = decoder.with_frozen(FrozenWeights::Stored, &folder.tensors)?;
        if context > MAX_CONTEXT {
            let place = Error::at("the context (prompt and `max_tokens`)").expected(format!("at most {MAX_CONTEXT}"));
            return place.found(format!("{context} tokens")).help("ask for fewer tokens").err();
        }
        let mut store = Store::new(device);
        decoder.allocate(&mut store, "", context)?;
        models::load_parameters(&decoder, &store, "", &folder.tensors, None)?;
        Generator::over(decoder, store, context, vocabulary)
    }

    /// The same over parameters that a store already holds under no prefix, with a rotary table of `context` rows.
    pub fn over(decoder: Decoder, mut store: Store, context: usize, vocabulary: usize) -> Result<Generator> {
        let c = &decoder.config;
        for name in (0..c.num_hidden_layers).flat_map(KvCache::names) {
            store.add(&name, [context, c.num_key_value_heads * c.head_dim], DType::F32)?;
        }
        let mut scratch = Vec::new();
        let prefill = runner(&decoder, &mut store, "prefill", PREFILL, context, &mut scratch)?;
        let decode = runner(&decoder, &mut store, "decode", 1, context, &mut scratch)?;
        let vocabulary = vocabulary.min(c.vocab_size);
        Ok(Generator { decoder, store, prefill, decode, context, vocabulary })
    }

    /// Continues `prompt`, calling `on_token` with each new token until it breaks, a stop token comes (which is
    /// passed on too) or the limit is reached. Returns the new tokens.
    pub async fn generate(
        &mut self,
        prompt: &[u32],
        sampling: &Sampling,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Vec<u32>> {
        sampling.check()?;
        self.check(prompt)?;
        let (last, before) = prompt.split_last().ok_or_else(|| Error::internal("an empty prompt"))?;
        let mut position = 0;
        for chunk in before.chunks(PREFILL) {
            if chunk.len() == PREFILL {
                self.feed("prefill", chunk, position)?;
                self.prefill.run()?;
                self.store.device().catch_up().await?;
            } else {
                for (i, token) in chunk.iter().enumerate() {
                    self.feed("decode", &[*token], position + i)?;
                    self.decode.run()?;
                    self.store.device().catch_up().await?;
                }
            }
            position += chunk.len();
        }
        let mut random = SplitMix64::new(sampling.seed);
        let (mut token, mut made) = (*last, Vec::new());
        while made.len() < sampling.max_tokens && position < self.context {
            self.feed("decode", &[token], position)?;
            self.decode.run()?;
            let logits = self.decode.read_f32("logits").await?;
            token = choose(&logits[..self.vocabulary], sampling, &mut random)?;
            made.push(token);
            position += 1;
            if on_token(token).is_break() || sampling.stop.contains(&token) {
                break;
            }
        }
        Ok(made)
    }

    /// The logits that the last token of the last call to [`Generator::generate`] was chosen by, [vocabulary].
    pub async fn last_logits(&self) -> Result<Vec<f32>> {
        let mut logits = self.decode.read_f32("logits").await?;
        logits.truncate(self.vocabulary);
        Ok(logits)
    }

    fn check(&self, prompt: &[u32]) -> Result<()> {
        let place = Error::at("the prompt");
        if prompt.is_empty() {
            return place.expected("at least one token").found("none").help("give some text").err();
        }
        if prompt.len() >= self.context {
            let (found, help) = (format!("{} tokens", prompt.len()), "shorten it or raise the context length");
            return place.expected(format!("fewer than {} tokens", self.context)).found(found).help(help).err();
        }
        match prompt.iter().find(|&&t| t as usize >= self.decoder.config.vocab_size) {
            None => Ok(()),
            Some(token) => place
                .expected(format!("tokens below {}", self.decoder.config.vocab_size))
                .found(token)
                .help("tokenizer and model do not belong together")
                .err(),
        }
    }

    fn feed(&self, plan: &str, tokens: &[u32], position: usize) -> Result<()> {
        let positions: Vec<u32> = (0..tokens.len()).map(|i| (position + i) as u32).collect();
        let ranges: Vec<[u32; 2]> = positions.iter().map(|&p| [0, p + 1]).collect();
        self.store.write(&format!("{plan}.tokens"), tokens)?;
        self.store.write(&format!("{plan}.positions"), &positions)?;
        for window in windows_in(&self.store, plan) {
            let seen: Vec<[u32; 2]> = ranges.iter().map(|r| [r[1].saturating_sub(window.get()), r[1]]).collect();
            self.store.write(&format!("{plan}.query_range.{window}"), &seen)?;
        }
        self.store.write(&format!("{plan}.query_range"), &ranges)
    }
}

/// A plan for `n` new tokens; only the plan for one computes logits.
fn runner(
    decoder: &Decoder,
    store: &mut Store,
    name: &str,
    n: usize,
    context: usize,
    scratch: &mut Vec<crate::device::Buffer>,
) -> Result<Runner> {
    let mut g = Graph::new();
    let batch = BatchInputs::declare(&mut g, name, n, context, false);
    let params = decoder.frozen("");
    let hidden = decoder.forward_cached(&mut g, &params, &batch, KvCache { positions: context })?;
    if n == 1 {
        let logits = decoder.logits(&mut g, &params, hidden);
        g.output("logits", logits);
    }
    for (external, tensor) in g.externals().filter(|(external, _)| external.starts_with(&format!("{name}."))) {
        store.add(external, tensor.shape, tensor.dtype)?;
    }
    Runner::new(Plan::new(&g)?, store, scratch)
}

/// The next token of these logits.
fn choose(logits: &[f32], sampling: &Sampling, random: &mut SplitMix64) -> Result<u32> {
    if logits.iter().any(|x| !x.is_finite()) {
        let help = "the model's weights may be damaged; `potstill doctor` checks the device".into();
        return Err(Error::NotFinite { what: "a logit".into(), step: 0, help });
    }
    // Ties go to the lower id, so that every device gives the same text.
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let better = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if sampling.temperature <= 0.0 {
        return order.into_iter().min_by(|a, b| better(a, b)).ok_or_else(|| Error::internal("no logits"));
    }
    order.sort_unstable_by(better);
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let top = logits[order[0] as usize] as f64;
    let mut weights: Vec<f64> =
        order.iter().map(|&t| ((logits[t as usize] as f64 - top) / sampling.temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut mass = 0.0;
    let nucleus = weights.iter().position(|w| {
        mass += w / total;
        mass >= sampling.top_p
    });
    if let Some(last) = nucleus {
        weights.truncate(last + 1);
    }
    let kept: f64 = weights.iter().sum();
    let mut left = random.uniform() * kept;
    for (weight, &token) in weights.iter().zip(&order) {
        left -= weight;
        if left < 0.0 {
            return Ok(token);
        }
    }
    Ok(order[weights.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_distribution_and_respect_the_cuts() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
        let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        let (mut random, n) = (SplitMix64::new(1), 10_000);
        let mut counts = [0; 4];
        for _ in 0..n {
            counts[choose(&logits, &sampling, &mut random).unwrap() as usize] += 1;
        }
        for (count, p) in counts.iter().zip([0.5, 0.3, 0.15, 0.05]) {
            let sigma = (n as f64 * p * (1.0 - p)).sqrt();
            assert!((*count as f64 - n as f64 * p).abs() < 4.0 * sigma, "{counts:?}");
        }
        for cut in [Sampling { top_k: 2, ..sampling.clone() }, Sampling { top_p: 0.75, ..sampling }] {
            assert!((0..1000).all(|_| choose(&logits, &cut, &mut random).unwrap() < 2));
        }
        assert_eq!(choose(&[1.0, 2.0, 2.0], &Sampling::default(), &mut random).unwrap(), 1);
    }
}
