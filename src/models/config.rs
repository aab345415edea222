//! What the common decoder block needs to know about a model.

use crate::nn::rotary::Rope;
use crate::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A decoder-only transformer as the common block sees it. Field names are those of transformers.
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
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// Rotary positions.
    pub rope: Rope,
    /// Whether the LM head is the embedding.
    pub tie_word_embeddings: bool,
    /// Biases on the attention projections.
    pub attention_bias: bool,
    /// Biases on the MLP projections.
    pub mlp_bias: bool,
    /// Longest context the model was made for.
    pub max_position_embeddings: usize,
    /// The configuration as read: what is written into a model folder.
    pub source: Value,
}

/// Typed access to a `config.json`, with errors that name the file and the field.
pub(super) struct Fields<'a> {
    place: PathBuf,
    value: &'a Value,
}

impl<'a> Fields<'a> {
    pub fn new(place: &Path, value: &'a Value) -> Fields<'a> {
        Fields { place: place.to_owned(), value }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.value.get(name).filter(|value| !value.is_null())
    }

    fn wrong<T>(&self, name: &str, expected: &str) -> Result<T> {
        let found = self.get(name).map_or("nothing".to_owned(), |value| value.to_string());
        let help = "the folder may belong to another kind of model, or its config.json may be damaged";
        Error::file(&self.place).field(format!("`{name}`")).expected(expected).found(found).help(help).err()
    }

    /// A positive integer.
    pub fn usize(&self, name: &str) -> Result<usize> {
        match self.get(name).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()) {
            Some(n) if n > 0 && n < 1 << 32 => Ok(n),
            _ => self.wrong(name, "a positive integer"),
        }
    }

    /// A positive integer up to `most`: above it no model is, and the counts made of it could overflow.
    pub fn at_most(&self, name: &str, most: usize) -> Result<usize> {
        match self.usize(name)? {
            n if n <= most => Ok(n),
            _ => self.wrong(name, &format!("at most {most}")),
        }
    }

    /// A positive integer, or `default` where the field is absent.
    pub fn usize_or(&self, name: &str, default: usize) -> Result<usize> {
        if self.get(name).is_none() { Ok(default) } else { self.usize(name) }
    }

    /// A finite number, or `default` where the field is absent.
    pub fn f64_or(&self, name: &str, default: f64) -> Result<f64> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => value.as_f64().map_or_else(|| self.wrong(name, "a number"), Ok),
        }
    }

    /// A positive number.
    pub fn positive(&self, name: &str) -> Result<f64> {
        match self.get(name).and_then(Value::as_f64) {
            Some(x) if x > 0.0 => Ok(x),
            _ => self.wrong(name, "a positive number"),
        }
    }

    /// A positive number, or `default` where the field is absent.
    pub fn positive_or(&self, name: &str, default: f64) -> Result<f64> {
        if self.get(name).is_none() { Ok(default) } else { self.positive(name) }
    }

    /// true or false, or `default` where the field is absent.
    pub fn bool_or(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => value.as_bool().map_or_else(|| self.wrong(name, "true or false"), Ok),
        }
    }

    /// Text, or `default` where the field is absent.
    pub fn str_or(&self, name: &str, default: &'a str) -> Result<&'a str> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => value.as_str().map_or_else(|| self.wrong(name, "text"), Ok),
        }
    }

    /// A nested object, if present.
    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>> {
        match self.get(name) {
            None => Ok(None),
            Some(value) if value.is_object() => Ok(Some(Fields::new(&self.place, value))),
            Some(_) => self.wrong(name, "an object"),
        }
    }

    /// Refuses a value this crate does not implement.
    pub fn refuse<T>(&self, name: &str, expected: &str) -> Result<T> {
        self.wrong(name, expected)
    }
}
