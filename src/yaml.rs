//! Reading a tree of YAML values strictly: every value knows its file and key path, so that each error names them.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::Complaint;
use crate::{Error, Result};

/// The names a key's value may have, each with what it means: one table for reading, writing and messages.
pub(crate) type Names<T> = &'static [(&'static str, T)];

/// A YAML text as a tree; `file` stands for it in messages.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn read_yaml(text: &str, file: &Path) -> Result<Value> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| not_yaml(file, &error))
}

/// In a browser recipes are objects: of YAML, JSON is read, which saves 100 kB of the module.
#[cfg(target_family = "wasm")]
pub(crate) fn read_yaml(text: &str, file: &Path) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| Error::file(file).expected("JSON").found(error).error())
}

/// The same for a text of several documents, divided by `---`.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn read_documents(text: &str, file: &Path) -> Result<Vec<Value>> {
    serde_saphyr::from_multiple_with_options(text, options()).map_err(|error| not_yaml(file, &error))
}

/// In a browser a list of documents, or one.
#[cfg(target_family = "wasm")]
pub(crate) fn read_documents(text: &str, file: &Path) -> Result<Vec<Value>> {
    Ok(match read_yaml(text, file)? {
        Value::Array(documents) => documents,
        document => vec![document],
    })
}

/// A tree as YAML; in a browser as JSON, which is YAML.
pub(crate) fn to_yaml(tree: &Value) -> Result<String> {
    #[cfg(not(target_family = "wasm"))]
    let text = serde_saphyr::to_string(tree);
    #[cfg(target_family = "wasm")]
    let text = serde_json::to_string_pretty(tree);
    text.map_err(|error| Error::internal(error.to_string()))
}

#[cfg(not(target_family = "wasm"))]
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! { strict_booleans: true, with_snippet: false }
}

/// The reader's message without its advice to programmers on how to allow what is refused here.
#[cfg(not(target_family = "wasm"))]
fn not_yaml(file: &Path, error: &serde_saphyr::Error) -> Error {
    let message = error
        .to_string()
        .replace(", set DuplicateKeyPolicy in Options if acceptable", "")
        .replace(" rejected by the configured policy", "");
    Error::file(file).expected("YAML").found(message).error()
}

/// One value and where it stands.
#[derive(Clone)]
pub(crate) struct Node<'a> {
    pub file: &'a Path,
    /// Like `training_args.learning_rate` or `loss_functions[0].weight`; empty for the whole file.
    pub path: String,
    pub value: &'a Value,
}

/// One mapping whose keys have been checked.
pub(crate) struct Fields<'a> {
    node: Node<'a>,
    map: &'a Map<String, Value>,
}

impl<'a> Node<'a> {
    pub fn complaint(&self) -> Complaint {
        place(self.file, &self.path)
    }

    pub fn wrong<T>(&self, expected: &str) -> Result<T> {
        let complaint = self.complaint().expected(expected).found(describe(self.value));
        match self.value.as_str().is_some_and(|text| text.parse::<f64>().is_ok()) && expected.contains("number") {
            true => complaint.help("write it without quotes").err(),
            false => complaint.err(),
        }
    }

    pub fn text(&self) -> Result<String> {
        match self.value.as_str() {
            Some("") => self.wrong("some text"),
            Some(text) => Ok(text.to_string()),
            None => self.wrong("text"),
        }
    }

    pub fn boolean(&self) -> Result<bool> {
        self.value.as_bool().map_or_else(|| self.wrong("true or false"), Ok)
    }

    pub fn number(&self) -> Result<f64> {
        self.value.as_f64().map_or_else(|| self.wrong("a number"), Ok)
    }

    pub fn integer(&self) -> Result<u64> {
        self.value.as_u64().map_or_else(|| self.wrong("a whole number, 0 or more"), Ok)
    }

    pub fn count(&self) -> Result<usize> {
        usize::try_from(self.integer()?).or_else(|_| self.wrong("a number that fits this machine"))
    }

    /// One of `names`.
    pub fn choice<T: Copy>(&self, names: Names<T>) -> Result<T> {
        let text = self.value.as_str();
        if let Some((_, value)) = names.iter().find(|(name, _)| Some(*name) == text) {
            return Ok(*value);
        }
        let known = || names.iter().map(|(name, _)| *name);
        let expected = format!("one of {}", known().collect::<Vec<_>>().join(", "));
        let complaint = self.complaint().expected(expected).found(describe(self.value));
        match text.and_then(|text| Error::nearest(text, known())) {
            Some(near) => complaint.help(format!("did you mean `{near}`?")).err(),
            None => complaint.err(),
        }
    }

