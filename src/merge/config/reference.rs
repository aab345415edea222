//! How a configuration names a model.

use crate::platform::fs;
use crate::yaml::Node;
use crate::{Error, Result};
use std::fmt;
use std::path::Path;

/// A model, perhaps with a LoRA adapter on it: `path_or_id[@revision][+adapter]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// A path, a hub id with its revision, or another document's name.
    pub model: String,
    /// The adapter's folder.
    pub lora: Option<String>,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.model)?;
        self.lora.iter().try_for_each(|lora| write!(f, "+{lora}"))
    }
}

impl Reference {
    /// From mergekit's notation.
    pub fn parse(text: &str) -> Reference {
        let plain = || Reference { model: text.to_string(), lora: None };
        if fs::exists(Path::new(text)) {
            return plain();
        }
        match text.split_once('+') {
            Some((model, lora)) => Reference { model: model.to_string(), lora: Some(lora.to_string()) },
            None => plain(),
        }
    }
}

/// A text, or mergekit's mapping with `model` and `lora`.
pub(super) fn reference(node: &Node) -> Result<Reference> {
    if !node.value.is_object() {
        return node.text().map(|text| Reference::parse(&text));
    }
    let fields = node.clone().fields(&["model", "lora", "override_architecture"], &[])?;
    if fields.node("override_architecture").is_some() {
        let complaint = fields.complaint("override_architecture").expected("nothing").found("an architecture");
        return complaint.help("tensors are matched by their names, whatever the architecture: remove it").err();
    }
    let model = fields.need("model", "a model", part)?;
    Ok(Reference { model, lora: fields.maybe("lora", part)? })
}

/// `{path, revision}`, or a text.
fn part(node: &Node) -> Result<String> {
    if !node.value.is_object() {
        return node.text();
    }
    let fields = node.clone().fields(&["path", "revision"], &[])?;
    let path = fields.need("path", "a path or a hub id", Node::text)?;
    Ok(match fields.maybe("revision", Node::text)? {
        Some(revision) => format!("{path}@{revision}"),
        None => path,
    })
}

impl Reference {
    /// An error about this model.
    pub(in crate::merge) fn complaint(&self) -> crate::error::Complaint {
        Error::at(format!("model `{self}`"))
    }
}
