//! A run behind [`super::trainer::Trainer`]: the native trainer with its shards brought in time, its checkpoints kept,
//! and its device replaced when it is lost.

use super::checkpoints::Checkpoints;
use super::device::{describe, open};
use super::failure::{Failure, Kind, Outcome};
use super::options::Context;
use super::shards::Shards;
use super::sources;
use crate::device::Choice;
use crate::distill::Recipe;
use crate::distill::adapter;
use crate::distill::checkpoint::State;
use crate::distill::metrics::Evaluation;
use crate::distill::recipe::loss_names;
use crate::distill::setup::Setup;
use crate::distill::student::write_folder;
use crate::distill::trainer::{StepReport, Trainer};
use crate::formats::Tokenizer;
use crate::generate::Generator;
use crate::models::Decoder;
use crate::optim::RING;
use crate::platform::turn;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Steps whose shards are prefetched.
const AHEAD: u64 = 4;
/// Milliseconds between two checkpoints at least, and how many times what saving one took.
const CHECKPOINT_EVERY: f64 = 10_000.0;
const CHECKPOINT_SHARE: f64 = 20.0;
/// How often a device is replaced without a step in between.
const REPLACEMENTS: u32 = 3;

/// A recipe under way.
pub struct Run {
    recipe: Recipe,
    context: Context,
    checkpoints: Checkpoints,
    parts: Parts,
    /// When the last checkpoint was saved, and what that took, in milliseconds.
    saved: (f64, f64),
    lost: u32,
}

/// What a device takes with it.
struct Parts {
    trainer: Trainer,
    decoder: Decoder,
    tokenizer: Tokenizer,
    generation_config: Value,
    shards: Shards,
    state: State,
}

fn now() -> f64 {
    js_sys::Date::now()
}

impl Parts {
    /// Opens a recipe whose files are in the tree, from the newest checkpoint if there is one; and a `TrainerInfo`.
    async fn open(recipe: &Recipe, checkpoints: &Checkpoints, context: &Context) -> Outcome<(Parts, Value)> {
        let choice: Choice = recipe.device.parse()?;
        let setup = Setup::open_on(recipe, open(&choice).await?)?;
        let device = describe(&choice, &setup.device).await;
        let memory = setup.memory;
        let mut info = json!({
            "device": device,
            "memory": {
                "parameters": memory.parameters, "optimiser": memory.optimiser, "teacher": memory.teacher,
                "activations": memory.activations, "inputs": memory.inputs, "total": memory.total(),
            },
            "parameters": setup.origin.decoder.parameter_count(),
            "tokens": setup.training_tokens(), "heldOutTokens": setup.held_out_tokens(),
            "warnings": setup.warnings,
        });
        let shards = Shards::new(&setup.shard_sets(), context);
        let state = State { recipe: recipe.canonical(), digests: setup.digests.clone(), ..State::default() };
        let (decoder, tokenizer) = (setup.origin.decoder.clone(), setup.tokenizer.clone());
        let generation_config = setup.origin.generation_config.clone();
        let mut trainer = setup.trainer().await?;
        info["totalSteps"] = trainer.total_steps().into();
        let mut parts = match checkpoints.latest().await? {
            Some(saved) => {
                saved.check(&state.recipe, &state.digests)?;
                trainer.restore(&saved, &decoder)?;
                Parts { trainer, decoder, tokenizer, generation_config, shards, state: saved.state().clone() }
            }
            None => Parts { trainer, decoder, tokenizer, generation_config, shards, state },
        };
        let ahead = parts.trainer.files_ahead(AHEAD)?;
        parts.shards.prefetch(ahead);
        Ok((parts, info))
    }
}

impl Run {
    /// Fetches what a resolved recipe names and opens it; goes on from the newest checkpoint. The value beside it is a
    /// `TrainerInfo`.
    pub async fn open(recipe: Recipe, checkpoints: Checkpoints, context: Context) -> Outcome<(Run, Value)> {
        sources::fetch(&recipe, &context).await?;
        let (parts, info) = Parts::open(&recipe, &checkpoints, &context).await?;
        if parts.trainer.step > 0 {
            context.event(&json!({"type": "resumed", "step": parts.trainer.step}));
        }
        let context = context.unstoppable();
        Ok((Run { recipe, context, checkpoints, parts, saved: (now(), 0.0), lost: 0 }, info))
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.parts.trainer.step
    }

