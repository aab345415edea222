//! `potstill generate`: text from a model.

use super::args::{Cli, GenerateArgs};
use super::output::print;
use super::{interrupt, open_model};
use crate::distill::corpus::chat_template;
use crate::formats::Tokenizer;
use crate::generate::{Generator, Sampling};
use crate::tuning::tuned;
use crate::{Error, Result};
use serde_json::{Map, Value, json};

pub(super) fn run(cli: &Cli, args: &GenerateArgs) -> Result<()> {
    let device = tuned(pollster::block_on(cli.device.open())?);
    let model = open_model(&args.model)?;
    let tokenizer = model.tokenizer()?;
    let prompt = prompt(args, &tokenizer)?;
    let mut stop = model.eos_ids();
    stop.extend(tokenizer.eos_id());
    let context = prompt.len().saturating_add(args.max_tokens);
    let mut generator = Generator::new(&device, &model, context, tokenizer.vocab_size())?;
    let sampling = Sampling {
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed,
        stop,
    };
    interrupt::listen();
    let mut stream = tokenizer.decode_stream(&prompt, true)?;
    let mut failed = Ok(());
    let mut on_token = |token| {
        if !args.no_stream && failed.is_ok() {
            failed = stream.push(token).and_then(|text| print(&text));
        }
        if failed.is_err() { std::ops::ControlFlow::Break(()) } else { interrupt::flow() }
    };
    let new = pollster::block_on(generator.generate(&prompt, &sampling, &mut on_token))?;
    failed?;
    let rest = if args.no_stream { tokenizer.decode(&new, true)? } else { stream.finish()? };
    print(&format!("{rest}\n"))
}

fn prompt(args: &GenerateArgs, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let Some(chat) = &args.chat else {
        return tokenizer.encode(args.prompt.as_deref().unwrap_or_default(), true);
    };
    // Today's date, for templates that state it.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_secs() as i64);
    let template = chat_template(tokenizer, now)?.ok_or_else(|| {
        let place = Error::at(&args.model).expected("a chat template").found("none");
        place.help("use --prompt with a text in the form the model knows").error()
    })?;
    let message = |role: &str, content: &str| -> Map<String, Value> {
        json!({ "role": role, "content": content }).as_object().cloned().unwrap_or_default()
    };
    let system = args.system.as_ref().map(|text| message("system", text));
    let messages: Vec<_> = system.into_iter().chain([message("user", chat)]).collect();
    let text = template.render(&messages, &Value::Null, true, &args.model)?;
    tokenizer.encode(&text, false)
}
