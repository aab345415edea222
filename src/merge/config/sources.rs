//! `models`, `slices` and `modules`.

use super::learning::data;
use super::methods::MethodSpec;
use super::reference::reference;
use super::values::{Parameters, parameters};
use super::{Module, Slice, Source};
use crate::yaml::{Fields, Node, keep};
use crate::{Error, Result};
use std::ops::Range;

/// The keys one of which says what is merged.
pub(super) const FORMS: [&str; 3] = ["models", "slices", "modules"];

/// The modules of a document.
pub(super) fn modules(fields: &Fields, root: &Node, method: &'static MethodSpec) -> Result<Vec<Module>> {
    match exactly_one(fields, root, &FORMS)? {
        "modules" => {
            let node = fields.node("modules").ok_or_else(|| Error::internal("no modules"))?;
            let Some(map) = node.value.as_object().filter(|map| !map.is_empty()) else {
                return node.wrong("a mapping of modules");
            };
            let mut wrong = Vec::new();
            let mut modules = Vec::new();
            for (name, value) in map {
                let node = Node { file: node.file, path: format!("{}.{name}", node.path), value };
                modules.extend(keep(&mut wrong, module(&node, name, method)));
            }
            Error::all(wrong)?;
            Ok(modules)
        }
        _ => Ok(vec![Module { name: None, parameters: Parameters::new(), slices: slices(fields, method)? }]),
    }
}

fn exactly_one<'k>(fields: &Fields, node: &Node, keys: &[&'k str]) -> Result<&'k str> {
    let given: Vec<&str> = keys.iter().copied().filter(|key| fields.node(key).is_some()).collect();
    match given[..] {
        [one] => Ok(one),
        _ => {
            let found = if given.is_empty() { "none of them".to_string() } else { given.join(" and ") };
            let expected = format!("exactly one of the keys {}", keys.join(", "));
            node.complaint().expected(expected).found(found).err()
        }
    }
}

fn module(node: &Node, name: &str, method: &'static MethodSpec) -> Result<Module> {
    let fields = node.clone().fields(&["models", "slices", "parameters"], &[])?;
    exactly_one(&fields, node, &FORMS[..2])?;
    let own = fields.maybe("parameters", |node| parameters(node, method, false))?.unwrap_or_default();
    // mergekit's name for the only module of a model.
    let name = (name != "default").then(|| name.to_string());
    Ok(Module { name, parameters: own, slices: slices(&fields, method)? })
}

/// The slices, or one over everything in `models`.
fn slices(fields: &Fields, method: &'static MethodSpec) -> Result<Vec<Slice>> {
    if let Some(node) = fields.node("slices") {
        return node.list(|node| slice(&node, method));
    }
    let place = fields.complaint("models");
    let Some(node) = fields.node("models") else { return place.expected("models").found("none").err() };
    let sources = node.list(|node| source(&node, method, false))?;
    Ok(vec![Slice { place: node.path.clone(), sources, base_model: None, parameters: Parameters::new() }])
}

fn slice(node: &Node, method: &'static MethodSpec) -> Result<Slice> {
    let fields = node.clone().fields(&["sources", "base_model", "parameters"], &[])?;
    let mut wrong = Vec::new();
    let sources = fields.need("sources", "models and their layers", |node| node.list(|n| source(&n, method, true)));
    let sources = keep(&mut wrong, sources).unwrap_or_default();
    let base_model = keep(&mut wrong, fields.maybe("base_model", reference)).flatten();
    let own = fields.maybe("parameters", |node| parameters(node, method, false));
    let parameters = keep(&mut wrong, own).flatten().unwrap_or_default();
    let length = |source: &Source| source.layers.as_ref().map(Range::len);
    if let Some(odd) = sources.iter().find(|source| length(source) != length(&sources[0])) {
        let complaint = node.complaint().expected("layer ranges of one length in a slice");
        let found =
            format!("{:?} of `{}` and {:?} of `{}`", layers(&sources[0]), sources[0].model, layers(odd), odd.model);
        wrong.push(complaint.found(found).help("a range `[start, end]` ends before `end`").error());
    }
    Error::all(wrong)?;
    Ok(Slice { place: node.path.clone(), sources, base_model, parameters })
}

fn layers(source: &Source) -> Vec<usize> {
    source.layers.iter().flat_map(|range| [range.start, range.end]).collect()
}

fn source(node: &Node, method: &'static MethodSpec, ranged: bool) -> Result<Source> {
    let known: &[&str] = if ranged { &["model", "layer_range", "parameters"] } else { &["model", "parameters"] };
    let fields = node.clone().fields(known, &[])?;
    let mut wrong = Vec::new();
    let model = keep(&mut wrong, fields.need("model", "a model", reference));
    let layers = match ranged {
        true => keep(&mut wrong, fields.need("layer_range", "the layers `[start, end]`", layer_range)),
        false => None,
    };
    let (mut own, mut text) = (None, None);
    match method.learns() {
        true => text = keep(&mut wrong, fields.maybe("parameters", data)).flatten(),
        false => own = keep(&mut wrong, fields.maybe("parameters", |node| parameters(node, method, true))).flatten(),
    }
    Error::all(wrong)?;
    let model = model.ok_or_else(|| Error::internal("a source without its model"))?;
    let (parameters, data) = (own.unwrap_or_default(), text.unwrap_or_default());
    Ok(Source { place: node.path.clone(), model, layers, parameters, data })
}

fn layer_range(node: &Node) -> Result<Range<usize>> {
    let ends = node.list(|node| node.count())?;
    match ends[..] {
        [start, end] if start < end => Ok(start..end),
        _ => node.wrong("two layer numbers `[start, end]`, the first layer and the one after the last"),
    }
}
