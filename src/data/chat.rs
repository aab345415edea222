//! Chat templates, and which bytes of a rendered conversation the assistant spoke.
//!
//! Templates are Jinja2 as transformers runs it: `trim_blocks` and `lstrip_blocks` on, loop controls,
//! `raise_exception`, `strftime_now`, a `tojson` that is Python's `json.dumps`, Python's string methods, and
//! `{% generation %}` blocks, which only mark text and are passed through. They come with models from anywhere and are
//! run, not trusted: an error in one is an [`Error`], and they reach nothing outside themselves.
//!
//! A template does not say who speaks where. The span of an assistant's turn `i` is found by rendering prefixes: it
//! begins where turns `0..i` with the generation prompt end and ends where turns `0..=i` end. That holds only while
//! each such prefix is a prefix of the whole, which is checked; a template that rewrites earlier turns is refused.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, context};

use crate::data::python;
use crate::data::rows::{Chat, Message};
use crate::{Error, Result};

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    place: String,
    special_tokens: BTreeMap<String, String>,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles `source`. `place` names the file it came from; `special_tokens` maps `bos_token`, `eos_token` and so on
    /// to their texts, as the tokenizer's configuration has them.
    ///
    /// `now` is what `strftime_now` tells, in seconds since 1970 (UTC): some templates write the date into every
    /// prompt, and a corpus that is tokenised again must come out the same, so the caller chooses and keeps the time.
    pub fn new(place: &str, source: &str, special_tokens: BTreeMap<String, String>, now: i64) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| Error::internal(error.to_string()))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(python::print);
        environment.add_filter("tojson", python::to_json);
        environment.add_function("strftime_now", move |format: &str| python::strftime(format, now));
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, pass_generation_blocks(source)).map_err(|error| {
            Error::at(place)
                .field(NAME)
                .expected("a Jinja template")
                .found(describe(&error))
                .help("correct the template, or give another with the recipe")
                .error()
        })?;
        Ok(ChatTemplate { environment, place: place.to_string(), special_tokens })
    }

    /// The conversation as text, as `apply_chat_template(..., tokenize=False)` of transformers writes it. `tools` is a
    /// list, or null; `place` says where the messages came from, for the error if the template refuses them. Special
    /// tokens are in the text: encode it without adding any.
    pub fn render(
        &self,
        messages: &[Message],
        tools: &serde_json::Value,
        generation_prompt: bool,
        place: &dyn Display,
    ) -> Result<String> {
        self.render_turns(messages, tools, generation_prompt).map_err(|error| {
            Error::at(place)
                .field(format!("the first {} messages", messages.len()))
                .expected(format!("what the chat template of {} renders", self.place))
                .found(describe(&error))
                .help("check the roles and their order")
                .error()
        })
    }

    fn render_turns(
        &self,
        messages: &[Message],
        tools: &serde_json::Value,
        generation_prompt: bool,
    ) -> Result<String, minijinja::Error> {
        let messages: Vec<Value> = messages.iter().map(python::from_object).collect();
        let special = Value::from_pairs(self.special_tokens.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        let given = context! {
            messages => messages,
            tools => python::from_json(tools),
            documents => (),
            add_generation_prompt => generation_prompt,
        };
        self.environment.get_template(NAME)?.render(context! { ..given, ..special })
    }

    /// The conversation as text, and the byte ranges of it that the assistant spoke from turn `chat.learned_from` on:
    /// content and end-of-turn token, without headers and without white space after the end-of-sequence token, which
    /// no one samples. `place` is where the row came from.
    ///
    /// Errors if the template refuses the messages, if no assistant turn is there to learn, or if the template's
    /// prefixes are not prefixes.
    pub fn render_learned(&self, chat: &Chat, place: &dyn Display) -> Result<(String, Vec<Range<usize>>)> {
        let render = |turns: usize, generation_prompt: bool| {
            let messages = chat.messages.get(..turns).unwrap_or(&chat.messages);
            self.render(messages, &chat.tools, generation_prompt, place)
        };
        let whole = render(chat.messages.len(), false)?;
        let mut spans = Vec::new();
        for (turn, message) in chat.messages.iter().enumerate().skip(chat.learned_from) {
            if message.get("role").and_then(|role| role.as_str()) != Some("assistant") {
                continue;
            }
            let before = render(turn, true)?;
            let after = render(turn + 1, false)?;
            if !whole.starts_with(&after) || !after.starts_with(&before) {
                return Err(self.not_a_prefix(
                    place,
                    turn,
                    if after.starts_with(&before) { &whole } else { &before },
                    &after,
                ));
            }
            spans.push(before.len()..before.len() + self.spoken(&after[before.len()..]));
        }
        if spans.is_empty() {
            return Error::at(place)
                .field("messages")
                .expected("an assistant's turn to learn")
                .found(format!("none among {}", chat.messages.len()))
                .help("remove the row, or train on all tokens with `train_on_inputs: true`")
                .err();
        }
        Ok((whole, spans))
    }

    /// The length of a turn up to its end-of-sequence token, where only white space follows that.
    fn spoken(&self, turn: &str) -> usize {
        let text = turn.trim_end();
        match self.special_tokens.get("eos_token") {
            Some(eos) if !eos.is_empty() && text.ends_with(eos.as_str()) => text.len(),
            _ => turn.len(),
        }
    }

    fn not_a_prefix(&self, place: &dyn Display, turn: usize, one: &str, other: &str) -> Error {
        let same: usize = one.chars().zip(other.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
        let show = |text: &str| format!("{:?}", text[same..].chars().take(40).collect::<String>());
        Error::at(place)
            .field(format!("messages[{turn}]"))
            .expected("a chat template that only appends, so that each turn's tokens can be told apart")
            .found(format!(
                "the template of {} writes {} in one rendering and {} in another at byte {same}",
                self.place,
                show(one),
                show(other)
            ))
            .help(
                "it rewrites earlier turns or its generation prompt is no part of the turn: split the conversation \
                 into `prompt` and `completion` rows of text, or train on all tokens with `train_on_inputs: true`",
            )
            .error()
    }
}

/// A template error in one line, with what caused it.
fn describe(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Turns transformers' `{% generation %}` blocks into blocks that do nothing, keeping their white-space control.
fn pass_generation_blocks(source: &str) -> String {
    let mut out = String::new();
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open + 2);
        let word = tag.trim_start_matches(['-', '+']).trim_start();
        out.push_str(before);
        out.push_str(&tag[..tag.len() - word.len()]);
        rest = word;
        for (keyword, instead) in [("generation", "if true"), ("endgeneration", "endif")] {
            if let Some(after) = word.strip_prefix(keyword)
                && after.trim_start().trim_start_matches(['-', '+']).starts_with("%}")
            {
                out.push_str(instead);
                rest = after;
            }
        }
    }
    out + rest
}
