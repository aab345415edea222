//! Texts from a model: shared by trainers and models.

use super::failure::Outcome;
use super::options::{Context, GenerateOptions, number, property};
use crate::formats::Tokenizer;
use crate::generate::{Generator, Sampling};
use std::ops::ControlFlow;
use wasm_bindgen::JsValue;

/// Tokens that are generated where no number is asked for.
const MAX_TOKENS: f64 = 64.0;

/// Continues `prompt` and returns the new text; `onText` hears it grow.
pub async fn generate(
    generator: &mut Generator,
    tokenizer: &Tokenizer,
    prompt: &str,
    options: Option<&GenerateOptions>,
) -> Outcome<String> {
    let options = options.map(AsRef::as_ref);
    let context = Context::of(options);
    let on_text: Option<js_sys::Function> = property(options, "onText");
    let count = |name: &str, default: f64| number(options, name).unwrap_or(default).max(0.0);
    let sampling = Sampling {
        max_tokens: count("maxTokens", MAX_TOKENS) as usize,
        temperature: count("temperature", 0.0),
        top_k: count("topK", 0.0) as usize,
        top_p: count("topP", 1.0),
        seed: count("seed", 0.0) as u64,
        stop: tokenizer.eos_id().into_iter().collect(),
    };
    let ids = tokenizer.encode(prompt, true)?;
    let start = tokenizer.decode(&ids, true)?;
    let mut made = ids.clone();
    let text = |ids: &[u32]| -> crate::Result<String> {
        let whole = tokenizer.decode(ids, true)?;
        Ok(whole.strip_prefix(&start).map_or(whole.clone(), str::to_owned))
    };
    let mut hear = |token: u32| {
        made.push(token);
        if let (Some(on_text), Ok(text)) = (&on_text, text(&made)) {
            let _ = on_text.call1(&JsValue::NULL, &text.into());
        }
        if context.check().is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let new = generator.generate(&ids, &sampling, &mut hear).await?;
    context.check()?;
    Ok(text(&[&ids[..], &new].concat())?)
}
