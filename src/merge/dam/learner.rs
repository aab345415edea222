//! The learning: a step takes a batch of every model's text, adds up the gradients, and updates the coefficients.

use super::graphs::{self, BATCH, OVERLAP, SIMILARITY, SUM, Shape};
use super::network::{COEFFICIENTS, Network};
use super::{CHECKPOINTS, Coefficients, Divergence, Learned};
use crate::data::packing::{Cursor, Packer};
use crate::data::split::{Holdout, split};
use crate::device::Device;
use crate::distill::batch::{write_batch, write_training_batch, write_weights};
use crate::distill::checkpoint::{self, Checkpoint, State};
use crate::distill::corpus::{CorpusOptions, read_corpus};
use crate::distill::step::provide;
use crate::formats::{Dtype, TensorSpec};
use crate::graph::{Graph, Plan as GraphPlan, Runner, Store};
use crate::merge::config::Learning;
use crate::merge::plan::Plan;
use crate::merge::run::{Progress, Stage};
use crate::nn::Merged;
use crate::optim::{Group, NORMS, Optimiser, RING, RING_AT, Settings};
use crate::{Error, Result};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// Coefficients on a device, and what teaches them.
pub(super) struct Learner<'a> {
    network: &'a Network,
    learning: &'a Learning,
    store: Store,
    lessons: Vec<Lesson>,
    regularisers: Option<Runner>,
    optimiser: Optimiser,
    /// SHA-256 of every text.
    digests: BTreeMap<String, String>,
    step: u64,
}

/// A model's text, and the replays that go over it.
struct Lesson {
    /// Which source.
    source: usize,
    text: Packer,
    training: Runner,
    /// What is measured on.
    held_out: Option<(Packer, Runner)>,
}

/// The text of a source: what is learned and what is measured.
struct Text {
    source: usize,
    digest: String,
    learned: Packer,
    held_out: Option<Packer>,
}

