//! Opens the teacher that a recipe names: a model to run, recorded rows, or recorded hidden states with a model's head.

use super::hidden::{HiddenLosses, TeacherStates, hidden_losses};
use super::recipe::{Function, Recipe, TeacherSource, record_temperatures};
use super::step::{TeacherInput, teacher_prefix};
use super::student::open_model;
use super::teacher_rows::{TeacherRows, stored_states};
use crate::formats::{ModelFolder, Tokenizer};
use crate::graph::{Graph, Store};
use crate::models::{self, Decoder, DecoderConfig, FrozenWeights, load_parameter, load_parameters};
use crate::nn::ParamSpec;
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

/// A teacher as its headers describe it, before any work.
pub(super) enum Found {
    /// A model to run.
    Model(ModelFolder, Box<Decoder>),
    /// What was recorded of one.
    Set(Reader),
}

/// A teacher that is open but not on a device.
pub(super) struct OpenTeacher {
    /// Its place in the recipe, from 0.
    number: usize,
    /// A model: to run, or whose head to take.
    model: Option<(ModelFolder, Decoder)>,
    /// Recorded rows.
    pub records: Recorded,
}

/// The name of what a run is made of, of teacher `number`.
pub(super) fn digest_name(what: &str, number: usize) -> String {
    if number == 0 { what.to_owned() } else { format!("{what}{}", number + 1) }
}

impl Found {
    /// Opens the headers of every teacher. Every problem is listed in one error.
    pub fn all(recipe: &Recipe) -> Result<Vec<Found>> {
        let mut wrong = Vec::new();
        let found = (0..recipe.teachers.len()).map(|number| Found::open(recipe, number));
        let found = found.filter_map(|found| found.map_err(|error| wrong.push(error)).ok()).collect();
        Error::all(wrong)?;
        Ok(found)
    }

    fn open(recipe: &Recipe, number: usize) -> Result<Found> {
        match &recipe.teachers[number].source {
            TeacherSource::Live { path, weights } => {
                let folder = open_model(path)?;
                let decoder = models::from_config(folder.path(), &folder.config)?;
                let decoder = decoder.with_frozen(*weights, &folder.tensors)?;
                Ok(Found::Model(folder, Box::new(decoder)))
            }
            TeacherSource::Shards { path, head } => {
                let reader = Reader::open(path)?;
                check_head(recipe, number, &reader, head.as_deref())?;
                Ok(Found::Set(reader))
            }
        }
    }

    /// What the recipe's hidden losses compare of it.
    fn hidden(&self, recipe: &Recipe, number: usize, student: &DecoderConfig) -> Result<HiddenLosses> {
        let Some((_, hidden)) = hidden_losses(&recipe.loss_functions).next() else {
            return Ok(HiddenLosses::default());
        };
        let states = match (self, &recipe.teachers[number].source) {
            (Found::Model(_, decoder), TeacherSource::Live { path, .. }) => {
                TeacherStates::live(number, path, &decoder.config)
            }
            (Found::Set(reader), _) => {
                let Some((hidden_size, stored)) = stored_states(&reader.spec().record) else {
                    return Error::file(reader.dir())
                        .field("records")
                        .expected(format!("hidden states, which {} compares", hidden.kind.name()))
                        .found(reader.spec().record.rows_name())
                        .help(
                            "capture with `--kind hidden` and the `--layers` that the map names, or use a live teacher",
                        )
                        .err();
                };
                let layers = stored.last().copied().unwrap_or(0);
                let place = reader.dir().display().to_string();
                TeacherStates { number, place, layers, hidden_size, stored: Some(stored), channels: None }
            }
            (Found::Model(..), TeacherSource::Shards { .. }) => {
                return Err(Error::internal("a model in place of shards"));
            }
        };
        HiddenLosses::resolve(recipe, student, &states)
    }

