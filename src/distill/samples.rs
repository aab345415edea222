//! Greedy continuations of held-out text before and after training, for the report.

use super::report;
use crate::Result;
use crate::formats::{Tokenizer, read_json_if_present, write_json};
use crate::generate::{Generator, Sampling};
use crate::graph::Store;
use crate::models::Decoder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

/// Texts that are continued.
pub const COUNT: usize = 3;
/// Tokens of each that are given.
pub const PROMPT_TOKENS: usize = 24;
/// Tokens that are generated.
const NEW_TOKENS: usize = 40;

/// A text and how a model goes on with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Continued {
    /// The beginning, from held-out text.
    pub prompt: String,
    /// The model's greedy continuation.
    pub continuation: String,
}

/// Continues each prompt with the parameters in `store`, in contexts of at most `context` tokens.
pub async fn write(
    decoder: &Decoder,
    store: &Store,
    tokenizer: &Tokenizer,
    prompts: &[Vec<u32>],
    context: usize,
) -> Result<Vec<Continued>> {
    if prompts.is_empty() {
        return Ok(Vec::new());
    }
    let parameters = decoder.parameters().into_iter().map(|spec| spec.name);
    let names: BTreeSet<String> = parameters.chain(decoder.rope_tables("")).collect();
    let own = store.share(|name| names.contains(name));
    let mut generator = Generator::over(decoder.clone(), own, context, tokenizer.vocab_size())?;
    let sampling =
        Sampling { max_tokens: NEW_TOKENS, stop: tokenizer.eos_id().into_iter().collect(), ..Sampling::default() };
    let mut samples = Vec::new();
    for prompt in prompts {
        let new = generator.generate(prompt, &sampling, &mut |_| ControlFlow::Continue(())).await?;
        let whole = tokenizer.decode(&[&prompt[..], &new].concat(), true)?;
        let prompt = tokenizer.decode(prompt, true)?;
        let continuation = whole.strip_prefix(&prompt).map(str::to_owned);
        let continuation = continuation.map_or_else(|| tokenizer.decode(&new, true), Ok)?;
        samples.push(Continued { prompt, continuation });
    }
    Ok(samples)
}

/// Keeps samples in the run's folder; `when` is `before` or `after`.
pub fn save(folder: &Path, when: &str, samples: &[Continued]) -> Result<()> {
    let value = serde_json::to_value(samples).map_err(|error| crate::Error::internal(error.to_string()))?;
    write_json(&folder.join(format!("samples-{when}.json")), &value)
}

/// The samples of a finished run, before and after side by side.
pub fn pairs(folder: &Path) -> Result<Vec<report::Sample>> {
    let [before, after] = ["before", "after"].map(|when| -> Result<Vec<Continued>> {
        let value = read_json_if_present(&folder.join(format!("samples-{when}.json")))?;
        Ok(value.and_then(|value| serde_json::from_value(value).ok()).unwrap_or_default())
    });
    let pair = |(before, after): (Continued, Continued)| report::Sample {
        prompt: after.prompt,
        before: before.continuation,
        after: after.continuation,
        teacher: None,
    };
    Ok(before?.into_iter().zip(after?).map(pair).collect())
}
