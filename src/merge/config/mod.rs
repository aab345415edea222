//! The configuration of a merge: mergekit's YAML, read strictly.
//!
//! Keys and their meaning are mergekit's. Unlike there, an unknown key, a value of another type or out of range, a
//! parameter that the method does not have, a wrong number of models and a filter that fits no tensor are errors, all
//! of them listed at once.

mod learning;
mod methods;
mod read;
mod reference;
mod sources;
mod tokens;
mod values;

pub use learning::Learning;
pub use methods::{BaseRole, MethodSpec};
pub use reference::Reference;
pub use values::{Levels, Parameters};
pub(in crate::merge) use values::{Used, unused};

use crate::formats::Dtype;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One document: one merged model.
#[derive(Clone, Debug)]
pub struct MergeConfig {
    /// The file it was read from, for messages.
    pub file: PathBuf,
    /// What other documents call its result.
    pub name: Option<String>,
    /// The method.
    pub method: &'static MethodSpec,
    /// What is merged: one module without a name, or the named ones of `modules`.
    pub modules: Vec<Module>,
    /// The base of task vectors; also gives the configuration and the tokenizer.
    pub base_model: Option<Reference>,
    /// Parameters that hold everywhere.
    pub parameters: Parameters,
    /// How its coefficients are learned; of `dam` only.
    pub learning: Option<Learning>,
    /// The type of the result, unless `out_dtype` says another. Computation is always in f32.
    pub dtype: Option<Dtype>,
    /// The type the result is stored in.
    pub out_dtype: Option<Dtype>,
    /// Whose tokenizer the result has; without it, the base's, and vocabularies must be the same.
    pub tokenizer: Option<TokenizerSource>,
    /// Single tokens whose rows are chosen.
    pub tokens: Vec<TokenRule>,
    /// Rows of the embeddings are filled up to a multiple of this.
    pub pad_to_multiple_of: Option<usize>,
    /// The chat template.
    pub chat_template: Option<ChatTemplate>,
    /// The document as YAML, for the model card.
    pub text: String,
}

/// Part of a model that has a stack of layers of its own.
#[derive(Clone, Debug)]
pub struct Module {
    /// The beginning of its tensors' names; none where the model is one module.
    pub name: Option<String>,
    /// Parameters of the module.
    pub parameters: Parameters,
    /// Its output layers: slices, or one of the whole depth of every model.
    pub slices: Vec<Slice>,
}

/// Consecutive layers of the output.
#[derive(Clone, Debug)]
pub struct Slice {
    /// Where it stands in the file.
    pub place: String,
    /// What they are merged from.
    pub sources: Vec<Source>,
    /// Another base than the document's.
    pub base_model: Option<Reference>,
    /// Parameters of the slice.
    pub parameters: Parameters,
}

/// A model in a slice.
#[derive(Clone, Debug)]
pub struct Source {
    /// Where it stands in the file.
    pub place: String,
    /// The model.
    pub model: Reference,
    /// Its layers; all of them where `models` was used.
    pub layers: Option<Range<usize>>,
    /// Its parameters.
    pub parameters: Parameters,
    /// Text that it is distilled on; of `dam` only.
    pub data: Vec<PathBuf>,
}

/// `tokenizer_source`.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizerSource {
    /// The base's.
    Base,
    /// The base's, with all tokens that the other models' have and it lacks.
    Union,
    /// That of a model.
    Model(Reference),
}

/// One of `tokenizer.tokens`.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRule {
    /// The token, as vocabularies spell it. It is added where the tokenizer lacks it.
    pub token: String,
    /// Its row in models that lack it; none for what tokens without a rule get.
    pub row: Option<TokenRow>,
    /// Models that have the token get that row as well.
    pub force: bool,
}

/// The row of a [`TokenRule`].
#[derive(Clone, Debug, PartialEq)]
pub enum TokenRow {
    /// Zeros.
    Zero,
    /// That of the token in a model.
    Model(Reference),
    /// That of another token of a model.
    Token(Reference, String),
    /// That of an id of a model.
    Id(Reference, usize),
}

impl TokenRow {
    fn model(&self) -> Option<&Reference> {
        match self {
            TokenRow::Zero => None,
            TokenRow::Model(model) | TokenRow::Token(model, _) | TokenRow::Id(model, _) => Some(model),
        }
    }
}

/// `chat_template`.
#[derive(Clone, Debug, PartialEq)]
pub enum ChatTemplate {
    /// The commonest among the models.
    Auto,
    /// This one (Jinja).
    Text(String),
}

impl MergeConfig {
    /// Reads the documents of the file at `path`, in an order in which each comes after those it names; the last is the
    /// result.
    ///
    /// Errors name the file, the key's path, what was expected and found, and the nearest key for a misspelt one.
    pub fn load(path: impl AsRef<Path>) -> crate::Result<Vec<MergeConfig>> {
        let path = path.as_ref();
        let text = crate::platform::fs::read_to_string(path).map_err(crate::Error::io("read", path))?;
        Self::parse(&text, path)
    }

    /// Every model that the document names, the base first, each once.
    pub fn references(&self) -> Vec<&Reference> {
        let slices = || self.modules.iter().flat_map(|module| &module.slices);
        let bases = self.base_model.iter().chain(slices().filter_map(|slice| slice.base_model.as_ref()));
        let sources = slices().flat_map(|slice| &slice.sources).map(|source| &source.model);
        let tokenizer = match &self.tokenizer {
            Some(TokenizerSource::Model(model)) => Some(model),
            _ => None,
        };
        let mut all: Vec<&Reference> = Vec::new();
        let rows = self.tokens.iter().filter_map(|rule| rule.row.as_ref()?.model());
        for reference in bases.chain(sources).chain(tokenizer).chain(rows) {
            if !all.contains(&reference) {
                all.push(reference);
            }
        }
        all
    }
}
