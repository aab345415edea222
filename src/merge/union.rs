//! A tokenizer that has the tokens of several.
//!
//! The base's ids and merges stay as they are. Ordinary tokens of another are appended with the merges that make them,
//! behind the base's own, so that text is still cut into words before it is cut into tokens; mergekit appends them as
//! added tokens, which are cut out of words wherever they occur.

use super::model::Model;
use crate::formats::Tokenizer;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The tokenizer of `models[base]` with what it lacks of the `others`' tokens and of those `named`; none where it lacks
/// nothing. `rows` are how many tokens each model can embed.
///
/// Errors: ordinary tokens of another kind of tokenizer.
pub(super) fn extended(
    models: &[Model],
    tokenizers: &[Tokenizer],
    rows: &[usize],
    base: usize,
    others: &[usize],
    named: &[&str],
) -> Result<Option<Tokenizer>> {
    let own = tokenizers[base].json()?;
    let mut union = Union::new(&tokenizers[base], &own);
    for other in others {
        let json = tokenizers[*other].json()?;
        let ordinary = ordinary(&json, rows[*other]);
        let new: Vec<&str> = ordinary.into_iter().filter(|token| !union.has(token)).collect();
        if !new.is_empty() && (kind(&json) != kind(&own) || !kind(&own).starts_with("BPE")) {
            let complaint = models[*other].reference.complaint();
            let found = format!("{} tokens that it lacks, of a {} tokenizer", new.len(), kind(&json));
            let expected = format!("the tokens of `{}`, or others of a BPE tokenizer like it", models[base].reference);
            let help = "use `tokenizer_source: base`, or name the model whose tokenizer to use";
            return complaint.expected(format!("{expected} ({})", kind(&own))).found(found).help(help).err();
        }
        union.ordinary(&new, tokenizers[*other].merges(), &json);
        union.added(&json, rows[*other]);
    }
    for token in named {
        union.named(token);
    }
    union.finish(&models[base])
}

/// The kind of a tokenizer; tokens of different kinds spell the same text differently.
fn kind(json: &Value) -> String {
    let spelt = |key: &str| json[key].to_string().contains("\"ByteLevel\"");
    let bytes = if spelt("pre_tokenizer") || spelt("decoder") { "byte-level" } else { "character" };
    format!("{} {bytes}", json["model"]["type"].as_str().unwrap_or("unknown"))
}

/// Tokens of the vocabulary that are no added ones and have an id below `rows`, by their ids.
fn ordinary(json: &Value, rows: usize) -> Vec<&str> {
    let added: BTreeSet<&str> = added(json).into_iter().filter_map(|token| token["content"].as_str()).collect();
    let mut tokens: Vec<(u64, &str)> = match &json["model"]["vocab"] {
        Value::Object(map) => map.iter().filter_map(|(token, id)| Some((id.as_u64()?, token.as_str()))).collect(),
        Value::Array(list) => (0..).zip(list).filter_map(|(id, item)| Some((id, item[0].as_str()?))).collect(),
        _ => Vec::new(),
    };
    tokens.retain(|(id, token)| *id < rows as u64 && !added.contains(token));
    tokens.sort();
    tokens.into_iter().map(|(_, token)| token).collect()
}

/// The added tokens by their ids.
fn added(json: &Value) -> Vec<&Value> {
    let mut tokens: Vec<&Value> = json["added_tokens"].as_array().into_iter().flatten().collect();
    tokens.sort_by_key(|token| token["id"].as_u64());
    tokens
}

struct Union<'a> {
    base: &'a Tokenizer,
    json: Value,
    /// New tokens, and all that are added ones, with their ids.
    ids: BTreeMap<String, usize>,
    /// The added tokens' definitions.
    definitions: Vec<Value>,
    defined: BTreeSet<String>,
    merges: Vec<(String, String)>,
    next: usize,
    changed: bool,
}

