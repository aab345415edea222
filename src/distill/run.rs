//! A whole run: train, measure, save checkpoints, resume, and write the student's folder with its card and report.

use super::checkpoint::{self, Checkpoint, State};
use super::memory::Memory;
use super::metrics::{self, Eval, Evaluation, Record, Train};
use super::recipe::{Recipe, Student, loss_names};
use super::setup::Setup;
use super::student::write_folder;
use super::trainer::{StepReport, Trainer};
use super::{adapter, folder, hidden, lineage, samples};
use crate::formats::Tokenizer;
use crate::models::Decoder;
use crate::optim::RING;
use crate::platform::process::peak_resident;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where in the student's folder its adapter lies, if one was trained.
const ADAPTER: &str = "adapter";

/// What a caller hears while a run goes on.
#[derive(Debug)]
pub enum Event<'a> {
    /// Everything is opened and planned; nothing is allocated yet.
    Planned {
        /// The device.
        device: String,
        /// Memory by purpose.
        memory: Memory,
        /// Weights of the student.
        parameters: usize,
        /// Tokens of an epoch.
        tokens: usize,
        /// What the user should know.
        warnings: &'a [String],
    },
    /// Training begins, or goes on after `step` steps of an earlier process.
    Started {
        /// Steps done.
        step: u64,
        /// Steps of the run.
        total: u64,
    },
    /// A step's scalars. They are read back for several steps at once, each of which is then told of in its turn.
    Step {
        /// The scalars.
        report: &'a StepReport,
        /// Steps done: the newest of those that are told of together.
        done: u64,
        /// Rows a second since the last report.
        tokens_per_second: f64,
    },
    /// Held-out numbers after `step` steps; 0 is the untrained student.
    Evaluated {
        /// Steps done.
        step: u64,
        /// The numbers.
        evaluation: &'a Evaluation,
    },
    /// A checkpoint is on disk.
    Saved {
        /// Steps done.
        step: u64,
        /// Where.
        path: &'a Path,
    },
}

/// Hears events and may stop the run: after `Break` a checkpoint is saved and [`Error::Cancelled`] returned.
pub type Observer<'a> = &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>;

/// What a finished run leaves.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The student's folder.
    pub folder: PathBuf,
    /// Steps of the run.
    pub steps: u64,
    /// Held-out numbers of the untrained student.
    pub before: Option<Evaluation>,
    /// Held-out numbers of the trained student.
    pub after: Option<Evaluation>,
    /// Rows a second while training, measurement and saving left out; 0 if no step was left to do.
    pub tokens_per_second: f64,
    /// Planned memory.
    pub memory: Memory,
    /// Largest resident size of the process, where the system tells.
    pub peak_memory: Option<u64>,
}

/// Follows a recipe. Where the output folder holds checkpoints of the same recipe it goes on from the latest; other
/// contents are refused unless `overwrite`.
pub fn distill(recipe: &Recipe, overwrite: bool, observer: Observer<'_>) -> Result<Outcome> {
    pollster::block_on(run(recipe, overwrite, observer))
}

async fn run(recipe: &Recipe, overwrite: bool, observer: Observer<'_>) -> Result<Outcome> {
    let saved = folder::claim(&recipe.output_path, overwrite)?;
    let checkpoints = recipe.output_path.join("checkpoints");
    let setup = Setup::open(recipe).await?;
    if let Some(saved) = &saved {
        saved.check(&recipe.canonical(), &setup.digests)?;
    }
    let planned = Event::Planned {
        device: setup.device.name(),
        memory: setup.memory,
        parameters: setup.origin.decoder.parameter_count(),
        tokens: setup.training_tokens(),
        warnings: &setup.warnings,
    };
    if observer(planned).is_break() {
        return Err(Error::Cancelled);
    }
    let mut run = Run::start(recipe, setup, saved).await?;
    if overwrite && checkpoints.exists() {
        // Only now: a recipe that could not even begin has cost nothing.
        std::fs::remove_dir_all(&checkpoints).map_err(Error::io("remove", &checkpoints))?;
    }
    run.train(observer).await.map_err(|error| with_checkpoint(error, &checkpoints))?;
    run.export().await
}

/// Says in a training failure which checkpoint is left.
fn with_checkpoint(error: Error, checkpoints: &Path) -> Error {
    let Error::NotFinite { what, step, help } = error else { return error };
    let left = match checkpoint::latest(checkpoints) {
        Ok(Some(saved)) => format!("the last good checkpoint is {}", saved.path().display()),
        _ => "no checkpoint had been saved".to_owned(),
    };
    Error::NotFinite { what, step, help: format!("{help}; {left}") }
}

