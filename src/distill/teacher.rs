//! Opens the teacher that a recipe names: a model to run, recorded rows, or recorded hidden states with a model's head.

use super::hidden::{HiddenLosses, TeacherStates, hidden_losses};
use super::recipe::{Function, Recipe, Teacher, record_temperatures};
use super::step::{TEACHER, TeacherInput};
use super::student::open_model;
use super::teacher_rows::{TeacherRows, stored_states};
use crate::formats::{ModelFolder, Tokenizer};
use crate::graph::{DType, Graph, Store};
use crate::models::{self, Decoder, DecoderConfig, load_parameters};
use crate::shards::{Reader, SetSpec};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// A shard set, opened for each use.
#[derive(Default)]
pub(super) struct Recorded {
    /// At each of the losses' temperatures.
    pub train: Vec<TeacherRows>,
    /// At temperature 1; none of random draws, which nothing is measured against.
    pub eval: Option<TeacherRows>,
}

impl Recorded {
    /// One of them.
    pub fn any(&self) -> Option<&TeacherRows> {
        self.train.first().or(self.eval.as_ref())
    }
}

/// A teacher that is open but not on a device.
#[derive(Default)]
pub(super) struct OpenTeacher {
    /// A model: to run, or whose head to take.
    pub model: Option<(ModelFolder, Decoder)>,
    /// Recorded rows.
    pub records: Recorded,
}

impl OpenTeacher {
    /// Opens and checks what the recipe's teacher names; adds what it is made of to `digests`.
    pub fn open(recipe: &Recipe, tokenizer: &Tokenizer, digests: &mut BTreeMap<String, String>) -> Result<OpenTeacher> {
        match &recipe.teacher {
            None => Ok(OpenTeacher::default()),
            Some(Teacher::Live { path }) => {
                let (folder, decoder) = open_decoder(path, tokenizer)?;
                digests.insert("teacher".into(), folder.digest());
                Ok(OpenTeacher { model: Some((folder, decoder)), records: Recorded::default() })
            }
            Some(Teacher::Shards { path, head }) => {
                let corpus = digests["corpus"].clone();
                let records = open_records(recipe, path, tokenizer, &corpus)?;
                let mut model = None;
                if let Some(records) = records.any() {
                    digests.insert("shards".into(), records.reader().manifest().digest()?);
                    if let Some(name) = head {
                        model = Some(open_head(name, path, records.reader().spec(), tokenizer)?);
                    }
                }
                Ok(OpenTeacher { model, records })
            }
        }
    }

    /// The teacher as graphs see it.
    pub fn input(&self) -> TeacherInput {
        let decoder = self.model.as_ref().map(|(_, decoder)| Box::new(decoder.clone()));
        match (self.records.any(), decoder) {
            (None, None) => TeacherInput::None,
            (None, Some(decoder)) => TeacherInput::Live(decoder),
            (Some(records), head) => match records.states() {
                Some((hidden_size, indices)) => TeacherInput::States { hidden_size, indices, head },
                None => TeacherInput::Sparse { entries: records.entries(), sampled: records.sampled() },
            },
        }
    }

    /// Puts what `graph` wants of the model into `store`: all of it if it runs, else its head alone.
    pub fn load(&self, store: &mut Store, graph: &Graph, context: usize) -> Result<()> {
        let Some((folder, decoder)) = &self.model else { return Ok(()) };
        if self.records.any().is_none() {
            decoder.allocate(store, TEACHER, context)?;
            return load_parameters(decoder, store, TEACHER, &folder.tensors, None);
        }
        let wanted: Vec<_> = graph.externals().filter(|(name, _)| name.starts_with(TEACHER)).collect();
        for (name, tensor) in wanted {
            let source = &name[TEACHER.len()..];
            folder.tensors.expect_shape(source, &tensor.shape)?;
            store.add(name, tensor.shape, DType::F32)?;
            store.write(name, &folder.tensors.read_f32(source)?)?;
        }
        Ok(())
    }
}

/// Opens the set at `path` as the recipe's losses and the measurement want it.
fn open_records(recipe: &Recipe, path: &Path, tokenizer: &Tokenizer, corpus: &str) -> Result<Recorded> {
    let open = |temperature| TeacherRows::open(path, tokenizer, corpus, recipe.sequence_length, temperature);
    if stored_states(&Reader::open(path)?.spec().record).is_some() {
        // They serve every temperature.
        return Ok(Recorded { train: vec![open(1.0)?], eval: Some(open(1.0)?) });
    }
    let temperatures = record_temperatures(&recipe.loss_functions);
    let train = temperatures.into_iter().map(open).collect::<Result<Vec<_>>>()?;
    let sampled = train.first().is_some_and(TeacherRows::sampled);
    let eval = if sampled { None } else { Some(open(1.0)?) };
    if sampled {
        recipe.check_sampled(path)?;
    }
    let recorded = Recorded { train, eval: eval.filter(|records| !records.sampled()) };
    if let Some(records) = recorded.any() {
        for loss in &recipe.loss_functions {
            if let Function::Divergence { missing, .. } = loss.function {
                records.check_missing(missing)?;
            }
        }
    }
    Ok(recorded)
}

