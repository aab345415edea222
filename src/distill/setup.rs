//! From a recipe to a [`Trainer`]: opens what it names, checks that it all belongs together, plans the memory, refuses
//! what does not fit, and only then allocates.

mod plan;
mod text;

pub use plan::{Measured, plan_memory};
pub use text::corpus_options;

use self::plan::{Graphs, remedies};
use self::text::Text;
use super::adapter;
use super::evaluate::{Evaluator, first_tokens};
use super::hidden::HiddenLosses;
use super::memory::{self, Memory};
use super::recipe::Recipe;
use super::step::{StepSpec, StepTeacher};
use super::student::Origin;
use super::teacher::{Found, OpenTeacher, check_vocabulary, resolve_hidden};
use super::teacher_rows::TeacherRows;
use super::teaching::{Shares, Teaching, check_routes};
use super::trained::{Trained, patterns_of};
use super::trainer::{Parts, Trainer};
use crate::data::packing::Packer;
use crate::data::tokens::Corpus;
use crate::device::{Choice, Device, Precision};
use crate::digest::sha256;
use crate::formats::{ModelFolder, Tokenizer, hub};
use crate::graph::{Runner, Store};
use crate::models::Decoder;
use crate::optim::Optimiser;
use crate::platform::fs;
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

/// Everything a run needs, opened and checked; nothing is on the device yet.
pub struct Setup {
    /// The device.
    pub device: Device,
    /// The student's architecture and where its weights come from.
    pub origin: Origin,
    /// The tokenizer of student and teachers.
    pub tokenizer: Tokenizer,
    /// SHA-256 of what the run works on, by name.
    pub digests: BTreeMap<String, String>,
    /// Planned memory.
    pub memory: Memory,
    /// What the user should know before the run.
    pub warnings: Vec<String>,
    recipe: Recipe,
    spec: StepSpec,
    teachers: Vec<OpenTeacher>,
    measured: Measured,
    text: Text,
}

/// The tokenizer of a model folder, GGUF file, hub id, or of a folder that holds only a tokenizer.
pub fn open_tokenizer(name: &Path) -> Result<Tokenizer> {
    let path = hub::resolve(&name.to_string_lossy())?;
    if fs::is_dir(&path) { Tokenizer::from_folder(&path) } else { ModelFolder::open(path)?.tokenizer() }
}

impl Setup {
    /// Opens and checks everything a recipe names.
    pub async fn open(recipe: &Recipe) -> Result<Setup> {
        let device = recipe.device.parse::<Choice>()?.open().await?;
        #[cfg(not(target_family = "wasm"))]
        let device = crate::tuning::tuned(device);
        Self::open_on(recipe, device)
    }

