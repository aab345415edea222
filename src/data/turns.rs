//! Which bytes of a rendered conversation the assistant spoke.
//!
//! Where a template has `{% generation %}` blocks, they say it, as in transformers' `return_assistant_tokens_mask`.
//!
//! Other templates do not say who speaks where, so it is found by rendering the conversation again:
//!
//! - A turn **begins** where the turns before it with the generation prompt end: what a model at work is given, it need
//!   not learn to say. A prompt that also opens the answer (`<think>`) counts as far as the conversation agrees.
//! - A turn **ends** where it ends when it is the last: its content, its tool calls and the end-of-turn token. Some
//!   templates write the last turn in another way (Qwen3 gives it an empty `<think>` block). Then the turn's content is
//!   replaced by two words that share no first and no last letter. What both renderings share behind the words is
//!   what the template writes behind the content; the end-of-turn token is what it writes behind a last turn's.
//!
//! All this holds only while the whole conversation agrees with those renderings, to the byte, which is checked. A
//! template for which it does not is refused: the error names the document and the turn.

use std::fmt::Display;
use std::ops::Range;

use super::chat::{CLOSE, ChatTemplate, OPEN};
use super::rows::{Chat, Message};
use crate::{Error, Result};

/// Stand-ins for a turn's content, of which no template is likely to change a letter.
const WORDS: [&str; 2] = ["alpha", "omen"];

impl ChatTemplate {
    /// The conversation as text, and the byte ranges of it that the assistant spoke from turn `chat.learned_from` on:
    /// in order, apart and none empty. Tool calls are spoken; what tools answer is not. With generation blocks the
    /// ranges are theirs; without, they are content and end-of-turn token, without headers and without white space
    /// after the end-of-sequence token, which no one samples. `place` is where the row came from.
    ///
    /// Errors if the template refuses the messages, if no assistant turn is there to learn, or if a turn's bytes cannot
    /// be told apart.
    pub fn render_learned(&self, chat: &Chat, place: &dyn Display) -> Result<(String, Vec<Range<usize>>)> {
        let whole = self.render(&chat.messages, &chat.tools, false, place)?;
        let turns = Turns { template: self, chat, whole: &whole, place };
        let mut spans = if self.marks_generation() { turns.marked()? } else { turns.found()? };
        spans.retain(|span| !span.is_empty());
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
}

/// One conversation and its rendering.
struct Turns<'a> {
    template: &'a ChatTemplate,
    chat: &'a Chat,
    whole: &'a str,
    place: &'a dyn Display,
}

