//! A distillation run: from a recipe to a trained student in a Hugging Face folder.

use super::batch::{write_training_batch, write_weights};
use super::checkpoint::{self, Checkpoint, State};
use super::evaluate::Evaluator;
use super::metrics::Evaluation;
use super::recipe::{LossFunction, Recipe};
use super::step::{METRICS, provide};
use super::taid::AdaptiveTaid;
use super::teaching::Teaching;
use super::terms::{scheduled_values, write_scheduled};
use super::trained::Trained;
use crate::data::packing::{Batch, Cursor, Packer};
use crate::device::Buffer;
use crate::formats::{Dtype, TensorSpec};
use crate::graph::{Graph, Plan, Runner, Shape, Store};
use crate::models::Decoder;
use crate::optim::{NORMS, Optimiser, RING, RING_AT};
use crate::{Error, Result};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// Scalars of one optimiser step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Which step, from 1.
    pub step: u64,
    /// Its learning rate.
    pub learning_rate: f64,
    /// The weighted sum of the losses.
    pub loss: f64,
    /// Each loss, unweighted, averaged over the step's valid tokens, in the recipe's order.
    pub losses: Vec<f64>,
    /// What of the losses changes over the run, by loss and key (`kl.weight`), in this step.
    pub scheduled: Vec<(String, f64)>,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens that counted.
    pub valid_tokens: usize,
    /// All tokens that went through the network.
    pub tokens: usize,
}

/// Model, optimiser and data of a run, on a device.
pub struct Trainer {
    /// Everything persistent on the device.
    pub store: Store,
    recipe: Recipe,
    micro: Runner,
    /// What of the student is trained.
    pub trained: Trained,
    optimiser: Optimiser,
    taid: Option<AdaptiveTaid>,
    evaluator: Option<Evaluator>,
    teaching: Teaching,
    packer: Packer,
    /// Where the next batch comes from.
    pub cursor: Cursor,
    /// Optimiser steps done.
    pub step: u64,
    total_steps: u64,
}

/// What a [`Trainer`] is made of; the parts outlive no one else.
pub struct Parts {
    /// With the student's parameters (and live teachers') allocated and loaded.
    pub store: Store,
    /// What of the student is trained.
    pub trained: Trained,
    /// The gradients, moments and their update.
    pub optimiser: Optimiser,
    /// Held-out measurement.
    pub evaluator: Option<Evaluator>,
    /// The teachers' records at each of the losses' temperatures ([`super::recipe::record_temperatures`]).
    pub teaching: Teaching,
    /// The training text.
    pub packer: Packer,
}

impl Trainer {
    /// Puts a run together around the micro-batch's `graph` ([`super::step::StepSpec::training`]).
    pub fn new(recipe: Recipe, graph: &Graph, mut parts: Parts, scratch: &mut Vec<Buffer>) -> Result<Trainer> {
        provide(&mut parts.store, graph)?;
        let micro = Runner::new(Plan::new(graph)?, &parts.store, scratch)?;
        let taid = AdaptiveTaid::new(&recipe.loss_functions, &mut parts.store)?;
        let per_epoch = parts.packer.batches().div_ceil(recipe.training_args.gradient_accumulation_steps as u64);
        let total_steps = recipe.training_args.total_steps(per_epoch);
        let Parts { store, trained, optimiser, evaluator, teaching, packer } = parts;
        let cursor = Cursor::default();
        Ok(Trainer {
            store,
            recipe,
            micro,
            trained,
            optimiser,
            taid,
            evaluator,
            teaching,
            packer,
            cursor,
            step: 0,
            total_steps,
        })
    }

    /// Optimiser steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Passes over the training text so far.
    pub fn epoch(&self) -> f64 {
        self.cursor.epoch as f64 + self.cursor.batch as f64 / self.packer.batches().max(1) as f64
    }

    /// The plan of one micro-batch.
    pub fn plan(&self) -> &Plan {
        self.micro.plan()
    }

    /// One optimiser step. Submits its work and returns; [`Trainer::reports`] waits for the scalars.
    /// The value is the number of tokens that count and of all tokens.
    pub fn advance(&mut self) -> Result<(usize, usize)> {
        let accumulate = self.recipe.training_args.gradient_accumulation_steps;
        let batches: Vec<Batch> =
            (0..accumulate).map(|_| self.packer.next_batch(&mut self.cursor)).collect::<Result<_>>()?;
        let valid: usize = batches.iter().map(|batch| batch.valid).sum();
        // No token that counts: loss 0 and gradient 0, by weights that are all 0.
        let weight = 1.0 / valid.max(1) as f64;
        self.store.write(RING_AT, &[(self.step % RING as u64) as u32])?;
        write_scheduled(&self.store, &self.recipe.loss_functions, self.step, self.total_steps)?;
        for batch in &batches {
            write_training_batch(&self.store, "train", batch)?;
            write_weights(&self.store, "train", batch, weight)?;
            self.teaching.write(&self.store, "train", batch, weight)?;
            self.micro.run()?;
        }
        let schedule = self.recipe.training_args.schedule(self.total_steps);
        self.optimiser.update(&self.store, self.step + 1, schedule.learning_rate(self.step))?;
        if let Some(taid) = &mut self.taid {
            taid.advance(&self.store, self.step, self.total_steps)?;
        }
        self.step += 1;
        let tokens = batches.iter().map(|batch| batch.tokens.len()).sum();
        Ok((valid, tokens))
    }

