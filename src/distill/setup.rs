//! From a recipe to a [`Trainer`]: opens what it names, checks that it all belongs together, plans the memory, refuses
//! what does not fit, and only then allocates.

use super::adapter;
use super::corpus::{CorpusOptions, read_corpus};
use super::evaluate::{Evaluator, first_tokens};
use super::memory::{self, Memory};
use super::recipe::{Dataset, LongDocuments, Recipe};
use super::step::{StepSpec, TeacherInput};
use super::student::Origin;
use super::teacher::{OpenTeacher, Recorded, check_vocabulary, resolve_hidden};
use super::teacher_rows::TeacherRows;
use super::trained::{Trained, patterns_of};
use super::trainer::{Parts, Trainer};
use crate::data::packing::Packer;
use crate::data::split::{Holdout, split};
use crate::data::tokens::Corpus;
use crate::device::{Caps, Choice, Device};
use crate::digest::sha256;
use crate::formats::{ModelFolder, Tokenizer, hub};
use crate::graph::{Graph, Plan, Runner, Store};
use crate::models::Decoder;
use crate::nn::{Lora, ParamSpec};
use crate::optim::{Optimiser, Settings};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Everything a run needs, opened and checked; nothing is on the device yet.
pub struct Setup {
    /// The device.
    pub device: Device,
    /// The student's architecture and where its weights come from.
    pub origin: Origin,
    /// The tokenizer of student and teacher.
    pub tokenizer: Tokenizer,
    /// SHA-256 of what the run works on, by name.
    pub digests: BTreeMap<String, String>,
    /// Planned memory.
    pub memory: Memory,
    /// What the user should know before the run.
    pub warnings: Vec<String>,
    recipe: Recipe,
    spec: StepSpec,
    teacher: OpenTeacher,
    measured: Measured,
    text: Text,
}

/// The tokenised dataset and its two sides.
struct Text {
    corpus: Arc<Corpus>,
    train: Vec<Range<usize>>,
    held_out: Option<(Arc<Corpus>, Vec<Range<usize>>)>,
}

/// The graphs of a run and their plans' shared memory.
struct Graphs {
    training: Graph,
    evaluation: Option<Graph>,
}

/// What is measured on held-out text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    /// Nothing: there is no such text.
    Nothing,
    /// The student on the text alone.
    Text,
    /// The student beside the teacher, if there is one.
    Teacher,
}

/// The tokenizer of a model folder, GGUF file, hub id, or of a folder that holds only a tokenizer.
pub fn open_tokenizer(name: &Path) -> Result<Tokenizer> {
    let path = hub::resolve(&name.to_string_lossy())?;
    if path.is_dir() { Tokenizer::from_folder(&path) } else { ModelFolder::open(path)?.tokenizer() }
}

impl Setup {
    /// Opens and checks everything a recipe names.
    pub fn open(recipe: &Recipe) -> Result<Setup> {
        let device = pollster::block_on(recipe.device.parse::<Choice>()?.open())?;
        let source = recipe.tokenizer_source().ok_or_else(|| {
            let help = "name a model folder, GGUF file or hub id there: the teacher's";
            Error::at("the recipe's `model.tokenizer`").expected("whose tokenizer to use").found("nothing").help(help)
        })?;
        let tokenizer = open_tokenizer(&source)?;
        let origin = Origin::open(&recipe.model)?;
        check_vocabulary(&tokenizer, &origin.decoder, &format!("the student, {}", origin.lineage))?;
        let hidden = resolve_hidden(recipe, &origin.decoder.config)?;
        let trained = Trained::with_projections(recipe, &origin.decoder, hidden.projections())?;
        let text = Text::read(recipe, &tokenizer)?;
        let mut digests = BTreeMap::from([
            ("student".to_owned(), origin.digest.clone()),
            ("corpus".to_owned(), text.corpus.digest()),
            ("tokenizer".to_owned(), tokenizer.digest()),
        ]);
        if let Some(digest) = text.corpus.routes_digest() {
            digests.insert("routes".to_owned(), digest);
        }
        let mut teacher = OpenTeacher::open(recipe, &tokenizer, &mut digests)?;
        if let Some(unfrozen) = &recipe.masks.unfrozen_parameters {
            digests.insert("unfrozen_parameters".to_owned(), sha256(patterns_of(unfrozen)?.join("\n")));
        }
        let spec = StepSpec {
            student: origin.decoder.clone(),
            trained,
            teacher: teacher.input(),
            vocabulary: tokenizer.vocab_size(),
            batch: recipe.training_args.per_device_train_batch_size,
            context: recipe.sequence_length,
            recompute: recipe.training_args.gradient_checkpointing,
            losses: recipe.loss_functions.clone(),
            hidden,
        };
        let settings = recipe.training_args.optimiser();
        let measured = text.measured(teacher.records.any().is_some());
        let memory = plan_memory(&spec, &settings, device.caps(), measured)?;
        let remedies = remedies(&spec, &settings, device.caps(), measured);
        memory::check(memory, memory::available(&device), remedies)?;
        let mut warnings = warnings(recipe, teacher.records.any(), &origin.decoder);
        if measured == Measured::Text {
            let what = "the shards hold nothing of `dataset.eval`: the student is measured on its text, not against the teacher";
            warnings.push(format!("{what}; `dataset.holdout` measures on text that they hold"));
            teacher.records.eval = None;
        }
        let recipe = recipe.clone();
        Ok(Setup { device, origin, tokenizer, digests, memory, warnings, recipe, spec, teacher, measured, text })
    }