    /// Up to `count` steps, fewer where the run ends or `stop` says so. The values are `StepReport`s.
    pub async fn steps(&mut self, count: u64, call: &Context, stop: impl Fn() -> bool) -> Outcome<Vec<Value>> {
        let until = self.parts.trainer.total_steps().min(self.step() + count);
        let mut reports = Vec::new();
        while self.step() < until && !stop() {
            let before = self.step();
            match self.stretch(until, call, &stop).await {
                Ok(more) => {
                    // Steps that were taken again after a loss count once.
                    reports.retain(|report: &Value| report["step"].as_u64() <= Some(before));
                    reports.extend(more);
                    self.lost = 0;
                }
                // The steps that were taken are told of; a network that stays away is met again by the next call.
                Err(failure) if failure.kind == Kind::Cancelled => break,
                Err(failure) if failure.kind == Kind::Network && !reports.is_empty() => break,
                Err(failure) => self.replace(failure).await?,
            }
            if now() - self.saved.0 > CHECKPOINT_EVERY.max(CHECKPOINT_SHARE * self.saved.1) {
                self.checkpoint().await?;
            }
        }
        Ok(reports)
    }

    /// Steps without a report in between.
    async fn stretch(&mut self, until: u64, call: &Context, stop: impl Fn() -> bool) -> Outcome<Vec<Value>> {
        let until = until.min(self.step() + RING as u64);
        let (start, mut counts) = (now(), Vec::new());
        while self.step() < until && (counts.is_empty() || !stop()) {
            let Parts { trainer, shards, .. } = &mut self.parts;
            let needed = trainer.files_ahead(1)?;
            let brought = shards.need(&needed, call).await;
            if let (Err(failure), true) = (brought, counts.is_empty()) {
                return Err(failure);
            }
            if needed.iter().any(|path| !crate::platform::fs::exists(path)) {
                // The steps taken so far are told of first; the next call meets the failure.
                break;
            }
            counts.push(trainer.advance()?);
            let ahead = trainer.files_ahead(AHEAD)?;
            shards.prefetch(ahead);
            trainer.store.device().catch_up().await?;
            turn().await;
        }
        let reports = self.parts.trainer.reports(&counts).await?;
        let seconds = (now() - start) / 1000.0 / counts.len().max(1) as f64;
        self.parts.state.seconds += seconds * counts.len() as f64;
        self.parts.state.tokens += counts.iter().map(|(valid, _)| *valid as u64).sum::<u64>();
        Ok(reports.iter().map(|report| self.report(report, seconds)).collect())
    }

    fn report(&self, report: &StepReport, seconds: f64) -> Value {
        let names = loss_names(&self.recipe.loss_functions).into_iter();
        let losses: serde_json::Map<String, Value> =
            names.zip(&report.losses).map(|(name, loss)| (name, json!(loss))).collect();
        json!({
            "step": report.step, "loss": report.loss, "losses": losses, "learningRate": report.learning_rate,
            "gradNorm": report.grad_norm, "tokens": report.tokens, "validTokens": report.valid_tokens,
            "seconds": seconds,
        })
    }

    /// After the loss of a device: another one, from the last checkpoint. Any other failure is returned.
    async fn replace(&mut self, failure: Failure) -> Outcome<()> {
        if !self.parts.trainer.store.device().is_lost() || self.lost == REPLACEMENTS {
            return Err(failure);
        }
        self.lost += 1;
        // What was cleared since comes back.
        sources::fetch(&self.recipe, &self.context).await?;
        let (parts, _) = Parts::open(&self.recipe, &self.checkpoints, &self.context).await?;
        self.parts = parts;
        self.context.event(&json!({"type": "device-lost", "step": self.step()}));
        Ok(())
    }