    /// The same on a device that is open already, whatever the recipe's `device` says: several runs share its kernels.
    pub fn open_on(recipe: &Recipe, device: Device) -> Result<Setup> {
        let source = recipe.tokenizer_source().ok_or_else(|| {
            let help = "name a model folder, GGUF file or hub id there: the teacher's";
            Error::at("the recipe's `model.tokenizer`").expected("whose tokenizer to use").found("nothing").help(help)
        })?;
        let precision = recipe.training_args.precision;
        let key = if precision == Precision::F16 { "fp16" } else { "bf16" };
        device.check_precision(precision, &format!("the recipe's `training_args.{key}`"))?;
        let tokenizer = open_tokenizer(&source)?;
        let origin = Origin::open(&recipe.model)?;
        check_vocabulary(&tokenizer, &origin.decoder, &format!("the student, {}", origin.lineage))?;
        let found = Found::all(recipe)?;
        let hidden = resolve_hidden(recipe, &found, &origin.decoder.config)?;
        let projections = hidden.iter().flat_map(HiddenLosses::projections).collect();
        let trained = Trained::with_projections(recipe, &origin.decoder, projections)?;
        let text = Text::read(recipe, &tokenizer)?;
        let mut digests = BTreeMap::from([
            ("student".to_owned(), origin.digest.clone()),
            ("corpus".to_owned(), text.corpus.digest()),
            ("tokenizer".to_owned(), tokenizer.digest()),
        ]);
        if let Some(digest) = text.corpus.routes_digest() {
            digests.insert("routes".to_owned(), digest);
        }
        let untaught = check_routes(recipe, &text.corpus)?;
        let open = |(number, found): (usize, Found)| found.finish(recipe, number, &tokenizer, &mut digests);
        let mut teachers = found.into_iter().enumerate().map(open).collect::<Result<Vec<OpenTeacher>>>()?;
        if let Some(unfrozen) = &recipe.masks.unfrozen_parameters {
            digests.insert("unfrozen_parameters".to_owned(), sha256(patterns_of(unfrozen)?.join("\n")));
        }
        let spec = StepSpec {
            student: origin.decoder.clone(),
            trained,
            teachers: step_teachers(&teachers, hidden)?,
            shared: recipe.shares_rows(),
            vocabulary: tokenizer.vocab_size(),
            batch: recipe.training_args.per_device_train_batch_size,
            context: recipe.sequence_length,
            recompute: recipe.training_args.gradient_checkpointing,
            precision: recipe.training_args.precision,
            losses: recipe.loss_functions.clone(),
        };
        let settings = recipe.training_args.optimiser();
        let measured = text.measured(teachers.iter().any(|teacher| teacher.records.any().is_some()));
        let memory = plan_memory(&spec, &settings, device.caps(), measured)?;
        let remedies = remedies(&spec, &settings, device.caps(), measured);
        memory::check(memory, memory::available(&device), remedies)?;
        let mut warnings = warnings(recipe, &teachers, &origin.decoder);
        warnings.extend(untaught);
        if measured == Measured::Text {
            let what = "the shards hold nothing of `dataset.eval`: the student is measured on its text, not against the teacher";
            warnings.push(format!("{what}; `dataset.holdout` measures on text that they hold"));
            teachers.iter_mut().for_each(|teacher| teacher.records.eval = None);
        }
        let recipe = recipe.clone();
        Ok(Setup { device, origin, tokenizer, digests, memory, warnings, recipe, spec, teachers, measured, text })
    }

    /// Tokens to learn from in one epoch.
    pub fn training_tokens(&self) -> usize {
        self.text.train.iter().map(Range::len).sum()
    }

    /// Held-out tokens.
    pub fn held_out_tokens(&self) -> usize {
        self.text.held_out.iter().flat_map(|(_, ranges)| ranges).map(Range::len).sum()
    }

    /// Whose distributions the shards of teacher `number` hold, if it is one of shards.
    pub fn recorded_teacher(&self, number: usize) -> Option<&crate::shards::Teacher> {
        self.teachers.get(number)?.records.any().map(|records| &records.reader().spec().teacher)
    }

    /// The first tokens of some held-out pieces (or of training text where nothing is held out), for continuations.
    pub fn prompts(&self, count: usize, length: usize) -> Vec<Vec<u32>> {
        let (corpus, ranges) = match &self.text.held_out {
            Some((corpus, ranges)) => (corpus, ranges),
            None => (&self.text.corpus, &self.text.train),
        };
        let tokens: Vec<u32> = ranges.iter().flat_map(|range| corpus.ids()[range.clone()].iter().copied()).collect();
        let stride = (tokens.len() / count.max(1)).max(1);
        let starts = (0..count).map(|i| i * stride).filter(|start| start + length <= tokens.len());
        starts.map(|start| tokens[start..start + length].to_vec()).collect()
    }

    /// The shard sets that the run reads, each once.
    pub fn shard_sets(&self) -> Vec<&crate::shards::Reader> {
        self.teachers.iter().filter_map(|teacher| Some(teacher.records.any()?.reader())).collect()
    }