impl<'a> Learner<'a> {
    /// Reads all text, loads all models, and prepares every replay.
    pub fn new(
        network: &'a Network,
        plan: &Plan,
        learning: &'a Learning,
        seed: u64,
        device: &Device,
    ) -> Result<Learner<'a>> {
        let texts = texts(network, learning, seed)?;
        let (batch, context) = (learning.per_device_train_batch_size, learning.sequence_length);
        let shape = Shape { batch, context, temperature: learning.temperature };
        let mut graphs = Vec::new();
        for text in &texts {
            let graph = |train| graphs::divergence(network, text.source, shape, train, device.caps());
            graphs.push((graph(true)?, text.held_out.as_ref().map(|_| graph(false)).transpose()?));
        }
        let wanted = [learning.similarity > 0.0, learning.overlap > 0.0];
        let regularisers = graphs::regularisers(network, wanted)?.map(|(graph, _)| graph);
        let mut store = Store::new(device);
        network.load(plan, &mut store, context)?;
        let group = Group { label: COEFFICIENTS.into(), params: network.coefficients(), decay: false, rate: 1.0 };
        let settings = Settings::adamw(0.9, 0.999, 1e-8, 0.0, learning.max_grad_norm);
        let optimiser = Optimiser::new(settings, &mut store, &[group])?;
        let every: Vec<&Graph> = graphs.iter().flat_map(|(a, b)| [Some(a), b.as_ref()]).flatten().collect();
        for graph in every.iter().copied().chain(&regularisers) {
            provide(&mut store, graph)?;
        }
        // All replays work in the same memory in turn.
        let plans = every.into_iter().map(GraphPlan::new).collect::<Result<Vec<_>>>()?;
        let mut scratch = Runner::reserve(device, &plans.iter().collect::<Vec<_>>())?;
        let mut runners = Vec::new();
        for plan in plans {
            runners.push(Runner::new(plan, &store, &mut scratch)?);
        }
        let mut runners = runners.into_iter();
        let mut run = || runners.next().ok_or_else(|| Error::internal("a replay too few"));
        let (mut lessons, mut digests) = (Vec::new(), BTreeMap::new());
        for text in texts {
            digests.insert(format!("text of `{}`", network.sources[text.source].name), text.digest);
            let training = run()?;
            let held_out = text.held_out.map(|packer| Ok::<_, Error>((packer, run()?))).transpose()?;
            lessons.push(Lesson { source: text.source, text: text.learned, training, held_out });
        }
        let regularisers = match regularisers {
            Some(graph) => Some(Runner::new(GraphPlan::new(&graph)?, &store, &mut scratch)?),
            None => None,
        };
        let mut learner = Learner { network, learning, store, lessons, regularisers, optimiser, digests, step: 0 };
        learner.write_factors()?;
        Ok(learner)
    }

    /// A regulariser is a mean over the pairs of models.
    fn write_factors(&mut self) -> Result<()> {
        let models = self.network.sources.len();
        let pairs = (models * models.saturating_sub(1) / 2).max(1) as f64;
        for (name, factor) in [(SIMILARITY, self.learning.similarity), (OVERLAP, self.learning.overlap)] {
            if self.store.contains(name) {
                self.store.write(name, &[(factor / pairs) as f32])?;
            }
        }
        Ok(())
    }

    /// Steps of the whole run.
    fn total(&self) -> u64 {
        let most = self.lessons.iter().map(|lesson| lesson.text.batches()).max().unwrap_or(1);
        let epochs = (self.learning.num_train_epochs * most as f64).ceil() as u64;
        self.learning.max_steps.unwrap_or(epochs).max(1)
    }

    /// Does the steps that are left, from the checkpoint in `out` if there is one.
    pub async fn run(&mut self, out: &Path, progress: &mut dyn FnMut(Progress) -> ControlFlow<()>) -> Result<Learned> {
        let (folder, total) = (out.join(CHECKPOINTS), self.total());
        let mut before = Vec::new();
        match checkpoint::latest(&folder)? {
            Some(saved) => before = self.restore(&saved)?,
            None => {
                for lesson in 0..self.lessons.len() {
                    before.push(self.measure(lesson).await?);
                }
            }
        }
        while self.step < total {
            let loss = self.advance().await?;
            let stage = Stage::Learning { loss };
            let stop = progress(Progress { stage, done: self.step, total }).is_break();
            if stop || (self.step.is_multiple_of(self.learning.save_steps) && self.step < total) {
                self.save(&folder, &before).await?;
            }
            if stop {
                return Err(Error::Cancelled);
            }
        }
        let mut models = Vec::new();
        for (lesson, before) in before.into_iter().enumerate() {
            let model = self.network.sources[self.lessons[lesson].source].name.clone();
            models.push(Divergence { model, before, after: self.measure(lesson).await? });
        }
        Ok(Learned { steps: total, models })
    }

    /// One step; the value is the sum over the models of T^2 KL(model || merged) in nats a token.
    async fn advance(&mut self) -> Result<f64> {
        self.store.write(SUM, &[0f32])?;
        for lesson in &mut self.lessons {
            // Where each text stands follows from the step alone.
            let batches = lesson.text.batches();
            let batch = lesson.text.batch(Cursor { epoch: self.step / batches, batch: self.step % batches })?;
            write_training_batch(&self.store, BATCH, &batch)?;
            write_weights(&self.store, BATCH, &batch, 1.0 / batch.valid.max(1) as f64)?;
            lesson.training.run()?;
        }
        if let Some(regularisers) = &mut self.regularisers {
            regularisers.run()?;
        }
        self.store.write(RING_AT, &[0u32])?;
        self.store.write(NORMS, &[0f32; RING])?;
        self.optimiser.update(&self.store, self.step + 1, self.learning.learning_rate)?;
        self.step += 1;
        let loss = f64::from(self.store.read_f32(SUM).await?[0]);
        let norm = f64::from(self.store.read_f32(NORMS).await?[0]);
        for (value, what) in [(loss, "the divergence"), (norm, "the gradient norm of the coefficients")] {
            // The update of such a step was skipped on the device.
            if !value.is_finite() || value.abs() > 1e30 {
                let help = "lower `learning_rate`, or look for damage in the models".to_owned();
                return Err(Error::NotFinite { what: what.into(), step: self.step, help });
            }
        }
        Ok(loss)
    }

    /// The mean divergence over a model's held-out text.
    async fn measure(&mut self, lesson: usize) -> Result<Option<f64>> {
        let Some((packer, runner)) = &mut self.lessons[lesson].held_out else { return Ok(None) };
        self.store.write(SUM, &[0f32])?;
        let (mut cursor, mut tokens) = (Cursor::default(), 0);
        while cursor.epoch == 0 {
            let batch = packer.next_batch(&mut cursor)?;
            write_batch(&self.store, BATCH, &batch)?;
            write_weights(&self.store, BATCH, &batch, 1.0)?;
            runner.run()?;
            tokens += batch.valid;
        }
        let sum = f64::from(self.store.read_f32(SUM).await?[0]);
        Ok((tokens > 0).then(|| sum / tokens as f64))
    }

    /// What a checkpoint holds: coefficients and moments.
    fn arrays(&self) -> Vec<TensorSpec> {
        let all = self.network.coefficients().into_iter().chain(self.optimiser.state().iter().cloned());
        all.map(|(name, shape)| TensorSpec { name, dtype: Dtype::F32, shape: shape.to_vec() }).collect()
    }

    async fn save(&self, folder: &Path, before: &[Option<f64>]) -> Result<()> {
        let best = before.iter().enumerate().filter_map(|(i, value)| Some((format!("{i}"), (*value)?))).collect();
        let state = State { step: self.step, digests: self.digests.clone(), best, ..State::default() };
        let fill = async |array: &TensorSpec| Ok(Cow::Owned(self.store.read_f32(&array.name).await?));
        checkpoint::save(folder, &state, &self.arrays(), 1, fill).await.map(|_| ())
    }

    /// Goes on from a checkpoint; returns what was measured before the first step.
    fn restore(&mut self, saved: &Checkpoint) -> Result<Vec<Option<f64>>> {
        let state = saved.state();
        saved.check(&BTreeMap::new(), &self.digests)?;
        for array in self.arrays() {
            saved.expect_shape(&array.name, &array.shape)?;
            self.store.write(&array.name, &saved.read(&array.name)?)?;
        }
        self.step = state.step;
        Ok((0..self.lessons.len()).map(|i| state.best.get(&format!("{i}")).copied()).collect())
    }

    /// The coefficients as they are.
    pub async fn coefficients(&self) -> Result<Coefficients> {
        let mut all = Coefficients::new();
        for name in self.network.merged.columns.keys() {
            let mut of_models = Vec::new();
            for model in &self.network.merged.models {
                of_models.push(self.store.read_f32(&Merged::coefficients(model, name)).await?);
            }
            all.insert(name.clone(), of_models);
        }
        Ok(all)
    }
}