    /// Tokens to learn from in one epoch.
    pub fn training_tokens(&self) -> usize {
        self.text.train.iter().map(Range::len).sum()
    }

    /// Held-out tokens.
    pub fn held_out_tokens(&self) -> usize {
        self.text.held_out.iter().flat_map(|(_, ranges)| ranges).map(Range::len).sum()
    }

    /// Whose distributions the shards hold.
    pub fn recorded_teacher(&self) -> Option<&crate::shards::Teacher> {
        self.teacher.records.any().map(|records| &records.reader().spec().teacher)
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

    /// Allocates, loads and binds everything.
    pub fn trainer(self) -> Result<Trainer> {
        let Setup { device, origin, recipe, spec, teacher, measured, text, .. } = self;
        let graphs = Graphs::record(&spec, device.caps(), measured)?;
        let plans = graphs.plans()?;
        let mut scratch = Runner::reserve(&device, &plans.iter().collect::<Vec<_>>())?;
        let mut store = Store::new(&device);
        let groups = spec.trained.allocate(&origin.decoder, &mut store, spec.context)?;
        origin.load(&store, "")?;
        if let (Some(lora), Some(args)) = (&spec.trained.lora, &recipe.lora) {
            adapter::initialise(lora, &store, args.init_seed)?;
        }
        spec.hidden.initialise(&store, recipe.seed)?;
        teacher.load(&mut store, &graphs.training, spec.context)?;
        let optimiser = Optimiser::new(recipe.training_args.optimiser(), &mut store, &groups)?;
        let evaluator = match (&graphs.evaluation, text.held_out) {
            (Some(graph), Some((corpus, ranges))) => {
                let samples = recipe.training_args.eval_samples;
                let limit = samples.map_or(usize::MAX, |samples| samples.saturating_mul(spec.context));
                let packer = Packer::new(corpus, first_tokens(&ranges, limit), spec.context, spec.batch, None)?;
                Some(Evaluator::new(graph, packer, &mut store, &mut scratch)?)
            }
            _ => None,
        };
        let seed = recipe.dataset.shuffle.then_some(recipe.seed);
        let packer = Packer::new(text.corpus, text.train, spec.context, spec.batch, seed)?;
        let Recorded { train: records, eval: eval_records } = teacher.records;
        let trained = spec.trained;
        let parts = Parts { store, trained, optimiser, evaluator, records, eval_records, packer };
        Trainer::new(recipe, &graphs.training, parts, &mut scratch)
    }
}

impl Text {
    /// What can be measured, with a teacher that is recorded or not: records are of the training text's tokens.
    fn measured(&self, recorded: bool) -> Measured {
        match &self.held_out {
            None => Measured::Nothing,
            Some((corpus, _)) if recorded && !Arc::ptr_eq(corpus, &self.corpus) => Measured::Text,
            Some(_) => Measured::Teacher,
        }
    }

