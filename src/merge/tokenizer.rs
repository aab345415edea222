//! The result's tokenizer, and which rows of each model's embeddings belong to its tokens.

use super::config::{ChatTemplate, MergeConfig, TokenizerSource};
use super::model::{Model, Reader};
use super::names::is_token_table;
use crate::formats::{Tokenizer, write_atomically, write_json};
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

/// Where a row of the result's embedding comes from, for one model.
#[derive(Clone, Debug, PartialEq)]
enum Row {
    /// The mean of these rows of these models (one: that row).
    Of(Vec<(usize, usize)>),
    /// Nobody has the token.
    Zero,
    /// Padding: the mean of all the model's rows.
    Padding,
}

/// The result's vocabulary, where it is not simply every model's own.
#[derive(Debug)]
pub(super) struct Vocabulary {
    donor: usize,
    /// For each model the rows of the result.
    rows: Vec<Vec<Row>>,
}

impl Vocabulary {
    /// None where the configuration names no tokenizer.
    pub fn new(config: &MergeConfig, models: &[Model], base: usize) -> Result<Option<Vocabulary>> {
        let donor = match &config.tokenizer {
            None => return Ok(None),
            Some(TokenizerSource::Base) => base,
            Some(TokenizerSource::Model(reference)) => {
                models.iter().position(|model| model.reference == *reference).unwrap_or(base)
            }
        };
        let tokenizers = models.iter().map(|model| model.folder.tokenizer()).collect::<Result<Vec<_>>>()?;
        let counts = models.iter().map(row_count).collect::<Result<Vec<_>>>()?;
        let size = tokenizers[donor].vocab_size();
        let rows = match config.pad_to_multiple_of {
            Some(multiple) => size.next_multiple_of(multiple),
            None => counts[donor].max(size),
        };
        let digests: Vec<String> = tokenizers.iter().map(Tokenizer::digest).collect();
        // Which row a model has for each of the result's.
        let own = |model: usize| {
            let find = |id: usize| match digests[model] == digests[donor] && (id < size || model == donor) {
                true => Some(id),
                false => {
                    tokenizers[model].token_to_id(&tokenizers[donor].id_to_token(id as u32)?).map(|id| id as usize)
                }
            };
            (0..rows).map(|id| find(id).filter(|row| *row < counts[model])).collect::<Vec<_>>()
        };
        let own: Vec<Vec<Option<usize>>> = (0..models.len()).map(own).collect();
        let base = config.base_model.is_some().then_some(base);
        let row = |model: usize, id: usize| match own[model][id] {
            Some(row) => Row::Of(vec![(model, row)]),
            None => default_row(&own, base, id, id >= size),
        };
        let rows = (0..models.len()).map(|model| (0..rows).map(|id| row(model, id)).collect()).collect();
        Ok(Some(Vocabulary { donor, rows }))
    }

    /// Whose tokenizer the result has.
    pub fn donor(&self) -> usize {
        self.donor
    }

    /// Rows of the result's embeddings.
    pub fn rows(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }

    /// Values of a model's embedding in the result's order, from `start` on. `readers` are all models' tables.
    pub fn read(
        &self,
        model: usize,
        readers: &[Reader],
        columns: usize,
        padding: &[f32],
        start: usize,
        out: &mut [f32],
    ) -> Result<()> {
        let rows = &self.rows[model];
        let mut position = start;
        let mut rest = out;
        while !rest.is_empty() {
            let (row, column) = (position / columns, position % columns);
            // Rows that lie together are read together.
            let together = match &rows[row] {
                Row::Of(one) if one.len() == 1 => {
                    let follows = |i: &usize| rows.get(row + i) == Some(&Row::Of(vec![(one[0].0, one[0].1 + i)]));
                    1 + (1..64).take_while(follows).count()
                }
                _ => 1,
            };
            let (part, others) = rest.split_at_mut((together * columns - column).min(rest.len()));
            match &rows[row] {
                Row::Of(sources) => {
                    let share = 1.0 / sources.len() as f32;
                    let mut values = vec![0.0; if sources.len() > 1 { part.len() } else { 0 }];
                    if let [(model, row)] = sources[..] {
                        readers[model].read(row * columns + column, part)?;
                    } else {
                        part.fill(0.0);
                        for (model, row) in sources {
                            readers[*model].read(row * columns + column, &mut values)?;
                            part.iter_mut().zip(&values).for_each(|(sum, x)| *sum += share * x);
                        }
                    }
                }
                Row::Zero => part.fill(0.0),
                Row::Padding => part.copy_from_slice(&padding[column..column + part.len()]),
            }
            position += part.len();
            rest = others;
        }
        Ok(())
    }

    /// The mean row of a model's table, for padding; empty where there is none to fill.
    pub fn padding(&self, model: usize, reader: &Reader, count: usize, columns: usize) -> Result<Vec<f32>> {
        if !self.rows[model].contains(&Row::Padding) {
            return Ok(Vec::new());
        }
        let (mut sums, mut values) = (vec![0.0f64; columns], vec![0.0; columns]);
        for row in 0..count {
            reader.read(row * columns, &mut values)?;
            sums.iter_mut().zip(&values).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        Ok(sums.into_iter().map(|sum| (sum / count.max(1) as f64) as f32).collect())
    }
}

/// mergekit's rule for a token that a model lacks.
fn default_row(own: &[Vec<Option<usize>>], base: Option<usize>, id: usize, padding: bool) -> Row {
    let having: Vec<(usize, usize)> = own.iter().enumerate().filter_map(|(m, rows)| Some((m, rows[id]?))).collect();
    match (&having[..], base.and_then(|base| Some((base, own[base][id]?)))) {
        ([], _) => {
            if padding {
                Row::Padding
            } else {
                Row::Zero
            }
        }
        ([one], _) => Row::Of(vec![*one]),
        (_, Some(base)) => Row::Of(vec![base]),
        _ => Row::Of(having),
    }
}

fn row_count(model: &Model) -> Result<usize> {
    let table = model.names().find(|name| is_token_table(name)).and_then(|name| model.stored(name));
    let Some(table) = table else {
        let complaint = model.reference.complaint().expected("an embedding of tokens").found("none");
        return complaint.help("without one, leave `tokenizer_source` out").err();
    };
    Ok(model.shape(table)?.first().copied().unwrap_or(0))
}

/// Writes the tokenizer and the chat template of the result.
pub(super) fn write(
    config: &MergeConfig,
    models: &[Model],
    donor: usize,
    vocabulary: Option<&Vocabulary>,
    out: &Path,
) -> Result<()> {
    let donor = &models[vocabulary.map_or(donor, |vocabulary| vocabulary.donor)];
    match donor.folder.gguf() {
        Some(header) if !header.metadata.contains_key("tokenizer.ggml.tokens") => {}
        Some(_) => donor.folder.tokenizer()?.save(out)?,
        None => {
            for file in FILES.iter().map(|name| donor.folder.path().join(name)).filter(|path| path.is_file()) {
                let bytes = std::fs::read(&file).map_err(Error::io("read", &file))?;
                let path = out.join(file.file_name().unwrap_or_default());
                write_atomically(&path, |file| file.write_all(&bytes).map_err(Error::io("write", &path)))?;
            }
        }
    }
    let template = match &config.chat_template {
        None => return Ok(()),
        Some(ChatTemplate::Text(text)) => Some(text.clone()),
        Some(ChatTemplate::Auto) => commonest(models),
    };
    template.map_or(Ok(()), |template| set_template(out, &template))
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
    match own.exists() {
        true => std::fs::remove_file(&own).map_err(Error::io("remove", &own)),
        false => Ok(()),
    }
}
