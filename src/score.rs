//! Log-probabilities of given texts under a model: what evaluation harnesses and comparisons need.

use crate::data::packing::{Batch, IGNORE, PADDING};
use crate::data::tokens::NO_ROUTE;
use crate::device::Device;
use crate::distill::batch::{write_batch, write_weights};
use crate::distill::step::provide;
use crate::formats::ModelFolder;
use crate::graph::{DType, Graph, Plan, Runner, Store};
use crate::losses::{Head, Record, capture_head, chunk_rows};
use crate::models::{self, Decoder, FrozenWeights, load_parameters};
use crate::nn::BatchInputs;
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Rows of the smallest plan; longer texts get plans of the next power of two.
const SMALLEST: usize = 256;

/// One text's scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Log-probability of each token given those before it, nats; the first is `None`.
    pub log_probs: Vec<Option<f32>>,
    /// For each position the likeliest tokens and their log-probabilities, best first; empty unless asked for, and
    /// for the first position.
    pub top: Vec<Vec<(u32, f32)>>,
}

/// A model ready to score texts.
pub struct Scorer {
    decoder: Decoder,
    device: Device,
    weights: Store,
    vocabulary: usize,
    top: usize,
    plans: BTreeMap<usize, (Store, Runner)>,
}

impl Scorer {
    /// Loads a model. Tokens from `vocabulary` on (padding of the head) count as impossible. With `top` > 0 the
    /// likeliest tokens are reported too.
    pub fn new(device: &Device, folder: &ModelFolder, vocabulary: usize, top: usize) -> Result<Scorer> {
        let decoder = models::from_config(folder.path(), &folder.config)?;
        let decoder = decoder.with_frozen(FrozenWeights::Stored, &folder.tensors)?;
        let vocabulary = vocabulary.min(decoder.config.vocab_size);
        if top > vocabulary {
            let place = Error::at("--top").expected(format!("at most {vocabulary}, the vocabulary"));
            return place.found(top).help("ask for fewer").err();
        }
        let mut weights = Store::new(device);
        decoder.allocate(&mut weights, "", 1)?;
        load_parameters(&decoder, &weights, "", &folder.tensors, None)?;
        Ok(Scorer { decoder, device: device.clone(), weights, vocabulary, top, plans: BTreeMap::new() })
    }

    /// Scores one text of at least one token. Its length is bounded by the model's positions.
    pub fn score(&mut self, tokens: &[u32]) -> Result<Scored> {
        self.check(tokens)?;
        let rows = tokens.len().next_power_of_two().max(SMALLEST);
        if !self.plans.contains_key(&rows) {
            let plan = self.plan(rows)?;
            self.plans.insert(rows, plan);
        }
        let top = self.top;
        let (store, runner) = self.plans.get_mut(&rows).ok_or_else(|| Error::internal("a plan just made"))?;
        let batch = padded(tokens, rows);
        write_batch(store, "score", &batch)?;
        write_weights(store, "score", &batch, 1.0)?;
        runner.run()?;
        let nll = pollster::block_on(runner.read_f32("nll"))?;
        let positions = tokens.len() - 1;
        if nll[..positions].iter().any(|x| !x.is_finite()) {
            let found = "a number that is not finite";
            let help = "the model computes no probabilities: check its weights, and the device with `potstill doctor`";
            return Error::at("a text").field("log-probabilities").expected("numbers").found(found).help(help).err();
        }
        let log_probs = std::iter::once(None).chain(nll[..positions].iter().map(|nll| Some(-nll))).collect();
        let mut best = Vec::new();
        if top > 0 {
            let ids = pollster::block_on(runner.read_u32("ids"))?;
            let values = pollster::block_on(runner.read_f32("log_probs"))?;
            best.push(Vec::new());
            let pairs: Vec<(u32, f32)> = ids.into_iter().zip(values).collect();
            best.extend(pairs.chunks(top).take(positions).map(<[_]>::to_vec));
        }
        Ok(Scored { log_probs, top: best })
    }

    fn check(&self, tokens: &[u32]) -> Result<()> {
        let longest = self.decoder.config.max_position_embeddings;
        let place = Error::at("a text");
        if tokens.is_empty() {
            return place.expected("at least one token").found("none").help("leave out empty texts").err();
        }
        if tokens.len() > longest {
            let found = format!("{} tokens", tokens.len());
            let help = "cut it into windows";
            return place
                .expected(format!("at most {longest} tokens, the model's positions"))
                .found(found)
                .help(help)
                .err();
        }
        match tokens.iter().find(|&&token| token as usize >= self.vocabulary) {
            None => Ok(()),
            Some(token) => {
                let place = place.expected(format!("tokens below {}", self.vocabulary)).found(token);
                place.help("tokenise the text with this model's tokenizer").err()
            }
        }
    }

    /// A plan for texts of up to `rows` tokens, over the shared weights.
    fn plan(&self, rows: usize) -> Result<(Store, Runner)> {
        let mut g = Graph::new();
        // Padding rows are at position 0.
        let context = rows.min(self.decoder.config.max_position_embeddings);
        let batch = BatchInputs::declare(&mut g, "score", rows, context, false);
        let params = self.decoder.frozen("");
        let hidden = self.decoder.forward(&mut g, &params, &batch, false)?;
        let weight = [self.decoder.head_weight(&mut g, &params)];
        let head = Head { weight: &weight, vocab: self.vocabulary, softcap: self.decoder.config.logit_softcap };
        let labels = g.external("score.labels", [rows], DType::U32);
        let weights = g.external("score.weights", [rows], DType::F32);
        let record = Record::TopK { k: self.top.max(1), temperatures: &[] };
        let chunk = chunk_rows(self.decoder.config.vocab_size, self.device.caps());
        let captured = capture_head(&mut g, hidden, &head, labels, weights, record, chunk)?;
        g.output("nll", captured.nll);
        if let Some(log_probs) = captured.log_probs.filter(|_| self.top > 0) {
            g.output("ids", captured.ids);
            g.output("log_probs", log_probs);
        }
        let tables: Vec<String> = self.decoder.rope_tables("").collect();
        let mut store = self.weights.share(|name| tables.iter().all(|table| table != name));
        self.decoder.allocate_rope(&mut store, "", context)?;
        provide(&mut store, &g)?;
        let runner = Runner::new(Plan::new(&g)?, &store, &mut Vec::new())?;
        Ok((store, runner))
    }
}

/// One text as a batch of `rows` rows; the rows behind it see only themselves.
fn padded(tokens: &[u32], rows: usize) -> Batch {
    let n = tokens.len();
    let row = |i: usize, inside: u32, outside: u32| if i < n { inside } else { outside };
    let number = |i: usize| i as u32;
    Batch {
        tokens: (0..rows).map(|i| tokens.get(i).copied().unwrap_or(0)).collect(),
        positions: (0..rows).map(|i| row(i, number(i), 0)).collect(),
        labels: (0..rows).map(|i| tokens.get(i + 1).copied().unwrap_or(IGNORE)).collect(),
        query_range: (0..rows).map(|i| [row(i, 0, number(i)), number(i) + 1]).collect(),
        key_range: (0..rows).map(|i| [number(i), row(i, n as u32, number(i) + 1)]).collect(),
        row_id: vec![PADDING; rows],
        route: vec![NO_ROUTE; rows],
        valid: n - 1,
        valid_bytes: None,
    }
}
