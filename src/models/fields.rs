//! Typed access to a `config.json`, with errors that name the file and the field.

use crate::nn::Activation;
use crate::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The fields of one object of a `config.json`.
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
        match self.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()) {
            Some(n) if n > 0 => Ok(n as usize),
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

    /// An integer from 0 on, or `default` where the field is absent.
    pub fn index_or(&self, name: &str, default: usize) -> Result<usize> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) => Ok(n),
                None => self.wrong(name, "an integer, 0 or more"),
            },
        }
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
            Some(x) if x as f32 > 0.0 && (x as f32).is_finite() => Ok(x),
            _ => self.wrong(name, "a positive number"),
        }
    }

    /// A positive number that `null` turns off, or `default` where the field is absent.
    pub fn positive_if(&self, name: &str, default: Option<f64>) -> Result<Option<f64>> {
        match self.value.get(name) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(_) => self.positive(name).map(Some),
        }
    }

    /// A positive integer that `null` turns off, or `default` where the field is absent.
    pub fn usize_if(&self, name: &str, default: Option<usize>) -> Result<Option<usize>> {
        match self.value.get(name) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(_) => self.usize(name).map(Some),
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

    /// An MLP's activation, or `default` where the field is absent.
    pub fn activation(&self, name: &str, default: &'a str) -> Result<Activation> {
        match self.str_or(name, default)? {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu { tanh: false }),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::Gelu { tanh: true }),
            _ => self.wrong(name, "one of `silu`, `gelu`, `gelu_new`, `gelu_pytorch_tanh`"),
        }
    }

    /// Which of `layers` layers attend within a sliding window: from `layer_types`, or where that is absent, `default`.
    pub fn sliding(&self, layers: usize, default: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
        let Some(types) = self.get("layer_types") else { return Ok((0..layers).map(default).collect()) };
        let slides = |kind: &Value| match kind.as_str()? {
            "sliding_attention" => Some(true),
            "full_attention" => Some(false),
            _ => None,
        };
        let types = types.as_array().filter(|types| types.len() == layers);
        match types.and_then(|types| types.iter().map(slides).collect()) {
            Some(sliding) => Ok(sliding),
            None => self.wrong("layer_types", &format!("{layers} times `sliding_attention` or `full_attention`")),
        }
    }

    /// Refuses an option that is switched on and that this crate does not implement.
    pub fn off(&self, names: &[&str]) -> Result<()> {
        match names.iter().find(|name| self.get(name).is_some_and(|value| value != &Value::Bool(false))) {
            None => Ok(()),
            Some(name) => self.wrong(name, "false (nothing else is implemented)"),
        }
    }

    /// Refuses a value this crate does not implement.
    pub fn refuse<T>(&self, name: &str, expected: &str) -> Result<T> {
        self.wrong(name, expected)
    }
}