/// What the recipe's hidden losses compare, from the headers of student and teacher alone: before any work.
pub(super) fn resolve_hidden(recipe: &Recipe, student: &DecoderConfig) -> Result<HiddenLosses> {
    let Some((_, hidden)) = hidden_losses(&recipe.loss_functions).next() else {
        check_head(recipe)?;
        return Ok(HiddenLosses::default());
    };
    let states = match &recipe.teacher {
        Some(Teacher::Live { path }) => {
            let folder = open_model(path)?;
            TeacherStates::live(path, &models::from_config(folder.path(), &folder.config)?.config)
        }
        Some(Teacher::Shards { path, .. }) => {
            check_head(recipe)?;
            let reader = Reader::open(path)?;
            let Some((hidden_size, stored)) = stored_states(&reader.spec().record) else {
                let name = hidden.kind.name();
                return Error::file(path)
                    .field("records")
                    .expected(format!("hidden states, which {name} compares"))
                    .found(reader.spec().record.rows_name())
                    .help("capture with `--kind hidden` and the `--layers` that the map names, or use a live teacher")
                    .err();
            };
            let layers = stored.last().copied().unwrap_or(0);
            let place = path.display().to_string();
            TeacherStates { place, layers, hidden_size, stored: Some(stored), channels: None }
        }
        // The recipe's own check has refused it.
        None => return Err(Error::internal("a hidden loss without a teacher")),
    };
    HiddenLosses::resolve(recipe, student, &states)
}

/// Refuses recorded states without a head where a loss wants distributions, and a head where nothing is to be read by
/// it.
fn check_head(recipe: &Recipe) -> Result<()> {
    let Some(Teacher::Shards { path, head }) = &recipe.teacher else { return Ok(()) };
    let reader = Reader::open(path)?;
    let states = stored_states(&reader.spec().record).is_some();
    let wants = |loss: &Function| loss.needs_teacher() && !matches!(loss, Function::Hidden(_));
    let distribution = recipe.loss_functions.iter().find(|loss| wants(&loss.function));
    let complaint =
        |expected: String, found: &str| Error::at("the recipe's `teacher.head`").expected(expected).found(found);
    match (states, head, distribution) {
        (true, None, Some(loss)) => {
            let name = &reader.spec().teacher.name;
            let expected = format!(
                "the model whose head makes distributions of the recorded states, for {}",
                loss.function.name()
            );
            complaint(expected, "nothing").help(format!("name the captured teacher, {name}")).err()
        }
        (false, Some(_), _) => {
            let found = format!("{} in {}", reader.spec().record.rows_name(), path.display());
            complaint("no such key but with recorded hidden states".into(), &found).help("remove the key").err()
        }
        _ => Ok(()),
    }
}

/// A model with the student's tokenizer.
fn open_decoder(path: &str, tokenizer: &Tokenizer) -> Result<(ModelFolder, Decoder)> {
    let folder = open_model(path)?;
    let decoder = models::from_config(folder.path(), &folder.config)?;
    check_vocabulary(tokenizer, &decoder, &format!("the teacher, `{path}`"))?;
    let theirs = folder.tokenizer()?;
    if theirs.digest() == tokenizer.digest() {
        return Ok((folder, decoder));
    }
    let words = |t: &Tokenizer| format!("{} tokens, digest {}", t.vocab_size(), t.digest());
    Error::at(format!("the teacher, `{path}`"))
        .field("tokenizer")
        .expected(format!("the student's ({})", words(tokenizer)))
        .found(words(&theirs))
        .help("take a teacher and a student that share a tokenizer")
        .err()
}

/// The model whose head is to be applied to the states in `shards`: the one they were captured from.
fn open_head(name: &str, shards: &Path, spec: &SetSpec, tokenizer: &Tokenizer) -> Result<(ModelFolder, Decoder)> {
    let (folder, decoder) = open_decoder(name, tokenizer)?;
    let digest = folder.digest();
    if digest == spec.teacher.digest {
        return Ok((folder, decoder));
    }
    Error::at(format!("the recipe's `teacher.head`, `{name}`"))
        .field("digest of the weights")
        .expected(format!("{} ({}, whose states are in {})", spec.teacher.digest, spec.teacher.name, shards.display()))
        .found(digest)
        .help("name the model that was captured; another one's head makes nothing of its states")
        .err()
}

/// A tokenizer may have fewer ids than a model has rows (padding), never more.
pub(super) fn check_vocabulary(tokenizer: &Tokenizer, decoder: &Decoder, who: &str) -> Result<()> {
    if tokenizer.vocab_size() <= decoder.config.vocab_size {
        return Ok(());
    }
    Error::at(who)
        .field("`vocab_size`")
        .expected(format!("at least {}, the tokenizer's ids", tokenizer.vocab_size()))
        .found(decoder.config.vocab_size)
        .help("model and tokenizer do not belong together: take the tokenizer the model was trained with")
        .err()
}