    /// Saves a checkpoint: in the tree, and in storage if the run has a name.
    pub async fn checkpoint(&mut self) -> Outcome<()> {
        let start = now();
        let Parts { trainer, state, decoder, .. } = &mut self.parts;
        match trainer.save(self.checkpoints.tree(), state, decoder, 1).await {
            Ok(_) => (),
            // The one before is there; the next step meets the loss.
            Err(_) if trainer.store.device().is_lost() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        if let Err(failure) = self.checkpoints.store().await {
            self.context.event(&json!({"type": "not-cached", "reason": failure.to_string()}));
        }
        self.saved = (now(), now() - start);
        Ok(())
    }

    /// Measures on the held-out text; an `Evaluation`, or nothing where no text is held out.
    pub async fn evaluate(&mut self) -> Outcome<Option<Value>> {
        loop {
            let Parts { trainer, shards, .. } = &mut self.parts;
            let (shards, context) = (shards.clone(), self.context.clone());
            let measured = trainer.evaluate_with(async |files| shards.need(&files, &context).await).await;
            match measured {
                Ok(found) => return Ok(found.map(|found| self.evaluation(&found))),
                Err(failure) => self.replace(failure).await?,
            }
        }
    }

    fn evaluation(&self, found: &Evaluation) -> Value {
        let mut value = json!({"step": self.step(), "nll": found.nll, "tokens": found.tokens});
        for (name, number) in [("kld", found.kld), ("agreement", found.top1_agreement)] {
            if let Some(number) = number {
                value[name] = number.into();
            }
        }
        value
    }

    /// Does something with the student as it would be saved: with the weights' average in place of the weights, where
    /// one is kept, and an adapter merged. Both are undone.
    async fn as_saved<T>(&mut self, work: impl AsyncFnOnce(&Recipe, &Parts) -> Outcome<T>) -> Outcome<T> {
        let Parts { trainer, .. } = &mut self.parts;
        trainer.exchange_average()?;
        let mut before = Vec::new();
        if let Some(lora) = &trainer.trained.lora {
            for module in lora.modules.keys() {
                let name = format!("{module}.weight");
                before.push((trainer.store.read_f32(&name).await?, name));
            }
            adapter::merge(lora, &trainer.store).await?;
        }
        let done = work(&self.recipe, &self.parts).await;
        for (values, name) in &before {
            self.parts.trainer.store.write(name, values)?;
        }
        self.parts.trainer.exchange_average()?;
        done
    }

    /// Continues a text.
    pub async fn generate(
        &mut self,
        prompt: &str,
        options: Option<&super::options::GenerateOptions>,
    ) -> Outcome<String> {
        loop {
            let said = self.as_saved(async |recipe: &Recipe, parts: &Parts| {
                let decoder = &parts.decoder;
                let parameters = decoder.parameters().into_iter().map(|spec| spec.name);
                let names: BTreeSet<String> = parameters.chain(decoder.rope_tables("")).collect();
                let own = parts.trainer.store.share(|name| names.contains(name));
                let vocabulary = parts.tokenizer.vocab_size();
                let mut generator = Generator::over(decoder.clone(), own, recipe.sequence_length, vocabulary)?;
                super::generation::generate(&mut generator, &parts.tokenizer, prompt, options).await
            });
            match said.await {
                Err(failure) if failure.kind != Kind::Cancelled => self.replace(failure).await?,
                other => return other,
            }
        }
    }

    /// Writes the student as a Hugging Face folder of the tree.
    pub async fn write(&mut self, folder: &Path) -> Outcome<()> {
        loop {
            let written = self.as_saved(async |recipe: &Recipe, parts: &Parts| {
                let Parts { trainer, decoder, tokenizer, generation_config, .. } = parts;
                let dtype = recipe.training_args.save_dtype;
                let store = &trainer.store;
                write_folder(folder, decoder, store, "", Some(tokenizer), generation_config, dtype).await?;
                Ok(())
            });
            match written.await {
                Err(failure) => self.replace(failure).await?,
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Destroys the device.
    pub fn lose_device(&self) {
        self.parts.trainer.store.device().lose();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.checkpoints.forget();
    }
}
