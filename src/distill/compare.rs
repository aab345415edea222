//! Finished models side by side: each against the same teacher, exactly, on the same held-out text.

use super::evaluate::Evaluator;
use super::hidden::HiddenLosses;
use super::metrics::Evaluation;
use super::recipe::LossFunction;
use super::step::{StepSpec, TEACHER, TeacherInput};
use super::trained::Trained;
use crate::data::packing::Packer;
use crate::data::tokens::Corpus;
use crate::device::{Buffer, Device};
use crate::formats::ModelFolder;
use crate::graph::Store;
use crate::models::{self, Decoder, load_parameters};
use crate::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// The text to compare on.
#[derive(Clone)]
pub struct Comparison {
    /// The tokenised text.
    pub corpus: Arc<Corpus>,
    /// The held-out part.
    pub ranges: Vec<Range<usize>>,
    /// Tokens of context.
    pub context: usize,
    /// Sequences at a time.
    pub batch: usize,
}

impl Comparison {
    /// Measures `model` against `teacher` over full distributions: NLL, bits per byte, KL(teacher || model), top-1
    /// agreement. Both models run on `device` at once; with `None` the teacher itself is measured.
    pub fn measure(&self, device: &Device, teacher: &ModelFolder, model: Option<&ModelFolder>) -> Result<Evaluation> {
        let vocabulary = teacher.tokenizer()?.vocab_size();
        let mut store = Store::new(device);
        let theirs = models::from_config(teacher.path(), &teacher.config)?;
        let (student, input) = match model {
            None => {
                self.load(&mut store, &theirs, teacher, "")?;
                (theirs, TeacherInput::None)
            }
            Some(model) => {
                same_tokenizer(teacher, model)?;
                let student = models::from_config(model.path(), &model.config)?;
                self.load(&mut store, &student, model, "")?;
                self.load(&mut store, &theirs, teacher, TEACHER)?;
                (student, TeacherInput::Live(Box::new(theirs)))
            }
        };
        let losses = vec![LossFunction::cross_entropy(1.0)];
        let (batch, context) = (self.batch, self.context);
        let (trained, teacher, hidden) = (Trained::default(), input, HiddenLosses::default());
        let recompute = false;
        let spec = StepSpec { student, trained, teacher, vocabulary, batch, context, recompute, losses, hidden };
        let text = Packer::new(self.corpus.clone(), self.ranges.clone(), context, batch, None)?;
        let mut scratch: Vec<Buffer> = Vec::new();
        let graph = spec.evaluation(device.caps())?;
        let mut evaluation = Evaluator::new(&graph, text, &mut store, &mut scratch)?.run(&store, None)?;
        if model.is_none() {
            (evaluation.kld, evaluation.top1_agreement) = (Some(0.0), Some(1.0));
        }
        Ok(evaluation)
    }

    fn load(&self, store: &mut Store, decoder: &Decoder, folder: &ModelFolder, prefix: &str) -> Result<()> {
        decoder.allocate(store, prefix, self.context)?;
        load_parameters(decoder, store, prefix, &folder.tensors, None)
    }
}

fn same_tokenizer(teacher: &ModelFolder, model: &ModelFolder) -> Result<()> {
    let (expected, found) = (teacher.tokenizer()?.digest(), model.tokenizer()?.digest());
    if expected == found {
        return Ok(());
    }
    Error::file(model.path())
        .field("tokenizer")
        .expected(format!("that of {} ({expected})", teacher.path().display()))
        .found(found)
        .help("only models of one tokenizer can be compared token by token")
        .err()
}