    /// Allocates, loads and binds everything.
    pub async fn trainer(self) -> Result<Trainer> {
        let Setup { device, origin, recipe, spec, teachers, measured, text, .. } = self;
        let graphs = Graphs::record(&spec, device.caps(), measured)?;
        let plans = graphs.plans()?;
        let mut scratch = Runner::reserve(&device, &plans.iter().collect::<Vec<_>>())?;
        let mut store = Store::new(&device);
        let groups = spec.trained.allocate(&origin.decoder, &mut store, spec.context)?;
        origin.load(&store, "").await?;
        if let (Some(lora), Some(args)) = (&spec.trained.lora, &recipe.lora) {
            adapter::initialise(lora, &store, args.init_seed).await?;
        }
        for (teacher, on_device) in spec.teachers.iter().zip(&teachers) {
            teacher.hidden.initialise(&store, recipe.seed)?;
            on_device.load(&mut store, &graphs.training, spec.context)?;
        }
        let (teaching, measuring) = split_records(teachers, &recipe, &spec, measured, &text);
        let optimiser = Optimiser::new(recipe.training_args.optimiser(), &mut store, &groups)?;
        let evaluator = match (&graphs.evaluation, text.held_out) {
            (Some(graph), Some((corpus, ranges))) => {
                let samples = recipe.training_args.eval_samples;
                let limit = samples.map_or(usize::MAX, |samples| samples.saturating_mul(spec.context));
                let packer = Packer::new(corpus, first_tokens(&ranges, limit), spec.context, spec.batch, None)?;
                Some(Evaluator::new(graph, packer, measuring, &mut store, &mut scratch)?)
            }
            _ => None,
        };
        let seed = recipe.dataset.shuffle.then_some(recipe.seed);
        let packer = Packer::new(text.corpus, text.train, spec.context, spec.batch, seed)?;
        let trained = spec.trained;
        let parts = Parts { store, trained, optimiser, evaluator, teaching, packer };
        Trainer::new(recipe, &graphs.training, parts, &mut scratch)
    }
}

/// The teachers as graphs see them.
fn step_teachers(teachers: &[OpenTeacher], hidden: Vec<HiddenLosses>) -> Result<Vec<StepTeacher>> {
    let pairs = teachers.iter().zip(hidden);
    pairs.map(|(teacher, hidden)| Ok(StepTeacher { input: teacher.input()?, hidden })).collect()
}

/// What the host writes of the teachers for training, and for the measurement.
fn split_records(
    teachers: Vec<OpenTeacher>,
    recipe: &Recipe,
    spec: &StepSpec,
    measured: Measured,
    text: &Text,
) -> (Teaching, Teaching) {
    let all = vec![true; teachers.len()];
    let measures = |teacher: &StepTeacher| measured == Measured::Teacher && teacher.input.measures();
    let measuring: Vec<bool> = spec.teachers.iter().map(measures).collect();
    let (train, eval) = teachers.into_iter().map(|t| (t.records.train, t.records.eval.into_iter().collect())).unzip();
    let shares = |counts: &[bool], corpus: &Corpus| Shares::new(&recipe.teachers, counts, corpus.routes());
    let held_out = text.held_out.as_ref().map_or(&text.corpus, |(corpus, _)| corpus);
    (
        Teaching { records: train, shares: shares(&all, &text.corpus) },
        Teaching { records: eval, shares: shares(&measuring, held_out) },
    )
}

fn warnings(recipe: &Recipe, teachers: &[OpenTeacher], student: &Decoder) -> Vec<String> {
    let mut warnings = Vec::new();
    let of_sets: Vec<&TeacherRows> = teachers.iter().filter_map(|teacher| teacher.records.any()).collect();
    for records in &of_sets {
        let manifest = records.reader().manifest();
        let temperatures: Vec<f64> = manifest.spec.temperatures.iter().map(|t| f64::from(*t)).collect();
        warnings.extend(recipe.warnings(manifest.statistics.mean_tail_mass, &temperatures));
        if records.sampled() {
            warnings.extend(recipe.sampled_warnings());
        }
    }
    if of_sets.is_empty() {
        warnings.extend(recipe.warnings(None, &[1.0]));
    }
    // Several sets may give rise to the same one.
    let mut known = BTreeSet::new();
    warnings.retain(|warning| known.insert(warning.clone()));
    let longest = student.config.max_position_embeddings;
    if recipe.sequence_length > longest {
        let length = recipe.sequence_length;
        warnings
            .push(format!("`sequence_length` {length} is more than the {longest} positions the model was made for"));
    }
    warnings
}