impl<'a> Union<'a> {
    fn new(base: &'a Tokenizer, json: &Value) -> Union<'a> {
        let mut union = Union {
            base,
            json: json.clone(),
            ids: BTreeMap::new(),
            definitions: Vec::new(),
            defined: BTreeSet::new(),
            merges: Vec::new(),
            next: base.vocab_size(),
            changed: false,
        };
        for token in added(json) {
            let name = token["content"].as_str().unwrap_or_default();
            union.ids.extend(base.token_to_id(name).map(|id| (name.to_string(), id as usize)));
            union.defined.insert(name.to_string());
            union.definitions.push(token.clone());
        }
        union
    }

    fn id(&self, token: &str) -> Option<usize> {
        self.ids.get(token).copied().or_else(|| self.base.token_to_id(token).map(|id| id as usize))
    }

    fn has(&self, token: &str) -> bool {
        self.id(token).is_some()
    }

    fn add(&mut self, token: &str) -> usize {
        self.changed = true;
        if let Some(id) = self.id(token) {
            return id;
        }
        self.ids.insert(token.to_string(), self.next);
        self.next += 1;
        self.next - 1
    }

    /// Appends ordinary tokens and the merges that make them.
    fn ordinary(&mut self, new: &[&str], merges: &[(String, String)], json: &Value) {
        new.iter().for_each(|token| _ = self.add(token));
        let new: BTreeSet<&str> = new.iter().copied().collect();
        let prefix = json["model"]["continuing_subword_prefix"].as_str().unwrap_or("");
        let makes = |(left, right): &&(String, String)| {
            right.strip_prefix(prefix).is_some_and(|right| new.contains(format!("{left}{right}").as_str()))
        };
        // A merge may be of tokens that the other cannot embed.
        let known: Vec<_> = merges.iter().filter(makes).filter(|(l, r)| self.has(l) && self.has(r)).cloned().collect();
        self.merges.extend(known);
    }

    /// Appends added tokens; of several definitions the first counts.
    fn added(&mut self, json: &Value, rows: usize) {
        for token in added(json) {
            let name = token["content"].as_str().unwrap_or_default();
            let embedded = token["id"].as_u64().is_some_and(|id| id < rows as u64);
            if embedded && self.defined.insert(name.to_string()) {
                let mut definition = token.clone();
                definition["id"] = json!(self.add(name));
                self.definitions.push(definition);
            }
        }
    }

    /// Appends a token that no tokenizer defines.
    fn named(&mut self, token: &str) {
        if !self.has(token) {
            let id = self.add(token);
            self.definitions.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": false
            }));
        }
    }

    fn finish(mut self, model: &Model) -> Result<Option<Tokenizer>> {
        if !self.changed {
            return Ok(None);
        }
        // In the vocabulary, ids are what they are told to be; added tokens outside of it are numbered by their order.
        if let Some(vocab) = self.json["model"]["vocab"].as_object_mut() {
            self.ids.iter().for_each(|(token, id)| _ = vocab.insert(token.clone(), json!(id)));
        }
        let old = self.base.merges().iter().cloned();
        if !self.merges.is_empty() {
            let merges: Vec<Value> = old.chain(self.merges).map(|(left, right)| json!([left, right])).collect();
            self.json["model"]["merges"] = Value::Array(merges);
        }
        let config = self.base.config().clone();
        self.json["added_tokens"] = Value::Array(self.definitions.clone());
        let bytes = serde_json::to_vec(&self.json).map_err(|e| Error::internal(e.to_string()))?;
        let place = model.folder.path().join("tokenizer.json");
        let made = Tokenizer::from_json(&place, bytes, with_definitions(config, &self.definitions))?;
        let odd = self.ids.iter().find(|(token, id)| made.token_to_id(token) != u32::try_from(**id).ok());
        match odd {
            None => Ok(Some(made)),
            Some((token, id)) => {
                let complaint = model.reference.complaint().expected(format!("token {token:?} with id {id}"));
                let complaint = complaint.found(format!("{:?}", made.token_to_id(token)));
                complaint.help("this tokenizer cannot be extended: use another's").err()
            }
        }
    }
}

/// tokenizer_config.json repeats the added tokens.
fn with_definitions(mut config: Map<String, Value>, definitions: &[Value]) -> Map<String, Value> {
    if let Some(Value::Object(decoder)) = config.get_mut("added_tokens_decoder") {
        for token in definitions {
            let mut definition = token.clone();
            if let (Some(id), Some(map)) = (token["id"].as_u64(), definition.as_object_mut()) {
                map.remove("id");
                decoder.entry(id.to_string()).or_insert(definition);
            }
        }
    }
    config
}