    /// Opens the rest and checks that it belongs to the student's tokenizer and text; adds what it is made of to
    /// `digests`.
    pub fn finish(
        self,
        recipe: &Recipe,
        number: usize,
        tokenizer: &Tokenizer,
        digests: &mut BTreeMap<String, String>,
    ) -> Result<OpenTeacher> {
        match (self, &recipe.teachers[number].source) {
            (Found::Model(folder, decoder), TeacherSource::Live { path, .. }) => {
                check_tokenizer(&folder, &decoder, path, tokenizer)?;
                digests.insert(digest_name("teacher", number), folder.digest());
                Ok(OpenTeacher { number, model: Some((folder, *decoder)), records: Recorded::default() })
            }
            (Found::Set(reader), TeacherSource::Shards { path, head }) => {
                let corpus = digests["corpus"].clone();
                let records = open_records(recipe, path, tokenizer, &corpus)?;
                digests.insert(digest_name("shards", number), reader.manifest().digest()?);
                let open = |name: &String| open_head(name, path, reader.spec(), tokenizer);
                Ok(OpenTeacher { number, model: head.as_ref().map(open).transpose()?, records })
            }
            _ => Err(Error::internal("a teacher of another kind than the recipe's")),
        }
    }
}

/// What the recipe's hidden losses compare of each teacher, from headers alone. Every problem is listed in one error.
pub(super) fn resolve_hidden(recipe: &Recipe, found: &[Found], student: &DecoderConfig) -> Result<Vec<HiddenLosses>> {
    let mut wrong = Vec::new();
    let resolved = found.iter().enumerate().map(|(number, teacher)| teacher.hidden(recipe, number, student));
    let resolved = resolved.filter_map(|hidden| hidden.map_err(|error| wrong.push(error)).ok()).collect();
    Error::all(wrong)?;
    Ok(resolved)
}

impl OpenTeacher {
    /// The teacher as graphs see it.
    pub fn input(&self) -> Result<TeacherInput> {
        let decoder = self.model.as_ref().map(|(_, decoder)| Box::new(decoder.clone()));
        match (self.records.any(), decoder) {
            (None, None) => Err(Error::internal("a teacher of nothing")),
            (None, Some(decoder)) => Ok(TeacherInput::Live(decoder)),
            (Some(records), head) => Ok(match records.states() {
                Some((hidden_size, indices)) => TeacherInput::States { hidden_size, indices, head },
                None => TeacherInput::Sparse { entries: records.entries(), sampled: records.sampled() },
            }),
        }
    }

    /// Puts what `graph` wants of the model into `store`: all of it if it runs, else its head alone.
    pub fn load(&self, store: &mut Store, graph: &Graph, context: usize) -> Result<()> {
        let Some((folder, decoder)) = &self.model else { return Ok(()) };
        let prefix = teacher_prefix(self.number);
        if self.records.any().is_none() {
            decoder.allocate(store, &prefix, context)?;
            return load_parameters(decoder, store, &prefix, &folder.tensors, None);
        }
        for (name, tensor) in graph.externals() {
            let Some(source) = name.strip_prefix(&prefix) else { continue };
            folder.tensors.expect_shape(source, &tensor.shape)?;
            store.add(name, tensor.shape, tensor.dtype)?;
            let spec = ParamSpec { name: source.to_owned(), shape: tensor.shape };
            load_parameter(decoder, store, name, &folder.tensors, source, &spec)?;
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

/// Refuses recorded states without a head where a loss wants distributions, and a head where nothing is to be read by
/// it.
fn check_head(recipe: &Recipe, number: usize, reader: &Reader, head: Option<&str>) -> Result<()> {
    let states = stored_states(&reader.spec().record).is_some();
    let wants = |loss: &Function| loss.needs_teacher() && !matches!(loss, Function::Hidden(_));
    let distribution = recipe.loss_functions.iter().find(|loss| wants(&loss.function));
    let key = format!("the recipe's `{}.head`", recipe.teacher_key(number));
    let complaint = |expected: String, found: &str| Error::at(&key).expected(expected).found(found);
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
            let found = format!("{} in {}", reader.spec().record.rows_name(), reader.dir().display());
            complaint("no such key but with recorded hidden states".into(), &found).help("remove the key").err()
        }
        _ => Ok(()),
    }
}

/// Refuses a teacher that does not have the student's tokenizer.
fn check_tokenizer(folder: &ModelFolder, decoder: &Decoder, path: &str, tokenizer: &Tokenizer) -> Result<()> {
    check_vocabulary(tokenizer, decoder, &format!("the teacher, `{path}`"))?;
    let theirs = folder.tokenizer()?;
    if theirs.digest() == tokenizer.digest() {
        return Ok(());
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
    let folder = open_model(name)?;
    let decoder = models::from_config(folder.path(), &folder.config)?;
    let decoder = decoder.with_frozen(FrozenWeights::Stored, &folder.tensors)?;
    check_tokenizer(&folder, &decoder, name, tokenizer)?;
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