impl Turns<'_> {
    /// The spans of the template's own generation blocks, but for those of turns that are given.
    fn marked(&self) -> Result<Vec<Range<usize>>> {
        let render = |turns: &[Message]| self.template.render_marked(turns, &self.chat.tools, self.place);
        let Some((_, mut spans)) = unmark(&render(&self.chat.messages)?).filter(|(text, _)| text == self.whole) else {
            return Error::at(self.place)
                .field("messages")
                .expected(format!(
                    "generation blocks that only mark text, as those of {} should",
                    self.template.place()
                ))
                .found("another text where they do")
                .help("the template nests or leaves such blocks, or a message holds U+FDD0 or U+FDD1: correct it")
                .err();
        };
        if self.chat.learned_from > 0 {
            let given = render(self.chat.messages.get(..self.chat.learned_from).unwrap_or_default())?;
            let given = given.matches(OPEN).count().min(spans.len());
            spans.drain(..given);
        }
        Ok(spans)
    }

    /// The spans of assistant turns, found by rendering.
    fn found(&self) -> Result<Vec<Range<usize>>> {
        let mut spans: Vec<Range<usize>> = Vec::new();
        for (turn, message) in self.chat.messages.iter().enumerate().skip(self.chat.learned_from) {
            if message.get("role").and_then(|role| role.as_str()) != Some("assistant") {
                continue;
            }
            let span = self.turn(turn)?;
            if spans.last().is_some_and(|last| last.end > span.start) {
                return Err(self.refuse(turn, "an end of the turn before that lies behind this one's beginning"));
            }
            spans.push(span);
        }
        Ok(spans)
    }

    fn turn(&self, turn: usize) -> Result<Range<usize>> {
        let messages = &self.chat.messages;
        let before = self.render(&messages[..turn], true)?;
        let after = self.render(&messages[..=turn], false)?;
        if self.whole.starts_with(&after) && after.starts_with(&before) {
            let end = before.len() + self.spoken(&after[before.len()..]);
            // Some templates write an end-of-sequence token behind every turn but the last.
            let rest = &self.whole[end..];
            let more = self.template.eos_token().filter(|eos| !after[..end].ends_with(eos) && rest.starts_with(eos));
            return Ok(before.len()..end + more.map_or(0, str::len));
        }
        let around = self.around(turn)?;
        let start = self.start(turn, &before, &around)?;
        let end = self.end(turn, &around)?;
        if start > end { Err(self.refuse(turn, "an end before the beginning")) } else { Ok(start..end) }
    }

    /// The length of a turn up to its end-of-sequence token, where only white space follows that.
    fn spoken(&self, turn: &str) -> usize {
        let text = turn.trim_end();
        match self.template.eos_token() {
            Some(eos) if text.ends_with(eos) => text.len(),
            _ => turn.len(),
        }
    }

    /// What the whole conversation holds before and after the turn's content, by substituting that.
    fn around(&self, turn: usize) -> Result<Around> {
        let mut messages = self.chat.messages.clone();
        let around = self.around_words(turn, |word| {
            messages[turn] = said(word);
            self.render(&messages, false)
        })?;
        let fits = self.whole.ends_with(&around.after);
        match fits {
            true => Ok(around),
            false => Err(self.refuse(turn, "other text behind the turn when its content is another")),
        }
    }

    /// What the renderings of both words share.
    fn around_words(&self, turn: usize, render: impl FnMut(&'static str) -> Result<String>) -> Result<Around> {
        // A template may refuse a conversation in which the turn says something else.
        match WORDS.map(render) {
            [Ok(one), Ok(other)] => Around::of(&one, &other),
            _ => None,
        }
        .ok_or_else(|| self.refuse(turn, "the turn's content not once as it is"))
    }

    /// Where the turn begins: behind the generation prompt, as far as the conversation agrees with that.
    fn start(&self, turn: usize, before: &str, around: &Around) -> Result<usize> {
        if self.whole.starts_with(before) {
            return Ok(before.len());
        }
        let history = self.render(&self.chat.messages[..turn], false)?;
        let common = common_prefix(before, self.whole);
        // The words' renderings tell header from answer where prompt and answer begin alike by chance.
        let header = common_prefix(&around.before, self.whole).min(common);
        match self.whole.starts_with(&history) && header > history.len() {
            true => Ok(header),
            false => Err(self.refuse(turn, "earlier turns rewritten, or no header that the generation prompt shares")),
        }
    }

    /// Where the turn ends: behind its end-of-turn token.
    fn end(&self, turn: usize, around: &Around) -> Result<usize> {
        let mut messages = self.chat.messages[..=turn].to_vec();
        let last = self.around_words(turn, |word| {
            messages[turn] = said(word);
            self.render(&messages, false)
        })?;
        let last = last.after;
        let closing = &last[..self.spoken(&last)];
        match around.after.starts_with(closing) {
            true => Ok(self.whole.len() - around.after.len() + closing.len()),
            false => Err(self.refuse(turn, "another end of the turn when it is the last")),
        }
    }

    fn render(&self, messages: &[Message], generation_prompt: bool) -> Result<String> {
        self.template.render(messages, &self.chat.tools, generation_prompt, self.place)
    }

    fn refuse(&self, turn: usize, found: &str) -> Error {
        Error::at(self.place)
            .field(format!("messages[{turn}]"))
            .expected("a chat template that only appends, so that each turn's tokens can be told apart")
            .found(format!("{found} (the template of {})", self.template.place()))
            .help(
                "give the template `{% generation %}` blocks around what the assistant says, split the conversation \
                 into `prompt` and `completion` rows of text, or train on all tokens with `train_on_inputs: true`",
            )
            .error()
    }
}

/// An assistant's turn of one word.
fn said(word: &str) -> Message {
    Message::from_iter([("role".to_string(), "assistant".into()), ("content".to_string(), word.into())])
}

/// What two renderings that differ in one content share before and after it.
struct Around {
    before: String,
    after: String,
}

impl Around {
    /// `None` unless the words of [`WORDS`] are all that differs.
    fn of(one: &str, other: &str) -> Option<Around> {
        let start = common_prefix(one, other);
        let (one_rest, other_rest) = (&one[start..], &other[start..]);
        let back = one_rest.chars().rev().zip(other_rest.chars().rev()).take_while(|(a, b)| a == b);
        let length = back.map(|(c, _)| c.len_utf8()).sum::<usize>();
        let (word, after) = one_rest.split_at(one_rest.len() - length);
        let found = word == WORDS[0] && &other_rest[..other_rest.len() - length] == WORDS[1];
        found.then(|| Around { before: one[..start].to_string(), after: after.to_string() })
    }
}

/// The bytes that two texts share from their beginning on, whole characters.
fn common_prefix(one: &str, other: &str) -> usize {
    one.chars().zip(other.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum()
}

/// A text without its marks, and the ranges between them; `None` unless they open and close in turn.
fn unmark(marked: &str) -> Option<(String, Vec<Range<usize>>)> {
    let (mut text, mut spans, mut open) = (String::with_capacity(marked.len()), Vec::new(), None);
    for c in marked.chars() {
        match (c, open) {
            (OPEN, None) => open = Some(text.len()),
            (CLOSE, Some(start)) => {
                spans.push(start..text.len());
                open = None;
            }
            (OPEN | CLOSE, _) => return None,
            _ => text.push(c),
        }
    }
    open.is_none().then_some((text, spans))
}
