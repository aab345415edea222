//! `Trainer`: a recipe under way.

use super::archive::{self, Format};
use super::checkpoints::Checkpoints;
use super::failure::{Failure, Kind, Outcome};
use super::options::{Context, GenerateOptions, TrainerOptions, text, to_js, to_json};
use super::run::Run;
use super::{files, sources};
use crate::Error;
use crate::distill::Recipe;
use crate::platform::fs;
use futures_util::lock::Mutex;
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::task::Waker;
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;
use web_sys::{AbortSignal, Blob};

/// A run: a student, its teacher's shards, its text, an optimiser, on a device.
#[wasm_bindgen]
pub struct Trainer {
    /// One call at a time; the others wait for their turn.
    run: Mutex<Run>,
    info: JsValue,
    steps_done: Cell<u64>,
    total_steps: u64,
    paused: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

/// Opens everything a recipe names and makes a trainer of it. A run of this name that was stopped goes on where its
/// last checkpoint is.
#[wasm_bindgen(js_name = createTrainer)]
pub async fn create_trainer(
    #[wasm_bindgen(unchecked_param_type = "Recipe")] recipe: JsValue,
    options: Option<TrainerOptions>,
) -> Outcome<Trainer> {
    let options = options.as_ref().map(AsRef::as_ref);
    let context = Context::of(options);
    let mut recipe = read_recipe(&recipe)?;
    let base = text(options, "baseUrl").unwrap_or_else(sources::here);
    sources::resolve(&mut recipe, &sources::absolute(&base, &sources::here())?)?;
    let checkpoints = Checkpoints::of(text(options, "name").as_deref(), files::number()).await;
    let (run, info) = Run::open(recipe, checkpoints, context).await?;
    Ok(Trainer {
        steps_done: Cell::new(run.step()),
        total_steps: info["totalSteps"].as_u64().unwrap_or(0),
        info: to_js(&info),
        run: Mutex::new(run),
        paused: Cell::new(false),
        waiting: RefCell::default(),
    })
}

/// A recipe is YAML, of which JSON is a part.
fn read_recipe(recipe: &JsValue) -> Outcome<Recipe> {
    let place = Path::new("recipe");
    let mut value: Value = serde_json::from_str(&to_json(recipe)?)
        .map_err(|error| Failure::new(Kind::Input, Error::file(place).expected("an object").found(error)))?;
    if let Some(keys) = value.as_object_mut() {
        // Nothing is written there: the student leaves by `save`.
        keys.entry("output_path").or_insert_with(|| "student".into());
    }
    Ok(Recipe::parse(&value.to_string(), place)?)
}

#[wasm_bindgen]
impl Trainer {
    /// What was opened and planned.
    #[wasm_bindgen(getter, unchecked_return_type = "TrainerInfo")]
    pub fn info(&self) -> JsValue {
        self.info.clone()
    }

    /// Optimiser steps done.
    #[wasm_bindgen(getter, js_name = stepsDone)]
    pub fn steps_done(&self) -> f64 {
        self.steps_done.get() as f64
    }

    /// Optimiser steps of the whole run.
    #[wasm_bindgen(getter, js_name = totalSteps)]
    pub fn total_steps(&self) -> f64 {
        self.total_steps as f64
    }

    /// Whether `pause` was called, and `resume` not since.
    #[wasm_bindgen(getter)]
    pub fn paused(&self) -> bool {
        self.paused.get()
    }

    /// Takes up to `count` steps (default 1) and tells of each: fewer at the end of the run, after `pause`, or when the
    /// signal fires. While paused it waits for `resume`. Steps that were lost with a device are taken, and told of, again.
    #[wasm_bindgen(unchecked_return_type = "StepReport[]")]
    pub async fn step(&self, count: Option<f64>, signal: Option<AbortSignal>) -> Outcome<JsValue> {
        let call = Context::default().stopped_by(signal);
        self.resumed(&call).await;
        let mut run = self.run.lock().await;
        let stop = || self.paused.get() || call.check().is_err();
        let reports = run.steps(count.unwrap_or(1.0).max(0.0) as u64, &call, stop).await;
        self.steps_done.set(run.step());
        if self.paused.get() {
            run.checkpoint().await?;
        }
        Ok(to_js(&Value::Array(reports?)))
    }

    /// Waits while paused, unless the signal fires.
    async fn resumed(&self, call: &Context) {
        std::future::poll_fn(|task| {
            if !self.paused.get() || call.check().is_err() {
                return std::task::Poll::Ready(());
            }
            self.waiting.borrow_mut().push(task.waker().clone());
            std::task::Poll::Pending
        })
        .await;
    }

    /// Measures on the held-out text; null where the recipe holds none out.
    #[wasm_bindgen(unchecked_return_type = "Evaluation | null")]
    pub async fn evaluate(&self) -> Outcome<JsValue> {
        let found = self.run.lock().await.evaluate().await?;
        Ok(found.map_or(JsValue::NULL, |found| to_js(&found)))
    }

    /// Continues a text with the student as it is now; the value is what was added.
    pub async fn generate(&self, prompt: &str, options: Option<GenerateOptions>) -> Outcome<String> {
        self.run.lock().await.generate(prompt, options.as_ref()).await
    }

    /// Saves a checkpoint now. `step` does so every ten seconds or so by itself.
    pub async fn checkpoint(&self) -> Outcome<()> {
        self.run.lock().await.checkpoint().await
    }

    /// Ends a running `step` after the step in flight, and saves a checkpoint.
    pub async fn pause(&self) -> Outcome<()> {
        if self.paused.replace(true) {
            return Ok(());
        }
        match self.run.try_lock() {
            Some(mut run) => run.checkpoint().await,
            // The step in flight saves it.
            None => Ok(()),
        }
    }

    /// Lets `step` go on.
    pub fn resume(&self) {
        self.paused.set(false);
        self.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// The student: its weights as a safetensors file, or (`zip`, the default) the whole Hugging Face folder.
    pub async fn save(
        &self,
        #[wasm_bindgen(unchecked_param_type = "\"safetensors\" | \"zip\"")] format: Option<String>,
    ) -> Outcome<Blob> {
        let folder = PathBuf::from(format!("students/{}", files::number()));
        let format = Format::parse(format.as_deref())?;
        self.run.lock().await.write(&folder).await?;
        let saved = archive::folder(&folder, format);
        fs::remove(&folder);
        saved
    }

    /// Destroys the GPU as a crash of its driver would: a test that the run survives it.
    #[wasm_bindgen(js_name = loseDevice)]
    pub async fn lose_device(&self) {
        self.run.lock().await.lose_device();
    }
}
