//! One way to teach a student, its runs, and what they measured.

use potstill::data::split::{Holdout, split};
use potstill::data::tokens::Corpus;
use potstill::device::Device;
use potstill::distill::compare::Comparison;
use potstill::distill::corpus::{CorpusOptions, read_corpus};
use potstill::distill::fidelity::Fidelity;
use potstill::distill::metrics::{Evaluation, Record as Line};
use potstill::distill::{CaptureOptions, Recipe, capture, distill, metrics};
use potstill::formats::{ModelFolder, read_json_if_present, write_json};
use potstill::shards::{LogProbType, Record};
use potstill::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Where a student's teacher comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Source {
    /// Text alone.
    Text,
    /// The model itself, beside the student.
    Live,
    /// Records of its likeliest tokens.
    TopK(u32),
    /// Records of random draws, all distinct tokens kept.
    Sampled(u32),
}

/// A way to teach.
#[derive(Clone, Debug)]
pub struct Method {
    /// Its name in tables and folders.
    pub name: &'static str,
    /// Its teacher.
    pub source: Source,
    /// `loss_functions` of the recipe.
    pub losses: Value,
    /// Other keys of the recipe, `{}` for none.
    pub extra: Value,
    /// Orders of the text (and first weights, where those are random).
    pub seeds: Vec<u64>,
    /// Optimiser steps.
    pub steps: u64,
}

/// A student against its teacher on held-out text.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// NLL, bits per byte, mean KLD, agreement.
    pub evaluation: Evaluation,
    /// What an average hides.
    pub fidelity: Fidelity,
}

/// What one run gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// At the end.
    pub measured: Measured,
    /// Step and held-out NLL along the way.
    pub curve: Vec<(u64, f64)>,
    /// The training loss of each line of metrics.
    pub losses: Vec<f64>,
    /// Stored bytes a token, where the teacher is stored.
    pub bytes_per_token: Option<f64>,
    /// What training and measuring took.
    pub seconds: f64,
}

/// A place where methods compete: one teacher, one text, one kind of student.
#[derive(Clone)]
pub struct Arena {
    /// Where it all computes.
    pub device: Device,
    /// Its name in the recipe's `device`.
    pub device_name: String,
    /// Folder for shards, students and results.
    pub folder: PathBuf,
    /// The teacher's folder or file.
    pub teacher: PathBuf,
    /// The students' text.
    pub dataset: PathBuf,
    /// Sequences held out at its end.
    pub held_out: usize,
    /// Tokens of a sequence.
    pub context: usize,
    /// Sequences of a step.
    pub batch: usize,
    /// `model` of the recipe; for random weights the run's seed is added.
    pub student: Value,
    /// `training_args` of the recipe, without the length.
    pub training_args: Value,
}

impl Arena {
    /// Runs a method with each of its seeds; what an earlier process measured is read back.
    pub fn run(&self, method: &Method) -> Result<Vec<Run>> {
        method.seeds.iter().map(|&seed| self.once(method, seed)).collect()
    }

    /// The teacher itself on the held-out text.
    pub fn teacher(&self) -> Result<Measured> {
        let teacher = ModelFolder::open(&self.teacher)?;
        let (evaluation, fidelity) =
            self.comparison(&self.corpus(&teacher)?)?.fidelity(&self.device, &teacher, None)?;
        Ok(Measured { evaluation, fidelity })
    }

