//! Scores by module, and Spectrum's two JSON layouts of them: `{module: {"snr": x, "type": t}}`, and sorted,
//! `{type: {module: x}}`.

use super::listing::{Layers, is_name, order};
use crate::formats::write_json;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// A module and its scores.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The module: `model.layers.3.mlp.down_proj`.
    pub name: String,
    /// Its type: `mlp.down_proj`.
    pub kind: String,
    /// Spectrum's score. Finite from a scan; Spectrum's own older files hold infinities, and NaN for what failed.
    pub snr: f64,
    /// The score by the Marchenko-Pastur edge; Spectrum's own files have none.
    pub mp_snr: Option<f64>,
}

/// The scores of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results {
    /// The modules, in the order of the model or file.
    pub modules: Vec<Scored>,
}

impl Results {
    /// Reads either layout, with the `Infinity` and `NaN` that Python writes.
    ///
    /// Errors name every entry that is no score.
    pub fn read(path: &Path) -> Result<Results> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        Results::parse(&text, path)
    }

    /// The same from text; `path` serves messages.
    pub fn parse(text: &str, path: &Path) -> Result<Results> {
        let complaint = || Error::file(path).help("scan the model instead");
        let wrong = |found: String| complaint().expected("scores of modules, as Spectrum writes them").found(found);
        let tree: Value = serde_json::from_str(&quoted(text)).map_err(|e| wrong(e.to_string()).error())?;
        let Value::Object(entries) = tree else { return wrong("no object".into()).err() };
        let plain = entries.values().any(|value| value.get("snr").is_some() || value.get("type").is_some());
        let (mut modules, mut problems) = (Vec::new(), Vec::new());
        for (key, value) in entries {
            let read = if plain { read_plain(key, &value) } else { read_sorted(key, &value) };
            match read {
                Ok(read) => modules.extend(read),
                Err((field, found)) => problems.push(complaint().field(field).expected(EXPECTED).found(found).error()),
            }
        }
        Error::all(problems)?;
        if modules.is_empty() {
            return wrong("none".into()).err();
        }
        Ok(Results { modules })
    }

    /// The modules of the types asked for by name; without names all.
    ///
    /// Errors for names that no type answers to.
    pub fn only(mut self, layers: &Layers) -> Result<Results> {
        layers.check(self.modules.iter().map(|module| module.kind.as_str()))?;
        self.modules.retain(|module| layers.takes(&module.kind));
        Ok(self)
    }

    /// Writes the first layout, with `mp_snr` beside `snr`, which Spectrum ignores.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut map = Map::new();
        for Scored { name, kind, snr, mp_snr } in &self.modules {
            let mut entry = json!({ "snr": snr, "type": kind });
            if let Some(mp_snr) = mp_snr {
                entry["mp_snr"] = json!(mp_snr);
            }
            map.insert(name.clone(), entry);
        }
        write_json(path, &Value::Object(map))
    }

    /// Writes the sorted layout: the best of each type first.
    pub fn write_sorted(&self, path: &Path) -> Result<()> {
        let sorted = |modules: Vec<&Scored>| {
            let modules = descending(modules, |module| module.snr);
            Value::Object(modules.into_iter().map(|module| (module.name.clone(), json!(module.snr))).collect())
        };
        write_json(path, &self.by_kind().into_iter().map(|(kind, modules)| (kind, sorted(modules))).collect())
    }

    /// The modules of each type, types in Spectrum's order.
    pub(super) fn by_kind(&self) -> Vec<(String, Vec<&Scored>)> {
        let mut kinds: Vec<(String, Vec<&Scored>)> = Vec::new();
        let mut at = std::collections::HashMap::new();
        for module in &self.modules {
            let index = *at.entry(&module.kind).or_insert(kinds.len());
            match kinds.get_mut(index) {
                Some((_, modules)) => modules.push(module),
                None => kinds.push((module.kind.clone(), vec![module])),
            }
        }
        kinds.sort_by_cached_key(|(kind, _)| order(kind));
        kinds
    }
}

/// Largest first, NaN last, equals in their order.
pub(super) fn descending<T>(mut items: Vec<T>, value: impl Fn(&T) -> f64) -> Vec<T> {
    items.sort_by(|a, b| {
        let (a, b) = (value(a), value(b));
        b.partial_cmp(&a).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
    });
    items
}

const EXPECTED: &str = "a score of a module, as Spectrum writes it";

/// A field of the file and what is wrong with it.
type Wrong = (String, String);

fn read_plain(name: String, value: &Value) -> Result<Vec<Scored>, Wrong> {
    let field = |key: &str| (format!("`{name}`.`{key}`"), value.get(key).map_or("nothing".into(), Value::to_string));
    let snr = value.get("snr").and_then(number).ok_or_else(|| field("snr"))?;
    let given = value.get("type").and_then(Value::as_str).ok_or_else(|| field("type"))?;
    let mp_snr = match value.get("mp_snr") {
        None => None,
        Some(value) => Some(number(value).ok_or_else(|| field("mp_snr"))?),
    };
    let kind = given.to_owned();
    sound(Scored { name, kind, snr, mp_snr }).map(|module| vec![module])
}

fn read_sorted(kind: String, value: &Value) -> Result<Vec<Scored>, Wrong> {
    let modules = value.as_object().ok_or_else(|| (format!("`{kind}`"), value.to_string()))?;
    let read = |(name, value): (&String, &Value)| {
        let snr = number(value).ok_or_else(|| (format!("`{kind}`.`{name}`"), value.to_string()))?;
        sound(Scored { name: name.clone(), kind: kind.clone(), snr, mp_snr: None })
    };
    modules.iter().map(read).collect()
}

/// Refuses names that would be something else in a list of patterns.
fn sound(module: Scored) -> Result<Scored, Wrong> {
    if let Some(name) = [&module.name, &module.kind].into_iter().find(|name| !is_name(name)) {
        return Err((format!("`{}`", module.name.escape_debug()), format!("the name {name:?}")));
    }
    Ok(module)
}

fn number(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some("Infinity") => Some(f64::INFINITY),
        Some("-Infinity") => Some(f64::NEG_INFINITY),
        Some("NaN") => Some(f64::NAN),
        _ => value.as_f64(),
    }
}

/// Python's JSON with its bare `Infinity`, `-Infinity` and `NaN` made strings.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    let mut rest = text;
    let (mut inside, mut escaped) = (false, false);
    while let Some(c) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| !inside && rest.starts_with(word));
        if let Some(word) = word {
            out.push_str(&format!("\"{word}\""));
            rest = &rest[word.len()..];
            continue;
        }
        inside = inside != (c == '"' && !escaped);
        escaped = inside && c == '\\' && !escaped;
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}
