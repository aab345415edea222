//! The text of a run: tokenised, and parted into what is learned and what is measured.

use super::Measured;
use crate::Result;
use crate::data::split::{Holdout, split};
use crate::data::tokens::Corpus;
use crate::distill::corpus::{CorpusOptions, read_corpus};
use crate::distill::recipe::{Dataset, LongDocuments, Recipe};
use crate::formats::Tokenizer;
use std::ops::Range;
use std::sync::Arc;

/// The tokenised dataset and its two sides.
pub(super) struct Text {
    pub corpus: Arc<Corpus>,
    pub train: Vec<Range<usize>>,
    pub held_out: Option<(Arc<Corpus>, Vec<Range<usize>>)>,
}

impl Text {
    /// What can be measured, with a teacher that is recorded or not: records are of the training text's tokens.
    pub fn measured(&self, recorded: bool) -> Measured {
        match &self.held_out {
            None => Measured::Nothing,
            Some((corpus, _)) if recorded && !Arc::ptr_eq(corpus, &self.corpus) => Measured::Text,
            Some(_) => Measured::Teacher,
        }
    }

    pub fn read(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Text> {
        let Dataset { train, eval, holdout, .. } = &recipe.dataset;
        let options = corpus_options(recipe);
        let corpus = Arc::new(read_corpus(tokenizer, &CorpusOptions { paths: train.clone(), ..options.clone() })?);
        let parts = split(&corpus, recipe.sequence_length, *holdout)?;
        let held_out = if *holdout != Holdout::Nothing {
            Some((corpus.clone(), parts.held_out))
        } else if !eval.is_empty() {
            let corpus = Arc::new(read_corpus(tokenizer, &CorpusOptions { paths: eval.clone(), ..options })?);
            let all = split(&corpus, recipe.sequence_length, Holdout::Nothing)?.train;
            Some((corpus, all))
        } else {
            None
        };
        Ok(Text { corpus, train: parts.train, held_out })
    }
}

/// How a recipe's dataset is read; the paths are left to the caller.
pub fn corpus_options(recipe: &Recipe) -> CorpusOptions {
    let dataset = &recipe.dataset;
    CorpusOptions {
        split: dataset.split.clone(),
        append_eos: dataset.append_eos,
        train_on_inputs: dataset.train_on_inputs,
        route_field: dataset.route_field.clone(),
        max_length: (dataset.long_documents == LongDocuments::Refuse).then_some(recipe.sequence_length),
        ..CorpusOptions::new(Vec::new())
    }
}