    /// Reads the scalars of the steps since the last report, at most [`RING`] of them, and clears them. `counts` are
    /// what [`Trainer::advance`] returned for each. An error if one is not finite: the update of such a step was
    /// skipped on the device, so the parameters are those of the last good step.
    pub async fn reports(&mut self, counts: &[(usize, usize)]) -> Result<Vec<StepReport>> {
        let losses = &self.recipe.loss_functions;
        let mut rows = Vec::new();
        for i in 0..losses.len() {
            let name = format!("{METRICS}.{i}");
            rows.push(self.store.read_f32(&name).await?);
            self.store.write(&name, &[0f32; RING])?;
        }
        let norms = self.store.read_f32(NORMS).await?;
        self.store.write(NORMS, &[0f32; RING])?;
        let adaptive = match &self.taid {
            Some(taid) => taid.history(&self.store).await?,
            None => Vec::new(),
        };
        let schedule = self.recipe.training_args.schedule(self.total_steps);
        let first = self.step - counts.len() as u64;
        let mut reports = Vec::new();
        for (i, &(valid_tokens, tokens)) in counts.iter().enumerate() {
            let step = first + i as u64;
            let slot = (step % RING as u64) as usize;
            let values: Vec<f64> = rows.iter().map(|row| f64::from(row[slot])).collect();
            let weight = |loss: &LossFunction| loss.weight.at(step, self.total_steps);
            let loss = values.iter().zip(losses).map(|(value, loss)| value * weight(loss)).sum();
            let mut scheduled = scheduled_values(losses, step, self.total_steps);
            scheduled.extend(adaptive.iter().map(|(name, ring)| (name.clone(), f64::from(ring[slot]))));
            let report = StepReport {
                step: step + 1,
                learning_rate: schedule.learning_rate(step),
                loss,
                losses: values,
                scheduled,
                grad_norm: f64::from(norms[slot]),
                valid_tokens,
                tokens,
            };
            finite(&report)?;
            reports.push(report);
        }
        Ok(reports)
    }

    /// Measures on the held-out text, if there is any: the weights' average, where one is kept.
    pub async fn evaluate(&mut self) -> Result<Option<Evaluation>> {
        self.evaluate_with(async |_| Ok(())).await
    }

    /// The same, awaiting `ready` before each batch: it is told which files of shards the batch reads.
    pub async fn evaluate_with<E: From<Error>>(
        &mut self,
        ready: impl AsyncFnMut(Vec<PathBuf>) -> Result<(), E>,
    ) -> Result<Option<Evaluation>, E> {
        let Some(evaluator) = &mut self.evaluator else { return Ok(None) };
        self.optimiser.exchange_average(&self.store)?;
        let measured = evaluator.run(&self.store, ready).await;
        self.optimiser.exchange_average(&self.store)?;
        measured.map(Some)
    }

    /// The files of shards that the next `steps` steps read, each once, in the order of reading.
    pub fn files_ahead(&mut self, steps: u64) -> Result<Vec<PathBuf>> {
        let (mut cursor, mut files) = (self.cursor, Vec::new());
        if self.teaching.records.iter().all(Vec::is_empty) {
            return Ok(files);
        }
        for _ in 0..steps * self.recipe.training_args.gradient_accumulation_steps as u64 {
            for file in self.teaching.files(&self.packer.next_batch(&mut cursor)?)? {
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        Ok(files)
    }

    /// Puts a checkpoint's arrays and place in the run into this trainer.
    pub fn restore(&mut self, saved: &Checkpoint, decoder: &Decoder) -> Result<()> {
        let arrays = self.arrays(decoder);
        for array in &arrays {
            saved.expect_shape(&array.name, &array.shape)?;
        }
        let mut values = Vec::new();
        for array in &arrays {
            values.resize(array.shape.iter().product(), 0.0);
            saved.read_into(&array.name, &mut values)?;
            self.store.write(&array.name, &values)?;
        }
        (self.step, self.cursor) = (saved.state().step, saved.state().cursor);
        Ok(())
    }

    /// Saves a checkpoint in `folder`, of which it keeps the last `keep`; `state`'s place in the run is this trainer's.
    pub async fn save(&self, folder: &Path, state: &mut State, decoder: &Decoder, keep: usize) -> Result<PathBuf> {
        (state.step, state.cursor) = (self.step, self.cursor);
        let fill = async |array: &TensorSpec| Ok(Cow::Owned(self.store.read_f32(&array.name).await?));
        checkpoint::save(folder, state, &self.arrays(decoder), keep, fill).await
    }

    /// What a checkpoint holds: the trained parameters and the optimiser's state, all as words of 32 bits.
    pub fn arrays(&self, decoder: &Decoder) -> Vec<TensorSpec> {
        let params = self.trained.parameters(decoder).into_iter().map(|p| (p.name, p.shape));
        let array = |(name, shape): (String, Shape)| TensorSpec { name, dtype: Dtype::F32, shape: shape.to_vec() };
        let taid = self.taid.iter().flat_map(AdaptiveTaid::state);
        params.chain(self.optimiser.state().iter().cloned()).chain(taid).map(array).collect()
    }

    /// Turns the training's parameters into those of the student that is saved: the average takes their place, where
    /// one is kept. No step may follow before a second call, which turns them back.
    pub fn exchange_average(&mut self) -> Result<()> {
        self.optimiser.exchange_average(&self.store)
    }
}

fn finite(report: &StepReport) -> Result<()> {
    let bad = |x: f64| !x.is_finite() || x.abs() > 1e30;
    let what = if bad(report.loss) {
        "the loss"
    } else if bad(report.grad_norm) {
        "the gradient norm"
    } else {
        return Ok(());
    };
    let help = "lower `learning_rate`, raise `warmup_steps` or clip with `max_grad_norm`, and start anew".to_owned();
    Err(Error::NotFinite { what: what.into(), step: report.step, help })
}