/// A run under way.
struct Run<'a> {
    recipe: &'a Recipe,
    folder: PathBuf,
    trainer: Trainer,
    decoder: Decoder,
    tokenizer: Tokenizer,
    generation_config: Value,
    lineage: lineage::Lineage,
    state: State,
    metrics: metrics::Writer,
    prompts: Vec<Vec<u32>>,
    memory: Memory,
    /// Rows trained by this process and the seconds it took.
    trained: (usize, f64),
}

impl<'a> Run<'a> {
    async fn start(recipe: &'a Recipe, setup: Setup, saved: Option<Checkpoint>) -> Result<Run<'a>> {
        let folder = recipe.output_path.clone();
        let state = match &saved {
            Some(saved) => saved.state().clone(),
            None => State {
                format: checkpoint::FORMAT,
                recipe: recipe.canonical(),
                digests: setup.digests.clone(),
                ..State::default()
            },
        };
        let decoder = setup.origin.decoder.clone();
        let generation_config = setup.origin.generation_config.clone();
        let lineage = lineage::Lineage::of(recipe, &setup);
        let prompts = setup.prompts(samples::COUNT, samples::PROMPT_TOKENS.min(recipe.sequence_length / 2).max(1));
        let (memory, tokenizer) = (setup.memory, setup.tokenizer.clone());
        let mut trainer = setup.trainer().await?;
        if let Some(saved) = &saved {
            trainer.restore(saved, &decoder)?;
        }
        // The first file of a run comes after everything that can be refused.
        let metrics = match &saved {
            Some(_) => metrics::Writer::resume(&folder.join("metrics.jsonl"), state.step)?,
            None => metrics::Writer::create(&folder.join("metrics.jsonl"))?,
        };
        let trained = (0, 0.0);
        Ok(Run {
            recipe,
            folder,
            trainer,
            decoder,
            tokenizer,
            generation_config,
            lineage,
            state,
            metrics,
            prompts,
            memory,
            trained,
        })
    }

    /// Does the steps that are left.
    async fn train(&mut self, observer: Observer<'_>) -> Result<()> {
        let total = self.trainer.total_steps();
        if observer(Event::Started { step: self.trainer.step, total }).is_break() {
            return Err(Error::Cancelled);
        }
        if self.trainer.step == 0 {
            self.continuations("before").await?;
            self.evaluate(observer).await?;
        } else if self.evaluation_is_due() && !self.is_evaluated()? {
            // Stopped between a step and the measurement that follows it.
            self.evaluate(observer).await?;
        }
        while self.trainer.step < total {
            if self.stretch(observer).await?.is_break() {
                self.save(observer).await?;
                return Err(Error::Cancelled);
            }
            if self.evaluation_is_due() {
                self.evaluate(observer).await?;
            }
            let step = self.trainer.step;
            if step == total || step.is_multiple_of(self.recipe.training_args.save_steps) {
                self.save(observer).await?;
            }
        }
        // Everything is on disk: what training needs may go.
        self.trainer.exchange_average()?;
        self.save_adapter().await?;
        self.continuations("after").await
    }

    /// Writes the adapter, if one was trained, and merges it into the weights.
    async fn save_adapter(&self) -> Result<()> {
        let Trainer { trained, store, .. } = &self.trainer;
        let (Some(args), Some(lora)) = (&self.recipe.lora, &trained.lora) else { return Ok(()) };
        let folder = self.folder.join(ADAPTER);
        if folder.exists() {
            // Of a process that was killed here.
            std::fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
        }
        let base = match &self.recipe.model {
            Student::Pretrained(path) => Some(path.as_str()),
            _ => None,
        };
        adapter::save(&folder, args, trained, &self.decoder, store, base).await?;
        adapter::merge(lora, store).await
    }

    fn evaluation_is_due(&self) -> bool {
        let (step, every) = (self.trainer.step, self.recipe.training_args.eval_steps);
        step == self.trainer.total_steps() || every.is_some_and(|every| step.is_multiple_of(every))
    }

    /// Whether the metrics have this step's measurement.
    fn is_evaluated(&self) -> Result<bool> {
        let records = metrics::read(&self.folder.join("metrics.jsonl"))?;
        Ok(records.iter().any(|record| matches!(record, Record::Eval(eval) if eval.step == self.trainer.step)))
    }

    /// Trains up to the next step at which something is reported, measured or saved.
    async fn stretch(&mut self, observer: Observer<'_>) -> Result<ControlFlow<()>> {
        let args = &self.recipe.training_args;
        let total = self.trainer.total_steps();
        let next = |every: u64| (self.trainer.step / every + 1) * every;
        let stops = [args.logging_steps, args.save_steps, args.eval_steps.unwrap_or(u64::MAX / 2)];
        let most = total.min(self.trainer.step + RING as u64);
        let until = stops.into_iter().map(next).min().unwrap_or(most).min(most);
        let start = Instant::now();
        let mut counts = Vec::new();
        while self.trainer.step < until {
            counts.push(self.trainer.advance()?);
        }
        let reports = self.trainer.reports(&counts).await?;
        let seconds = start.elapsed().as_secs_f64();
        let rows: usize = counts.iter().map(|(_, rows)| rows).sum();
        self.trained = (self.trained.0 + rows, self.trained.1 + seconds);
        self.state.seconds += seconds;
        self.state.tokens += counts.iter().map(|(valid, _)| *valid as u64).sum::<u64>();
        let tokens_per_second = rows as f64 / seconds.max(1e-9);
        self.metrics.write(&Record::Train(self.line(&reports, tokens_per_second)))?;
        let mut flow = ControlFlow::Continue(());
        let done = self.trainer.step;
        for report in &reports {
            if observer(Event::Step { report, done, tokens_per_second }).is_break() {
                flow = ControlFlow::Break(());
            }
        }
        Ok(flow)
    }

    /// One line of metrics: means over the steps since the line before.
    fn line(&self, reports: &[StepReport], tokens_per_second: f64) -> Train {
        let mean = |value: &dyn Fn(&StepReport) -> f64| reports.iter().map(value).sum::<f64>() / reports.len() as f64;
        let names = loss_names(&self.recipe.loss_functions).into_iter().enumerate();
        let losses: BTreeMap<String, f64> = names.map(|(i, name)| (name, mean(&|report| report.losses[i]))).collect();
        let last = reports.last();
        Train {
            step: self.trainer.step,
            epoch: self.trainer.epoch(),
            loss: mean(&|report| report.loss),
            losses,
            scheduled: last.map_or(BTreeMap::new(), |report| report.scheduled.iter().cloned().collect()),
            learning_rate: last.map_or(0.0, |report| report.learning_rate),
            grad_norm: last.map_or(0.0, |report| report.grad_norm),
            tokens: self.state.tokens,
            seconds: self.state.seconds,
            tokens_per_second,
        }
    }

    async fn evaluate(&mut self, observer: Observer<'_>) -> Result<()> {
        let Some(evaluation) = self.trainer.evaluate().await? else { return Ok(()) };
        let (step, seconds) = (self.trainer.step, self.state.seconds);
        self.metrics.write(&Record::Eval(Eval { step, evaluation, seconds }))?;
        let best = self.state.best.entry("nll".into()).or_insert(f64::INFINITY);
        *best = best.min(evaluation.nll);
        // What an observer answers here takes effect at the next step.
        let _ = observer(Event::Evaluated { step, evaluation: &evaluation });
        Ok(())
    }

    async fn save(&mut self, observer: Observer<'_>) -> Result<()> {
        self.metrics.sync()?;
        let keep = self.recipe.training_args.save_total_limit;
        let folder = self.folder.join("checkpoints");
        let path = self.trainer.save(&folder, &mut self.state, &self.decoder, keep).await?;
        let _ = observer(Event::Saved { step: self.state.step, path: &path });
        Ok(())
    }

    /// Greedy continuations of a few held-out texts, kept beside the metrics for the report.
    async fn continuations(&self, when: &str) -> Result<()> {
        let context = self.recipe.sequence_length;
        let samples =
            samples::write(&self.decoder, &self.trainer.store, &self.tokenizer, &self.prompts, context).await?;
        samples::save(&self.folder, when, &samples)
    }

    async fn export(self) -> Result<Outcome> {
        let dtype = self.recipe.training_args.save_dtype;
        let tokenizer = Some(&self.tokenizer);
        let store = &self.trainer.store;
        if self.recipe.lora.as_ref().is_none_or(|lora| lora.save_merged) {
            write_folder(&self.folder, &self.decoder, store, "", tokenizer, &self.generation_config, dtype).await?;
        }
        hidden::write_projections(&self.folder, store, &self.trainer.trained.projections).await?;
        let records = metrics::read(&self.folder.join("metrics.jsonl"))?;
        let evaluations: Vec<&Eval> = records
            .iter()
            .filter_map(|record| match record {
                Record::Eval(eval) => Some(eval),
                Record::Train(_) => None,
            })
            .collect();
        let of = |eval: Option<&&Eval>| eval.map(|eval| eval.evaluation);
        let before = of(evaluations.first().filter(|eval| eval.step == 0));
        let after = of(evaluations.last());
        let (rows, seconds) = self.trained;
        let outcome = Outcome {
            folder: self.folder.clone(),
            steps: self.trainer.step,
            before,
            after,
            tokens_per_second: if rows == 0 { 0.0 } else { rows as f64 / seconds.max(1e-9) },
            memory: self.memory,
            peak_memory: peak_resident(),
        };
        let samples = samples::pairs(&self.folder)?;
        let story = self.lineage.finish(self.recipe, &self.state, &outcome);
        story.write(&self.folder, records, samples)?;
        Ok(outcome)
    }
}
