//! What each server is asked and how it answers.
//!
//! - **vLLM** `/v1/completions` with `prompt_logprobs`: for each prompt token a map from ids to log-probabilities, of the
//!   k likeliest tokens and of the prompt's own. Its defaults may come from the model's `generation_config.json`, so
//!   every sampling parameter is sent. vLLM writes -9999 for minus infinity.
//! - **SGLang** `/generate` with `return_logprob`: `[log-probability, id, text]` of each prompt token, and k triples more.
//! - **llama.cpp** tells nothing of a prompt's tokens: see [`super::llama_cpp`].
//!
//! All of them number prompt tokens from 0 and tell nothing of token 0. What they tell of token t + 1 is row t.

use super::http::{Client, Failure};
use super::{EndpointOptions, llama_cpp};
use crate::error::Complaint;
use crate::formats::Tokenizer;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Rounding may push a probability above 1 by this much; what is above is no log-probability.
const SLACK: f64 = 1e-3;

/// A server's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// vLLM's `/v1/completions`.
    Vllm,
    /// SGLang's `/generate`.
    Sglang,
    /// llama.cpp's `/completion`, one request a token.
    LlamaCpp,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Dialect; 3] = [Dialect::Vllm, Dialect::Sglang, Dialect::LlamaCpp];

    /// Its name on the command line and in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Vllm => "vllm",
            Dialect::Sglang => "sglang",
            Dialect::LlamaCpp => "llama-cpp",
        }
    }

    /// Who owns its models, as `/v1/models` says.
    fn owner(self) -> &'static str {
        match self {
            Dialect::Vllm => "vllm",
            Dialect::Sglang => "sglang",
            Dialect::LlamaCpp => "llamacpp",
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Dialect {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let unknown = || format!("dialect {name:?} is none of vllm, sglang, llama-cpp");
        Dialect::ALL.into_iter().find(|dialect| dialect.name() == name).ok_or_else(unknown)
    }
}

/// Asks a server for its models: tells by their owner what it is, and checks that `model` is one of them.
pub(super) fn probe(client: &Client, model: &str) -> Result<Dialect> {
    let place = "the server";
    client.ask("/v1/models", None, place, |answer| {
        let models = answer.get("data").and_then(Value::as_array).filter(|models| !models.is_empty());
        let Some(models) = models else {
            let complaint = Error::at(place).field("`data`").expected("a list of models").found(brief(answer));
            return Err(Failure::lasting(complaint.help("check the address, or name the API with --dialect").error()));
        };
        let text = |model: &Value, key: &str| model.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        let names: Vec<String> = models.iter().map(|model| text(model, "id")).collect();
        let Some(found) = models.iter().find(|entry| text(entry, "id") == model) else {
            let complaint = Error::at(place).field("`model`").expected(format!("one of {}", names.join(", ")));
            return Err(Failure::lasting(complaint.found(model).help("give one of these names").error()));
        };
        let owner = text(found, "owned_by");
        Dialect::ALL.into_iter().find(|dialect| dialect.owner() == owner).ok_or_else(|| {
            let complaint = Error::at(place).field("`owned_by` of its model").expected("vllm, sglang or llamacpp");
            let help =
                "say with --dialect which API it has; one that tells no log-probabilities of prompts cannot be used";
            Failure::lasting(complaint.found(format!("{owner:?}")).help(help).error())
        })
    })
}

/// What is known of the distribution behind one token.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Position {
    /// Negative log-probability of the token that follows in the text, nats.
    pub nll: f32,
    /// The k likeliest ids and their log-probabilities.
    pub entries: Vec<(u32, f32)>,
    /// Mass of all other ids.
    pub tail: f32,
}

/// A server and what it is asked for.
pub(super) struct Server {
    pub client: Client,
    dialect: Dialect,
    model: String,
    pub k: usize,
    pub vocabulary: usize,
    /// A token of plain text.
    pub anchor: u32,
}

impl Server {
    pub fn new(client: Client, dialect: Dialect, options: &EndpointOptions, tokenizer: &Tokenizer) -> Result<Server> {
        let anchor = tokenizer.encode("a", false)?.first().copied();
        let anchor =
            anchor.ok_or_else(|| Error::at("the tokenizer").expected("a token for `a`").found("none").error())?;
        let (k, vocabulary) = (options.top_k as usize, tokenizer.vocab_size());
        Ok(Server { client, dialect, model: options.model.clone(), k, vocabulary, anchor })
    }

    /// What ends every wait.
    pub fn stop(&self) -> Arc<AtomicBool> {
        self.client.stop.clone()
    }