    /// The items of a list, which has at least one.
    pub fn list<T>(&self, read: impl Fn(Node<'a>) -> Result<T>) -> Result<Vec<T>> {
        let Some(items) = self.value.as_array().filter(|items| !items.is_empty()) else {
            return self.wrong("a list of at least one item");
        };
        let node = |(i, value)| Node { file: self.file, path: format!("{}[{i}]", self.path), value };
        let mut wrong = Vec::new();
        let read = items.iter().enumerate().map(node).filter_map(|node| keep(&mut wrong, read(node))).collect();
        Error::all(wrong)?;
        Ok(read)
    }

    /// A list, or one item without brackets.
    pub fn one_or_more<T>(&self, read: impl Fn(Node<'a>) -> Result<T>) -> Result<Vec<T>> {
        if self.value.is_array() { self.list(read) } else { Ok(vec![read(self.clone())?]) }
    }

    /// A mapping from any names to numbers, in its order.
    pub fn numbers_by_name(&self) -> Result<Vec<(String, f64)>> {
        let Some(map) = self.value.as_object() else { return self.wrong("a mapping of names to numbers") };
        let node = |(key, value): (&'a String, &'a Value)| {
            let node = Node { file: self.file, path: join(&self.path, key), value };
            Ok((key.clone(), node.number()?))
        };
        let mut wrong = Vec::new();
        let read = map.iter().map(node).filter_map(|pair| keep(&mut wrong, pair)).collect();
        Error::all(wrong)?;
        Ok(read)
    }

    /// A mapping that has none but the `known` keys. `foreign` are keys that another program reads there.
    pub fn fields(self, known: &[&str], foreign: &[&str]) -> Result<Fields<'a>> {
        let Some(map) = self.value.as_object() else { return self.wrong("a mapping") };
        let unknown = map.keys().filter(|key| !known.contains(&key.as_str()));
        let wrong: Vec<Error> = unknown.map(|key| self.unknown(key, known, foreign).error()).collect();
        Error::all(wrong)?;
        Ok(Fields { node: self, map })
    }

    fn unknown(&self, key: &str, known: &[&str], foreign: &[&str]) -> Complaint {
        let complaint = place(self.file, &join(&self.path, key))
            .expected(format!("one of the keys {}", known.join(", ")))
            .found("an unknown key");
        if foreign.contains(&key) {
            return complaint.help("DistillKit reads this key, potstill does not: remove it");
        }
        match Error::nearest(key, known.iter().copied()) {
            Some(near) => complaint.help(format!("did you mean `{near}`?")),
            None => complaint.help("remove it"),
        }
    }
}

/// The value, or `None` with its error put to the others that are `wrong`.
pub(crate) fn keep<T>(wrong: &mut Vec<Error>, read: Result<T>) -> Option<T> {
    read.map_err(|error| wrong.push(error)).ok()
}

impl<'a> Fields<'a> {
    /// The value under `key`; `null` is absent.
    pub fn node(&self, key: &str) -> Option<Node<'a>> {
        let value = self.map.get(key).filter(|value| !value.is_null())?;
        Some(Node { file: self.node.file, path: join(&self.node.path, key), value })
    }

    pub fn complaint(&self, key: &str) -> Complaint {
        place(self.node.file, &join(&self.node.path, key))
    }

    pub fn maybe<T>(&self, key: &str, read: impl FnOnce(&Node<'a>) -> Result<T>) -> Result<Option<T>> {
        self.node(key).map(|node| read(&node)).transpose()
    }

    pub fn or<T>(&self, key: &str, default: T, read: impl FnOnce(&Node<'a>) -> Result<T>) -> Result<T> {
        Ok(self.maybe(key, read)?.unwrap_or(default))
    }

    pub fn need<T>(&self, key: &str, what: &str, read: impl FnOnce(&Node<'a>) -> Result<T>) -> Result<T> {
        match self.node(key) {
            Some(node) => read(&node),
            None => self.complaint(key).expected(what).found("nothing").help(format!("add `{key}`")).err(),
        }
    }
}

/// Reads one mapping's keys and keeps what is wrong with each, to say it all at once.
pub(crate) struct Gather<'f, 'a> {
    fields: &'f Fields<'a>,
    wrong: Vec<Error>,
}

impl<'f, 'a> Gather<'f, 'a> {
    pub fn new(fields: &'f Fields<'a>) -> Self {
        Gather { fields, wrong: Vec::new() }
    }

    pub fn has(&self, key: &str) -> bool {
        self.fields.node(key).is_some()
    }

    /// The value under `key`, or `default` where there is none or a wrong one.
    pub fn or<T>(&mut self, key: &str, default: T, read: impl FnOnce(&Node<'a>) -> Result<T>) -> T {
        self.maybe(key, read).unwrap_or(default)
    }

    /// The value under `key`, none where it is wrong.
    pub fn maybe<T>(&mut self, key: &str, read: impl FnOnce(&Node<'a>) -> Result<T>) -> Option<T> {
        keep(&mut self.wrong, self.fields.maybe(key, read)).flatten()
    }

    pub fn complaint(&self, key: &str) -> Complaint {
        self.fields.complaint(key)
    }

    pub fn add(&mut self, complaint: Complaint) {
        self.wrong.push(complaint.error());
    }

    /// How many problems there are so far.
    pub fn problems(&self) -> usize {
        self.wrong.len()
    }

    /// Everything found wrong. What was read counts only without it.
    pub fn all(self) -> Result<()> {
        Error::all(self.wrong)
    }
}

fn place(file: &Path, path: &str) -> Complaint {
    let complaint = Error::file(file);
    if path.is_empty() { complaint } else { complaint.field(format!("`{path}`")) }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_string() } else { format!("{path}.{key}") }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_string(),
        Value::Bool(flag) => format!("`{flag}`"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) if text.chars().count() > 60 => {
            format!("the text {:?}...", text.chars().take(60).collect::<String>())
        }
        Value::String(text) => format!("the text {text:?}"),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "a mapping".to_string(),
    }
}