    fn once(&self, method: &Method, seed: u64) -> Result<Run> {
        let name = format!("{}-{}-{seed}", method.name, method.steps).replace([' ', ',', '/', '(', ')', '.'], "_");
        let (folder, kept) = (self.folder.join(&name), self.folder.join(format!("{name}.json")));
        let (shards, bytes_per_token) = self.shards(method.source)?;
        let recipe = self.recipe(method, seed, &shards, &folder)?;
        let canonical = json!(recipe.canonical());
        if let Some(known) = read_json_if_present(&kept)?.filter(|known| known["recipe"] == canonical)
            && let Ok(run) = serde_json::from_value(known["run"].clone())
        {
            return Ok(run);
        }
        eprintln!("{}, {} steps, seed {seed}", method.name, method.steps);
        let start = Instant::now();
        distill(&recipe, true, &mut |_| ControlFlow::Continue(()))?;
        let teacher = ModelFolder::open(&self.teacher)?;
        let student = ModelFolder::open(&folder)?;
        let comparison = self.comparison(&self.corpus(&teacher)?)?;
        let (evaluation, fidelity) = comparison.fidelity(&self.device, &teacher, Some(&student))?;
        let lines = metrics::read(&folder.join("metrics.jsonl"))?;
        let point = |line: &Line| match line {
            Line::Eval(eval) => Some((eval.step, eval.evaluation.nll)),
            Line::Train(_) => None,
        };
        let loss = |line: &Line| match line {
            Line::Train(train) => Some(train.loss),
            Line::Eval(_) => None,
        };
        let (curve, losses) = (lines.iter().filter_map(point).collect(), lines.iter().filter_map(loss).collect());
        let (measured, seconds) = (Measured { evaluation, fidelity }, start.elapsed().as_secs_f64());
        let run = Run { measured, curve, losses, bytes_per_token, seconds };
        write_json(&kept, &json!({ "recipe": canonical, "run": run }))?;
        // The weights of dozens of students are of no further use.
        std::fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
        Ok(run)
    }

    /// Captures what a source needs, once; the folder and its bytes a token.
    fn shards(&self, source: Source) -> Result<(PathBuf, Option<f64>)> {
        let (name, record) = match source {
            Source::Text | Source::Live => return Ok((PathBuf::new(), None)),
            Source::TopK(k) => (format!("top-{k}"), Record::TopK { k, log_probs: LogProbType::DEFAULT }),
            Source::Sampled(draws) => {
                (format!("sampled-{draws}"), Record::Sampled { draws, max_unique: draws, seed: 0 })
            }
        };
        let folder = self.folder.join(name);
        let teacher = ModelFolder::open(&self.teacher)?;
        let corpus = self.corpus(&teacher)?;
        let (sequence_length, batch_size) = (self.context, self.batch);
        let options = CaptureOptions { record, sequence_length, batch_size, ..CaptureOptions::default() };
        let go_on = &mut |_| ControlFlow::Continue(());
        let manifest = capture(&self.device, &teacher, &corpus, &folder, &options, &mut |_| (), go_on)?;
        let bytes: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
        Ok((folder, Some(bytes as f64 / manifest.statistics.rows.max(1) as f64)))
    }

    fn corpus(&self, teacher: &ModelFolder) -> Result<Arc<Corpus>> {
        read_corpus(&teacher.tokenizer()?, &CorpusOptions::new(vec![self.dataset.clone()])).map(Arc::new)
    }

    fn comparison(&self, corpus: &Arc<Corpus>) -> Result<Comparison> {
        let ranges = split(corpus, self.context, Holdout::LastSequences(self.held_out))?.held_out;
        Ok(Comparison { corpus: corpus.clone(), ranges, context: self.context, batch: self.batch })
    }

    fn recipe(&self, method: &Method, seed: u64, shards: &Path, output: &Path) -> Result<Recipe> {
        let teacher = match method.source {
            Source::Text => Value::Null,
            Source::Live => json!({ "kind": "live", "path": self.teacher }),
            Source::TopK(_) | Source::Sampled(_) => json!({ "kind": "shards", "path": shards }),
        };
        let mut recipe = json!({
            "output_path": output,
            "seed": seed,
            "device": self.device_name,
            "sequence_length": self.context,
            "model": self.student,
            "teacher": teacher,
            "dataset": { "train": [self.dataset], "holdout": { "sequences": self.held_out } },
            "loss_functions": method.losses,
            "training_args": self.training_args,
        });
        recipe["training_args"]["per_device_train_batch_size"] = json!(self.batch);
        recipe["training_args"]["max_steps"] = json!(method.steps);
        recipe["training_args"]["save_steps"] = json!(1_000_000);
        recipe["training_args"]["save_total_limit"] = json!(1);
        for (key, value) in method.extra.as_object().into_iter().flatten() {
            recipe[key] = value.clone();
        }
        Recipe::parse(&recipe.to_string(), Path::new(method.name))
    }
}

/// Mean and standard deviation (0 for one value).
pub fn mean_sd(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (mean, if values.len() > 1 { (squares / (values.len() - 1) as f64).sqrt() } else { 0.0 })
}
