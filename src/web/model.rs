//! `Model`: a model of a folder or GGUF file, to speak.

use super::device::{self, describe};
use super::failure::{Failure, Kind, Outcome};
use super::generation;
use super::options::{Context, GenerateOptions, OpenOptions, to_js};
use super::{files, sources};
use crate::Error;
use crate::device::Choice;
use crate::formats::{ModelFolder, Tokenizer};
use crate::generate::{Generator, Sampling};
use crate::models;
use crate::platform::fs;
use futures_util::lock::Mutex;
use std::ops::ControlFlow;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};

/// Tokens of prompt and answer that a model takes at most, if it was made for as many.
const CONTEXT: usize = 512;

/// A model that is ready to speak.
#[wasm_bindgen]
pub struct Model {
    generator: Mutex<Generator>,
    tokenizer: Tokenizer,
    device: JsValue,
    parameters: usize,
}

/// Opens a model: an address of a Hugging Face folder or GGUF file, or the files of a folder by name.
#[wasm_bindgen(js_name = openModel)]
pub async fn open_model(
    #[wasm_bindgen(unchecked_param_type = "string | { [path: string]: Blob }")] source: JsValue,
    #[wasm_bindgen(unchecked_param_type = "DeviceChoice")] device: Option<String>,
    options: Option<OpenOptions>,
) -> Outcome<Model> {
    let context = Context::of(options.as_ref().map(AsRef::as_ref));
    let (name, own) = match source.as_string() {
        Some(name) if fs::exists(std::path::Path::new(&name)) => (name, false),
        Some(name) => (sources::absolute(&name, &sources::here())?, false),
        None => (files::put_aside(source.unchecked_into()).await?, true),
    };
    sources::model(&name, &context).await?;
    let opened = open(&name, device.as_deref().unwrap_or("auto")).await;
    if own {
        fs::remove(&name);
    }
    opened
}

async fn open(name: &str, device: &str) -> Outcome<Model> {
    let choice: Choice = device.parse()?;
    let folder = ModelFolder::open(name)?;
    let tokenizer = folder.tokenizer()?;
    let decoder = models::from_config(folder.path(), &folder.config)?;
    let device = device::open(&choice).await?;
    let context = CONTEXT.min(decoder.config.max_position_embeddings);
    let generator = Generator::new(&device, &folder, context, tokenizer.vocab_size())?;
    let device = to_js(&describe(&choice, &device).await);
    Ok(Model { generator: Mutex::new(generator), tokenizer, device, parameters: decoder.parameter_count() })
}

#[wasm_bindgen]
impl Model {
    /// The device.
    #[wasm_bindgen(getter, unchecked_return_type = "DeviceInfo")]
    pub fn device(&self) -> JsValue {
        self.device.clone()
    }

    /// Weights.
    #[wasm_bindgen(getter)]
    pub fn parameters(&self) -> f64 {
        self.parameters as f64
    }

    /// Continues a text; the value is what was added.
    pub async fn generate(&self, prompt: &str, options: Option<GenerateOptions>) -> Outcome<String> {
        let mut generator = self.generator.lock().await;
        generation::generate(&mut generator, &self.tokenizer, prompt, options.as_ref()).await
    }

    /// The logits of the token after `prompt`, one a token of the vocabulary.
    pub async fn logits(&self, prompt: &str) -> Outcome<Vec<f32>> {
        let mut generator = self.generator.lock().await;
        let ids = self.tokenizer.encode(prompt, true)?;
        if ids.is_empty() {
            let complaint = Error::at("the prompt").expected("at least one token").found("none").help("give some text");
            return Err(Failure::new(Kind::Input, complaint));
        }
        let one = Sampling { max_tokens: 1, ..Sampling::default() };
        generator.generate(&ids, &one, &mut |_| ControlFlow::Break(())).await?;
        Ok(generator.last_logits().await?)
    }
}
