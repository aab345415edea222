//! The files of the result's tokenizer.

use super::config::{ChatTemplate, MergeConfig};
use super::model::Model;
use super::vocabulary::Vocabulary;
use crate::formats::{ModelFolder, write_atomically, write_json};
use crate::platform::fs;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// What of a model's folder belongs to its tokenizer.
const FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// Writes the tokenizer and the chat template of the result.
pub(super) fn write(
    config: &MergeConfig,
    models: &[Model],
    donor: usize,
    vocabulary: Option<&Vocabulary>,
    out: &Path,
) -> Result<()> {
    let donor = &models[vocabulary.map_or(donor, |vocabulary| vocabulary.donor)];
    match vocabulary.and_then(|vocabulary| vocabulary.made.as_ref()) {
        Some(made) => made.save(out)?,
        None => copy(&donor.folder, out)?,
    }
    let template = match &config.chat_template {
        None => return Ok(()),
        Some(ChatTemplate::Text(text)) => Some(text.clone()),
        Some(ChatTemplate::Auto) => commonest(models),
    };
    template.map_or(Ok(()), |template| set_template(out, &template))
}

/// Writes a model's tokenizer.
pub(super) fn copy(donor: &ModelFolder, out: &Path) -> Result<()> {
    match donor.gguf() {
        Some(header) if !header.metadata.contains_key("tokenizer.ggml.tokens") => Ok(()),
        Some(_) => donor.tokenizer()?.save(out),
        None => {
            for file in FILES.iter().map(|name| donor.path().join(name)).filter(|path| fs::is_file(path)) {
                let bytes = fs::read(&file).map_err(Error::io("read", &file))?;
                let path = out.join(file.file_name().unwrap_or_default());
                write_atomically(&path, |file| file.write_all(&bytes).map_err(Error::io("write", &path)))?;
            }
            Ok(())
        }
    }
}

/// The template that most models have; of equally many the first model's.
fn commonest(models: &[Model]) -> Option<String> {
    let template = |model: &Model| model.folder.tokenizer().ok()?.chat_template().map(str::to_string);
    let templates: Vec<String> = models.iter().filter_map(template).collect();
    let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
    templates.iter().for_each(|template| *counts.entry(template).or_default() += 1);
    let most = counts.values().max().copied()?;
    templates.iter().find(|template| counts[template] == most).cloned()
}

fn set_template(out: &Path, template: &str) -> Result<()> {
    let path = out.join("tokenizer_config.json");
    let mut json = crate::formats::read_json_if_present(&path)?.unwrap_or(json!({}));
    if let Value::Object(map) = &mut json {
        map.insert("chat_template".into(), json!(template));
    }
    write_json(&path, &json)?;
    let own = out.join("chat_template.jinja");
    match fs::exists(&own) {
        true => fs::remove_file(&own).map_err(Error::io("remove", &own)),
        false => Ok(()),
    }
}
