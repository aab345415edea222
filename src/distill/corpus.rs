//! From files to a tokenised corpus with a model's tokenizer and chat template.

use crate::data::chat::ChatTemplate;
use crate::data::documents::{self, Split};
use crate::data::tokens::{Corpus, Encoded, Tokenise};
use crate::formats::Tokenizer;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What to read and how.
#[derive(Debug, Clone)]
pub struct CorpusOptions {
    /// Files and folders.
    pub paths: Vec<PathBuf>,
    /// How text files become documents.
    pub split: Split,
    /// Put the end-of-text token after plain texts and completions.
    pub append_eos: bool,
    /// Learn prompts and users' turns too.
    pub train_on_inputs: bool,
    /// Refuse documents of more tokens than this; `None` cuts them into contexts.
    pub max_length: Option<usize>,
    /// The field of a JSON line that holds a document's route; `None` reads none.
    pub route_field: Option<String>,
    /// Stop after this many tokens, at a document's end; `None` reads everything.
    pub limit: Option<usize>,
    /// Seconds since 1970 for templates that write the date; part of the corpus, so it must not drift.
    pub now: i64,
}

impl CorpusOptions {
    /// Plain reading of these paths.
    pub fn new(paths: Vec<PathBuf>) -> CorpusOptions {
        CorpusOptions {
            paths,
            split: Split::File,
            append_eos: true,
            train_on_inputs: false,
            max_length: None,
            route_field: None,
            limit: None,
            now: 0,
        }
    }
}

/// The tokenizer's chat template, if it has one, ready to render; `now` dates templates that ask for it.
pub fn chat_template(tokenizer: &Tokenizer, now: i64) -> Result<Option<ChatTemplate>> {
    let Some(source) = tokenizer.chat_template() else { return Ok(None) };
    let names = ["bos_token", "eos_token", "unk_token", "pad_token"];
    let special: BTreeMap<String, String> =
        names.iter().filter_map(|name| Some((name.to_string(), tokenizer.special_token(name)?.to_owned()))).collect();
    ChatTemplate::new("the tokenizer's chat template", source, special, now).map(Some)
}

/// Reads and tokenises.
pub fn read_corpus(tokenizer: &Tokenizer, options: &CorpusOptions) -> Result<Corpus> {
    if options.limit == Some(0) {
        let complaint = Error::at("the dataset").field("limit of tokens").expected("at least 1").found(0);
        return complaint.help("leave the limit out to read everything").err();
    }
    let template = chat_template(tokenizer, options.now)?;
    let encode = |text: &str| -> Result<Encoded> {
        let (ids, ends) = tokenizer.encode_with_ends(text)?;
        Ok(Encoded { ids, ends })
    };
    // A tokenizer that puts a beginning-of-text token around a text wants it before documents too.
    let around = tokenizer.encode("", true)?;
    let bos = around.first().copied().filter(|id| Some(*id) == tokenizer.bos_id());
    let tokenise = Tokenise {
        encode: &encode,
        bos,
        eos: if options.append_eos { tokenizer.eos_id() } else { None },
        vocabulary: tokenizer.vocab_size(),
        template: template.as_ref(),
        train_on_inputs: options.train_on_inputs,
        max_length: options.max_length,
    };
    let mut sources = documents::open(&options.paths, options.split.clone())?;
    if let Some(field) = &options.route_field {
        sources = sources.routed_by(field);
    }
    let corpus = match options.limit {
        None => tokenise.corpus(sources)?,
        Some(limit) => limited(&tokenise, sources, limit)?,
    };
    match &options.route_field {
        Some(field) if corpus.routes().is_empty() => Error::at("the dataset")
            .field(format!("`{field}`"))
            .expected("at least one document that says its route there")
            .found("none")
            .help("check the spelling; only JSON lines have fields")
            .err(),
        _ => Ok(corpus),
    }
}

/// The first documents that together reach `limit` tokens; the last is cut there.
fn limited(
    tokenise: &Tokenise<'_>,
    sources: impl Iterator<Item = Result<documents::Source>>,
    limit: usize,
) -> Result<Corpus> {
    let mut corpus = Corpus::default();
    for source in sources {
        let source = source?;
        let mut document = tokenise.document(&source)?;
        let room = limit - corpus.ids().len();
        document.ids.truncate(room);
        document.loss.truncate(room);
        if let Some(bytes) = &mut document.bytes {
            bytes.truncate(room);
        }
        corpus.push_routed(document, source.route.as_deref())?;
        if corpus.ids().len() >= limit {
            break;
        }
    }
    Ok(corpus)
}