    /// The distributions behind all tokens of `prompt` but the last, which are those of the tokens 1.. in it. `place`
    /// heads every message.
    pub fn positions(&self, prompt: &[u32], place: &str) -> Result<Vec<Position>> {
        if prompt.len() < 2 {
            return Ok(Vec::new());
        }
        match self.dialect {
            Dialect::Vllm => {
                let read = |answer: &Value| self.read_vllm(answer, prompt, place);
                self.client.ask("/v1/completions", Some(&self.vllm(prompt)), place, read)
            }
            Dialect::Sglang => {
                let read = |answer: &Value| self.read_sglang(answer, prompt, place);
                self.client.ask("/generate", Some(&self.sglang(prompt)), place, read)
            }
            Dialect::LlamaCpp => {
                (1..prompt.len()).map(|t| llama_cpp::position(self, &prompt[..t], prompt[t], place)).collect()
            }
        }
    }

    fn vllm(&self, prompt: &[u32]) -> Value {
        json!({
            "model": self.model, "prompt": prompt, "prompt_logprobs": self.k, "max_tokens": 1, "stream": false,
            "add_special_tokens": false, "return_tokens_as_token_ids": true, "temperature": 1.0, "top_p": 1.0,
            "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        })
    }

    fn read_vllm(&self, answer: &Value, prompt: &[u32], place: &str) -> Result<Vec<Position>, Failure> {
        let choice = answer.pointer("/choices/0");
        let choice = choice.ok_or_else(|| malformed(Error::at(place).field("`choices`"), "a completion", answer))?;
        if let Some(ids) = choice.get("prompt_token_ids").filter(|ids| !ids.is_null())
            && *ids != json!(prompt)
        {
            return Err(other_ids(Error::at(place).field("`prompt_token_ids`"), &format!("{prompt:?}"), &brief(ids)));
        }
        let told = list(choice, "prompt_logprobs", prompt.len(), place)?;
        let mut positions = Vec::with_capacity(prompt.len());
        for (t, told) in told.iter().enumerate().skip(1) {
            let at = || Error::at(place).field(format!("prompt_logprobs[{t}]"));
            let map = told.as_object().ok_or_else(|| malformed(at(), "log-probabilities by token id", told))?;
            let mut entries = Vec::with_capacity(map.len());
            for (id, entry) in map {
                let log_prob = entry.get("logprob").and_then(Value::as_f64);
                let (Ok(id), Some(log_prob)) = (id.parse::<u32>(), log_prob) else {
                    return Err(malformed(at(), "token ids, each with its `logprob`", &json!({ id: entry })));
                };
                entries.push((id, log_prob, entry.get("rank").and_then(Value::as_u64)));
            }
            let Some(own) = entries.iter().find(|entry| entry.0 == prompt[t]).map(|entry| entry.1) else {
                let found = entries.iter().map(|entry| entry.0.to_string()).collect::<Vec<_>>().join(", ");
                return Err(other_ids(at(), &format!("{}, the token that was sent, among them", prompt[t]), &found));
            };
            self.check_ranks(&entries, &at)?;
            positions.push(self.position(entries.iter().map(|e| (e.0, e.1)).collect(), own, &at)?);
        }
        Ok(positions)
    }

    /// Where ranks are told, an entry of rank r has at least r - 1 others that are no less likely: a hole shows.
    fn check_ranks(&self, entries: &[(u32, f64, Option<u64>)], at: &dyn Fn() -> Complaint) -> Result<(), Failure> {
        for &(id, log_prob, rank) in entries {
            let Some(rank) = rank.filter(|&rank| rank <= self.k as u64) else { continue };
            let as_likely = entries.iter().filter(|entry| entry.1 >= log_prob).count() as u64;
            if as_likely < rank {
                let expected = format!("{rank} tokens down to token {id} of rank {rank}");
                return Err(malformed(at(), &expected, &json!(as_likely)));
            }
        }
        Ok(())
    }

    fn sglang(&self, prompt: &[u32]) -> Value {
        json!({
            "input_ids": prompt, "return_logprob": true, "logprob_start_len": 0, "top_logprobs_num": self.k,
            "return_text_in_logprobs": false, "stream": false,
            "sampling_params": {
                "max_new_tokens": 1, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0,
                "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
            },
        })
    }

    fn read_sglang(&self, answer: &Value, prompt: &[u32], place: &str) -> Result<Vec<Position>, Failure> {
        let told = answer.get("meta_info");
        let told = told.ok_or_else(|| malformed(Error::at(place).field("`meta_info`"), "it", answer))?;
        let own = list(told, "input_token_logprobs", prompt.len(), place)?;
        let top = list(told, "input_top_logprobs", prompt.len(), place)?;
        let pair = |entry: &Value| {
            let id = entry.get(1).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
            Some((id?, entry.get(0)?.as_f64()))
        };
        let mut positions = Vec::with_capacity(prompt.len());
        for (t, (own, top)) in own.iter().zip(top).enumerate() {
            let at = || Error::at(place).field(format!("input_token_logprobs[{t}]"));
            let triple = "[log-probability, token id, text]";
            let (id, log_prob) = pair(own).ok_or_else(|| malformed(at(), triple, own))?;
            if id != prompt[t] {
                return Err(other_ids(at(), &format!("token {}, which was sent", prompt[t]), &id.to_string()));
            }
            if t == 0 {
                continue;
            }
            let log_prob = log_prob.ok_or_else(|| malformed(at(), triple, own))?;
            let at = || Error::at(place).field(format!("input_top_logprobs[{t}]"));
            let known = |entry: &Value| pair(entry).and_then(|(id, log_prob)| Some((id, log_prob?)));
            let entries = top.as_array().and_then(|top| top.iter().map(known).collect::<Option<Vec<_>>>());
            let entries = entries.ok_or_else(|| malformed(at(), &format!("a list of {triple}"), top))?;
            positions.push(self.position(entries, log_prob, &at)?);
        }
        Ok(positions)
    }

    /// The k likeliest of `entries` (equal ones by id), checked. `own` is the log-probability of the text's next token.
    pub fn position(
        &self,
        mut entries: Vec<(u32, f64)>,
        own: f64,
        at: &dyn Fn() -> Complaint,
    ) -> Result<Position, Failure> {
        entries.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        entries.truncate(self.k);
        if entries.len() < self.k {
            let help =
                "start the server so that it shows as many (vLLM: --max-logprobs), or capture with a smaller --top-k";
            let complaint = at().expected(format!("{} tokens", self.k)).found(entries.len());
            return Err(Failure::lasting(complaint.help(help).error()));
        }
        if let Some((id, _)) = entries.iter().find(|entry| entry.0 as usize >= self.vocabulary) {
            let complaint = at().expected(format!("ids below {}, the tokenizer's", self.vocabulary)).found(id);
            let help = "give the served model's tokenizer; if it is, the server likes an id that is only padding: \
                        capture with a smaller --top-k";
            return Err(Failure::lasting(complaint.help(help).error()));
        }
        let sum: f64 = entries.iter().map(|entry| entry.1.exp()).sum();
        // Not `sum > ..`, which lets NaN pass.
        if !(sum <= 1.0 + SLACK && own <= SLACK) {
            let complaint = at().expected("log-probabilities of one distribution").found(format!("a sum of {sum}"));
            let help = "have the server tell those of the model itself (vLLM: --logprobs-mode raw_logprobs)";
            return Err(Failure::lasting(complaint.help(help).error()));
        }
        let nll = (-own).clamp(0.0, f64::from(f32::MAX)) as f32;
        let entries = entries.into_iter().map(|(id, l)| (id, l.clamp(f64::from(f32::MIN), 0.0) as f32)).collect();
        Ok(Position { nll, entries, tail: (1.0 - sum).max(0.0) as f32 })
    }
}

/// A list of a known length, of which an answer is made.
fn list<'a>(told: &'a Value, key: &str, length: usize, place: &str) -> Result<&'a [Value], Failure> {
    let at = || Error::at(place).field(format!("`{key}`"));
    match told.get(key) {
        Some(Value::Array(items)) if items.len() == length => Ok(items),
        Some(Value::Array(items)) => {
            Err(other_ids(at(), &format!("{length} items, one for each token sent"), &items.len().to_string()))
        }
        None | Some(Value::Null) => {
            let complaint = at().expected("log-probabilities of the prompt's tokens").found("none");
            let help = "check what the server is and say so with --dialect; OpenAI's own API tells none";
            Err(Failure::lasting(complaint.help(help).error()))
        }
        Some(other) => Err(malformed(at(), "a list", other)),
    }
}

/// Something that no server of this kind says: perhaps an answer damaged on its way.
pub(super) fn malformed(at: Complaint, expected: &str, found: &Value) -> Failure {
    let help = "check what the server is and say so with --dialect";
    Failure::passing(at.expected(expected).found(brief(found)).help(help).error())
}

/// The server has not read what was sent.
pub(super) fn other_ids(at: Complaint, expected: &str, found: &str) -> Failure {
    let help = "the server has to take token ids as they are: give the served model's tokenizer, and no proxy that \
                changes prompts";
    Failure::lasting(at.expected(brief(&expected.into())).found(brief(&found.into())).help(help).error())
}

/// A value as it may stand in a message.
pub(super) fn brief(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
