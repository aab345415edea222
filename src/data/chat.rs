//! Chat templates: a conversation as the text its model expects.
//!
//! Templates are Jinja2 as transformers runs it: `trim_blocks` and `lstrip_blocks` on, loop controls,
//! `raise_exception`, `strftime_now`, a `tojson` that is Python's `json.dumps`, Python's string methods, and
//! `{% generation %}` blocks, which mark what the assistant says. They come with models from anywhere and are run, not
//! trusted: an error in one is an [`Error`], and they reach nothing outside themselves. [`super::turns`] finds the
//! assistant's words in what they write.

use std::collections::BTreeMap;
use std::fmt::Display;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, context};

use crate::data::python;
use crate::data::rows::Message;
use crate::{Error, Result};

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Whether it has `{% generation %}` blocks.
    marked: bool,
    place: String,
    special_tokens: BTreeMap<String, String>,
}

const NAME: &str = "chat_template";
/// The same template, writing [`OPEN`] and [`CLOSE`] around its generation blocks.
const MARKED: &str = "marked";
/// Code points that Unicode keeps free of meaning, for a program's own use.
pub(super) const OPEN: char = '\u{FDD0}';
/// See [`OPEN`].
pub(super) const CLOSE: char = '\u{FDD1}';

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
        environment.add_filter("generation", |said: String| format!("{OPEN}{said}{CLOSE}"));
        let (plain, blocks) = replace_generation_blocks(source, ("if true", "endif"));
        // A filter block takes the very place of the other, so that white space comes out the same.
        let (marking, _) = replace_generation_blocks(source, ("filter generation", "endfilter"));
        let mut add = |name: &'static str, source: String| {
            environment.add_template_owned(name, source).map_err(|error| {
                Error::at(place)
                    .field(NAME)
                    .expected("a Jinja template")
                    .found(describe(&error))
                    .help("correct the template, or give another with the recipe")
                    .error()
            })
        };
        add(NAME, plain)?;
        add(MARKED, marking)?;
        Ok(ChatTemplate { environment, marked: blocks > 0, place: place.to_string(), special_tokens })
    }

    /// Whether the template itself marks what the assistant says, with `{% generation %}` blocks.
    pub fn marks_generation(&self) -> bool {
        self.marked
    }

    /// What errors call the template.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// The end-of-sequence token's text, where the tokenizer has one.
    pub(super) fn eos_token(&self) -> Option<&str> {
        self.special_tokens.get("eos_token").map(String::as_str).filter(|eos| !eos.is_empty())
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
        self.render_as(NAME, messages, tools, generation_prompt, place)
    }

    /// [`ChatTemplate::render`] without generation prompt, with [`OPEN`] and [`CLOSE`] around generation blocks.
    pub(super) fn render_marked(
        &self,
        messages: &[Message],
        tools: &serde_json::Value,
        place: &dyn Display,
    ) -> Result<String> {
        self.render_as(MARKED, messages, tools, false, place)
    }

    fn render_as(
        &self,
        name: &str,
        messages: &[Message],
        tools: &serde_json::Value,
        generation_prompt: bool,
        place: &dyn Display,
    ) -> Result<String> {
        let turns: Vec<Value> = messages.iter().map(python::from_object).collect();
        let special = Value::from_pairs(self.special_tokens.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        let given = context! {
            messages => turns,
            tools => python::from_json(tools),
            documents => (),
            add_generation_prompt => generation_prompt,
        };
        let rendered = self.environment.get_template(name).and_then(|t| t.render(context! { ..given, ..special }));
        rendered.map_err(|error| {
            Error::at(place)
                .field(format!("the first {} messages", messages.len()))
                .expected(format!("what the chat template of {} renders", self.place))
                .found(describe(&error))
                .help("check the roles and their order")
                .error()
        })
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

/// The source with other keywords in the place of transformers' `{% generation %}` and `{% endgeneration %}`, their
/// white-space control kept, and how many were replaced.
fn replace_generation_blocks(source: &str, (begin, end): (&str, &str)) -> (String, usize) {
    let (mut out, mut replaced) = (String::new(), 0);
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open + 2);
        let word = tag.trim_start_matches(['-', '+']).trim_start();
        out.push_str(before);
        out.push_str(&tag[..tag.len() - word.len()]);
        rest = word;
        for (keyword, instead) in [("generation", begin), ("endgeneration", end)] {
            if let Some(after) = word.strip_prefix(keyword)
                && after.trim_start().trim_start_matches(['-', '+']).starts_with("%}")
            {
                out.push_str(instead);
                replaced += 1;
                rest = after;
            }
        }
    }
    (out + rest, replaced)
}