    fn read(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Text> {
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

impl Graphs {
    fn record(spec: &StepSpec, caps: &Caps, measured: Measured) -> Result<Graphs> {
        let evaluation = match measured {
            Measured::Nothing => None,
            Measured::Text => Some(StepSpec { teacher: TeacherInput::None, ..spec.clone() }.evaluation(caps)?),
            Measured::Teacher => Some(spec.evaluation(caps)?),
        };
        Ok(Graphs { training: spec.training(caps)?, evaluation })
    }

    fn plans(&self) -> Result<Vec<Plan>> {
        [Some(&self.training), self.evaluation.as_ref()].into_iter().flatten().map(Plan::new).collect()
    }
}

fn warnings(recipe: &Recipe, records: Option<&TeacherRows>, student: &Decoder) -> Vec<String> {
    let manifest = records.map(|records| records.reader().manifest());
    let tail = manifest.and_then(|manifest| manifest.statistics.mean_tail_mass);
    let temperatures: Vec<f64> =
        manifest.map_or(vec![1.0], |m| m.spec.temperatures.iter().map(|t| f64::from(*t)).collect());
    let mut warnings = recipe.warnings(tail, &temperatures);
    if records.is_some_and(TeacherRows::sampled) {
        warnings.extend(recipe.sampled_warnings());
    }
    let longest = student.config.max_position_embeddings;
    if recipe.sequence_length > longest {
        let length = recipe.sequence_length;
        warnings
            .push(format!("`sequence_length` {length} is more than the {longest} positions the model was made for"));
    }
    warnings
}

/// The memory a run of this shape takes.
pub fn plan_memory(spec: &StepSpec, settings: &Settings, caps: &Caps, measured: Measured) -> Result<Memory> {
    let plans = Graphs::record(spec, caps, measured)?.plans()?;
    let weights = |decoder: &Decoder| 4 * decoder.parameter_count() as u64 + decoder.rope_bytes(spec.context);
    let bytes = |p: &ParamSpec| 4 * p.shape.numel() as u64;
    let adapters: u64 = spec.trained.lora.iter().flat_map(Lora::parameters).map(|p| bytes(&p)).sum();
    let projections: u64 = spec.trained.projections.iter().map(bytes).sum();
    let teacher = match &spec.teacher {
        TeacherInput::Live(teacher) => weights(teacher),
        TeacherInput::States { hidden_size, head: Some(head), .. } => 4 * (head.config.vocab_size * hidden_size) as u64,
        _ => 0,
    };
    let mut inputs = BTreeMap::new();
    for plan in &plans {
        for (name, tensor) in &plan.externals {
            let batch = ["train.", "eval.", "metrics"].iter().any(|prefix| name.starts_with(prefix));
            if batch {
                inputs.insert(name.clone(), tensor.bytes());
            }
        }
    }
    Ok(Memory {
        parameters: weights(&spec.student) + adapters + projections,
        optimiser: spec.trained.optimiser_bytes(&spec.student, settings),
        teacher,
        activations: Plan::shared_slots(&plans.iter().collect::<Vec<_>>()).iter().sum(),
        inputs: inputs.values().sum::<u64>() + plans.iter().flat_map(|plan| &plan.kept).sum::<u64>(),
    })
}

/// Changes of the recipe that need less memory, mildest first, each with what it would need.
fn remedies<'a>(
    spec: &'a StepSpec,
    settings: &'a Settings,
    caps: &'a Caps,
    measured: Measured,
) -> impl Iterator<Item = (String, Result<Memory>)> + 'a {
    let changed = move |change: String, spec: StepSpec| (change, plan_memory(&spec, settings, caps, measured));
    let recompute = (!spec.recompute)
        .then(|| changed("gradient_checkpointing: true".into(), StepSpec { recompute: true, ..spec.clone() }));
    let batches = (0..).map(|i| spec.batch >> (i + 1)).take_while(|batch| *batch > 0).map(move |batch| {
        let change = format!("per_device_train_batch_size: {batch}` with `gradient_checkpointing: true");
        changed(change, StepSpec { batch, recompute: true, ..spec.clone() })
    });
    let contexts = (0..3).map(|i| spec.context >> (i + 1)).filter(|context| *context > 0).map(move |context| {
        let change = format!("sequence_length: {context}` with `per_device_train_batch_size: 1");
        changed(change, StepSpec { context, batch: 1, recompute: true, ..spec.clone() })
    });
    recompute.into_iter().chain(batches).chain(contexts)
}