/// The text of every source that has some. All positions count, prompts too.
fn texts(network: &Network, learning: &Learning, seed: u64) -> Result<Vec<Text>> {
    let (batch, context) = (learning.per_device_train_batch_size, learning.sequence_length);
    let holdout = if learning.holdout > 0.0 { Holdout::LastFraction(learning.holdout) } else { Holdout::Nothing };
    let (mut found, mut wrong) = (Vec::new(), Vec::new());
    for (source, model) in network.sources.iter().enumerate().filter(|(_, model)| !model.data.is_empty()) {
        let options = CorpusOptions { train_on_inputs: true, ..CorpusOptions::new(model.data.clone()) };
        let text = read_corpus(&network.tokenizer, &options).and_then(|corpus| {
            let (digest, corpus) = (corpus.digest(), Arc::new(corpus));
            let parts = split(&corpus, context, holdout)?;
            let learned = Packer::new(corpus.clone(), parts.train, context, batch, Some(seed))?;
            let held_out = match parts.held_out.is_empty() {
                true => None,
                false => Some(Packer::new(corpus, parts.held_out, context, batch, None)?),
            };
            Ok(Text { source, digest, learned, held_out })
        });
        match text {
            Ok(text) => found.push(text),
            Err(error) => wrong.push(error.inside(format!("the text of `{}`", model.name))),
        }
    }
    Error::all(wrong)?;
    Ok(found)
}
