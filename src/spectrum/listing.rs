//! The modules of a model that have a weight, by type, and the choice among types.

use crate::formats::Tensors;
use crate::models;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// A module with a weight of one or two dimensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name in the trained model: `model.layers.3.mlp.down_proj`.
    pub name: String,
    /// Spectrum's type: the name after its first number, `mlp.down_proj`; the whole name where there is none.
    pub kind: String,
    /// Its weight's name in the files.
    pub tensor: String,
    /// Rows of the weight; 1 for a vector.
    pub rows: usize,
    /// Columns of the weight.
    pub columns: usize,
}

/// Which types of module are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Layers {
    /// Those of the linear layers inside the blocks: attention and feed-forward.
    #[default]
    Linear,
    /// All, with embeddings, head and norms.
    All,
    /// By name: a whole type (`mlp.down_proj`) or some of its parts in order (`mlp`, `down_proj`).
    Named(Vec<String>),
}

/// Every module with a weight of one or two dimensions, by type and then in the order of the blocks. With the model's
/// `config`, names that a file of the base model lacks the prefix of (GPT-2's `h.0.`) get it, as trainers have it.
///
/// Errors where a weight has no values, or a name that no module has.
pub fn modules(tensors: &Tensors, config: Option<&Value>) -> Result<Vec<Module>> {
    let prefix = config.and_then(|config| missing_prefix(tensors, config)).unwrap_or_default();
    let mut modules = Vec::new();
    for tensor in tensors.names() {
        let Some(name) = tensor.strip_suffix(".weight") else { continue };
        let (rows, columns) = match tensors.shape(tensor)? {
            [columns] => (1, *columns),
            [rows, columns] => (*rows, *columns),
            _ => continue,
        };
        let file = tensors.file(tensor)?;
        let complaint = || Error::file(file).field(format!("tensor `{}`", tensor.escape_debug()));
        if rows == 0 || columns == 0 {
            return complaint().expected("at least one value").found(format!("[{rows}, {columns}]")).err();
        }
        if !is_name(name) {
            return complaint().expected("a name of letters, digits and dots").found("other characters").err();
        }
        let name = if name == "lm_head" { name.to_owned() } else { format!("{prefix}{name}") };
        modules.push(Module { kind: kind(&name), name, tensor: tensor.to_owned(), rows, columns });
    }
    modules.sort_by_cached_key(|module| (order(&module.kind), natural(&module.name)));
    Ok(modules)
}

/// Tensors that are no vector and no module's matrix, such as experts stored in one piece: they get no score.
pub fn unscored(tensors: &Tensors) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for name in tensors.names() {
        let dimensions = tensors.shape(name)?.len();
        if dimensions > 2 || (dimensions == 2 && !name.ends_with(".weight")) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// The modules of the types asked for.
///
/// Errors for a name that no type answers to, all of them at once, and where nothing is left.
pub fn wanted(modules: Vec<Module>, layers: &Layers) -> Result<Vec<Module>> {
    layers.check(modules.iter().map(|module| module.kind.as_str()))?;
    let taken = |module: &Module| is_linear(module) || *layers != Layers::Linear;
    let wanted: Vec<Module> =
        modules.into_iter().filter(|module| taken(module) && layers.takes(&module.kind)).collect();
    if wanted.is_empty() {
        let complaint = Error::at("--layers").expected("at least one module");
        return complaint.found("none in this model").help("`all` takes every type").err();
    }
    Ok(wanted)
}

impl Layers {
    /// Refuses names that none of the types answers to, all at once.
    pub(super) fn check<'a>(&self, kinds: impl Iterator<Item = &'a str>) -> Result<()> {
        let Layers::Named(names) = self else { return Ok(()) };
        let kinds: BTreeSet<&str> = kinds.collect();
        let unknown = names.iter().filter(|name| !kinds.iter().any(|kind| answers(kind, name)));
        let problem = |name: &String| {
            let listed = kinds.iter().copied().collect::<Vec<_>>().join(", ");
            let near =
                Error::nearest(name, kinds.iter().flat_map(|kind| std::iter::once(*kind).chain(kind.split('.'))));
            let help = near.map_or("`all` takes every type".to_owned(), |near| format!("did you mean `{near}`?"));
            Error::at("--layers").expected(format!("types of {listed}")).found(format!("`{name}`")).help(help).error()
        };
        Error::all(unknown.map(problem).collect())
    }

    /// Whether a type is asked for by name, or all are.
    pub(super) fn takes(&self, kind: &str) -> bool {
        match self {
            Layers::Named(names) => names.iter().any(|name| answers(kind, name)),
            Layers::Linear | Layers::All => true,
        }
    }
}

