//! llama.cpp's server, which tells log-probabilities of generated tokens only (`n_probs`; those of prompts are proposed
//! in ggml-org/llama.cpp pull 15189). So each token of the text takes a request: its context as the prompt, of which the
//! server's cache knows all but one token, and one token generated.
//!
//! The probabilities are those before sampling (`post_sampling_probs: false`), a softmax of the plain logits. That
//! allows to force what is generated, with a bias that they do not see: the text's own next token. The answer then names it,
//! which shows that the server counts tokens as we do, and tells its log-probability even where it is not among the k.
//!
//! A generated token that is only the beginning of a character is not reported. In its place some other token is then
//! forced, and where the text's own is not among the k likeliest, the whole vocabulary is asked for.
//!
//! Cached and batched computations may differ in their last bits; what is recorded differs as little.

use super::dialect::{Position, Server, brief, malformed, other_ids};
use super::http::Failure;
use crate::error::Complaint;
use crate::{Error, Result};
use serde_json::{Value, json};

/// Far above the differences between logits.
const CERTAIN: f64 = 1e4;

/// The distribution behind `context`, whose next token in the text is `next`.
pub(super) fn position(server: &Server, context: &[u32], next: u32, place: &str) -> Result<Position> {
    let place = format!("{place}, token {} of it", context.len());
    let at = || Error::at(&place);
    let read = |answer: &Value, forced: u32| -> Result<Option<Told>, Failure> {
        let evaluated = answer.get("tokens_evaluated").and_then(Value::as_u64);
        if evaluated != Some(context.len() as u64) || answer.get("truncated").and_then(Value::as_bool) == Some(true) {
            let found = brief(answer.get("tokens_evaluated").unwrap_or(&Value::Null));
            let expected = format!("a prompt of {} tokens, not cut", context.len());
            return Err(other_ids(at().field("`tokens_evaluated`"), &expected, &found));
        }
        match answer.pointer("/completion_probabilities/0") {
            None => Ok(None),
            Some(told) => Told::read(told, forced, &at).map(Some),
        }
    };
    let finish = |told: Told, own: f64| server.position(told.top, own, &at);
    let ask = |forced: u32, probabilities: usize| (request(context, forced, probabilities), forced);

    let (body, forced) = ask(next, server.k);
    let answer = server.client.ask(PATH, Some(&body), &place, |answer| {
        let told = read(answer, forced)?;
        told.map(|told| {
            let own = told.own;
            finish(told, own)
        })
        .transpose()
    })?;
    if let Some(position) = answer {
        return Ok(position);
    }
    // The next token is a part of a character.
    for probabilities in [server.k, server.vocabulary] {
        let (body, forced) = ask(server.anchor, probabilities);
        let answer = server.client.ask(PATH, Some(&body), &place, |answer| {
            let told = read(answer, forced)?.ok_or_else(|| {
                malformed(at().field("`completion_probabilities`"), "log-probabilities of one token", answer)
            })?;
            let own = told.top.iter().find(|entry| entry.0 == next).map(|entry| entry.1);
            own.map(|own| finish(told, own)).transpose()
        })?;
        if let Some(position) = answer {
            return Ok(position);
        }
    }
    let complaint = at().expected(format!("the log-probability of token {next} among those of the whole vocabulary"));
    complaint.found("none").help("give the served model's tokenizer").err()
}

const PATH: &str = "/completion";

fn request(context: &[u32], forced: u32, probabilities: usize) -> Value {
    json!({
        "prompt": context, "n_predict": 1, "n_probs": probabilities, "post_sampling_probs": false, "stream": false,
        "cache_prompt": true, "samplers": ["top_k"], "top_k": 1, "temperature": 1.0,
        "logit_bias": [[forced, CERTAIN]],
    })
}

/// What an answer tells of the one token it generated.
struct Told {
    own: f64,
    top: Vec<(u32, f64)>,
}

impl Told {
    fn read(told: &Value, forced: u32, at: &dyn Fn() -> Complaint) -> Result<Told, Failure> {
        let pair = |entry: &Value| {
            let id = entry.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
            Some((id?, entry.get("logprob")?.as_f64()?))
        };
        let top = told.get("top_logprobs").and_then(Value::as_array);
        let top = top.and_then(|top| top.iter().map(pair).collect::<Option<Vec<_>>>());
        let (Some((id, own)), Some(top)) = (pair(told), top) else {
            let expected = "`id`, `logprob` and `top_logprobs` (a server from December 2024 or later)";
            return Err(malformed(at().field("`completion_probabilities`"), expected, told));
        };
        if id != forced {
            let expected = format!("token {forced}, which was asked for");
            return Err(other_ids(at().field("`completion_probabilities`"), &expected, &id.to_string()));
        }
        Ok(Told { own, top })
    }
}