/// A matrix inside a numbered block that is no table of embeddings.
fn is_linear(module: &Module) -> bool {
    module.rows > 1 && module.kind != module.name && !last(&module.kind).contains("embed")
}

/// Whether `name` is `kind` or a run of whole parts of it.
fn answers(kind: &str, name: &str) -> bool {
    !name.is_empty() && format!(".{kind}.").contains(&format!(".{name}."))
}

/// What follows the first number in a module's name.
pub(super) fn kind(name: &str) -> String {
    let mut parts = name.split('.');
    let numbered = parts.by_ref().any(is_number);
    let rest: Vec<&str> = parts.collect();
    if numbered && !rest.is_empty() { rest.join(".") } else { name.to_owned() }
}

/// Spectrum's order of types: by their first part, then by name.
pub(super) fn order(kind: &str) -> (String, String) {
    (kind.split('.').next().unwrap_or_default().to_owned(), kind.to_owned())
}

/// A name's parts, with numbers as numbers, so that block 10 follows block 9.
pub(super) fn natural(name: &str) -> Vec<(u64, String)> {
    let part = |part: &str| match part.parse() {
        Ok(number) if is_number(part) => (number, String::new()),
        _ => (u64::MAX, part.to_owned()),
    };
    name.split('.').map(part).collect()
}

/// The first number in a module's name: its block.
pub(super) fn block(name: &str) -> Option<u64> {
    name.split('.').find(|part| is_number(part))?.parse().ok()
}

/// Whether `name` can stand in a list of patterns as it is.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "._-".contains(c))
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

fn last(kind: &str) -> &str {
    kind.rsplit('.').next().unwrap_or(kind)
}

/// The prefix that the parameters of a known family have and no tensor of this file.
fn missing_prefix(tensors: &Tensors, config: &Value) -> Option<String> {
    let decoder = models::from_config(Path::new("config.json"), config).ok()?;
    let (base, _) = decoder.config.names.layers.split_once('.')?;
    let prefix = format!("{base}.");
    (!tensors.names().any(|name| name.starts_with(&prefix))).then_some(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_what_follows_the_first_number() {
        for (name, expected) in [
            ("model.layers.10.mlp.down_proj", "mlp.down_proj"),
            ("model.layers.3.mlp.experts.7.w1", "mlp.experts.7.w1"),
            ("transformer.h.0.attn.c_attn", "attn.c_attn"),
            ("lm_head", "lm_head"),
            ("model.norm", "model.norm"),
            ("blocks.4", "blocks.4"),
        ] {
            assert_eq!(kind(name), expected);
        }
    }

    #[test]
    fn names_answer_by_whole_parts() {
        for name in ["mlp.down_proj", "mlp", "down_proj"] {
            assert!(answers("mlp.down_proj", name), "{name}");
        }
        for name in ["", "down", "mlp.down", "mlp.down_proj.x", "proj"] {
            assert!(!answers("mlp.down_proj", name), "{name}");
        }
    }

    #[test]
    fn blocks_are_ordered_as_numbers() {
        let mut names = ["m.10.a", "m.9.a", "m.100.a"];
        names.sort_by_cached_key(|name| natural(name));
        assert_eq!(names, ["m.9.a", "m.10.a", "m.100.a"]);
    }
}
