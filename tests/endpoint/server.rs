//! A server of this test's own on loopback, which answers as vLLM, SGLang or llama.cpp do with what a small model says
//! of some known prompts, and misbehaves on request.

use potstill::score::Scored;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// One request as it came in.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub headers: String,
    pub body: Value,
    /// The token ids it is about.
    pub prompt: Vec<u32>,
    pub at: Instant,
}

/// What goes back.
pub enum Reply {
    Json(Value),
    Status(&'static str, &'static str, String),
    /// Only the first half of the body that the header promises.
    Cut(Value),
    /// Nothing for a while, then the answer.
    Late(Duration, Value),
    /// The connection ends without a word.
    Hang,
}

type Answer = dyn Fn(&Asked, usize) -> Reply + Send + Sync;

pub struct Server {
    pub url: String,
    log: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// `answer` hears each request with the number of earlier ones for the same prompt.
    pub fn start(answer: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (shared, answer): (_, Arc<Answer>) = (log.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (shared.clone(), answer.clone());
                thread::spawn(move || {
                    let mut input = BufReader::new(stream.try_clone().unwrap());
                    while serve(&stream, &mut input, &log, &*answer).is_some() {}
                });
            }
        });
        Server { url, log }
    }

    /// Requests for distributions so far; the log begins anew.
    pub fn asked(&self) -> Vec<Asked> {
        let all = std::mem::take(&mut *self.log.lock().unwrap());
        all.into_iter().filter(|asked| asked.path != "/v1/models").collect()
    }
}

/// Reads one request and answers it; `None` ends the connection.
fn serve(mut stream: &TcpStream, input: &mut impl BufRead, log: &Mutex<Vec<Asked>>, answer: &Answer) -> Option<()> {
    let mut lines = input.by_ref().lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_string();
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let length =
        headers.iter().find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    input.read_exact(&mut body).ok()?;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let ids = body.get("prompt").or_else(|| body.get("input_ids")).cloned().unwrap_or_default();
    let prompt = serde_json::from_value(ids).unwrap_or_default();
    let asked = Asked { path, headers: headers.join("\n"), body, prompt, at: Instant::now() };
    let number = {
        let mut log = log.lock().unwrap();
        let number = log.iter().filter(|other| other.path == asked.path && other.prompt == asked.prompt).count();
        log.push(asked.clone());
        number
    };
    let mut send = |status: &str, extra: &str, body: &[u8], length: usize| {
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{extra}content-length: {length}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), body].concat()).ok()
    };
    match answer(&asked, number) {
        Reply::Json(value) => {
            let body = value.to_string();
            send("200 OK", "", body.as_bytes(), body.len())
        }
        Reply::Status(status, extra, body) => send(status, extra, body.as_bytes(), body.len()),
        Reply::Cut(value) => {
            let body = value.to_string();
            send("200 OK", "", &body.as_bytes()[..body.len() / 2], body.len());
            stream.shutdown(std::net::Shutdown::Both).ok();
            None
        }
        Reply::Late(wait, value) => {
            thread::sleep(wait);
            let body = value.to_string();
            send("200 OK", "", body.as_bytes(), body.len())
        }
        Reply::Hang => {
            stream.shutdown(std::net::Shutdown::Both).ok();
            None
        }
    }
}

/// What a model says of the prompts it will be asked about, and of each beginning of theirs.
#[derive(Default)]
pub struct Known {
    pub prompts: HashMap<Vec<u32>, Arc<Scored>>,
    pub beginnings: HashMap<Vec<u32>, Arc<Scored>>,
    /// Token ids that are only a part of a character.
    pub partial: Vec<u32>,
    pub vocabulary: u32,
}

impl Known {
    pub fn add(&mut self, prompt: &[u32], scored: Scored) {
        let scored = Arc::new(scored);
        for end in 1..prompt.len() {
            self.beginnings.insert(prompt[..end].to_vec(), scored.clone());
        }
        self.prompts.insert(prompt.to_vec(), scored);
    }

    /// The k likeliest tokens at position t and the prompt's own: `(id, log-probability, rank)`.
    fn told(&self, prompt: &[u32], scored: &Scored, t: usize, k: usize) -> Vec<(u32, f32, usize)> {
        let top = &scored.top[t];
        let mut told: Vec<_> = top.iter().take(k).enumerate().map(|(i, &(id, l))| (id, l, i + 1)).collect();
        if told.iter().all(|entry| entry.0 != prompt[t]) {
            let own = scored.log_probs[t].unwrap();
            told.push((prompt[t], own, 1 + top.iter().filter(|entry| entry.1 > own).count()));
        }
        told
    }

    pub fn vllm(&self, asked: &Asked) -> Value {
        let prompt = &asked.prompt;
        let scored = self.prompts.get(prompt).unwrap_or_else(|| panic!("nobody should ask for {prompt:?}"));
        let k = asked.body["prompt_logprobs"].as_u64().unwrap() as usize;
        let mut positions = vec![Value::Null];
        for t in 1..prompt.len() {
            let entry = |(id, l, rank): (u32, f32, usize)| {
                (id.to_string(), json!({"logprob": l, "rank": rank, "decoded_token": "x"}))
            };
            // The prompt's own token first, as vLLM has it.
            let mut told = self.told(prompt, scored, t, k);
            told.sort_by_key(|entry| entry.0 != prompt[t]);
            positions.push(Value::Object(told.into_iter().map(entry).collect()));
        }
        json!({"object": "text_completion", "choices": [{"index": 0, "text": "a", "prompt_logprobs": positions}]})
    }

    pub fn sglang(&self, asked: &Asked) -> Value {
        let prompt = &asked.prompt;
        let scored = &self.prompts[prompt];
        let k = asked.body["top_logprobs_num"].as_u64().unwrap() as usize;
        let (mut own, mut top) = (vec![json!([null, prompt[0], null])], vec![Value::Null]);
        for (t, id) in prompt.iter().enumerate().skip(1) {
            own.push(json!([scored.log_probs[t], id, null]));
            top.push(scored.top[t].iter().take(k).map(|(id, l)| json!([l, id, null])).collect());
        }
        json!({"text": "a", "meta_info": {"input_token_logprobs": own, "input_top_logprobs": top}})
    }

    pub fn llama_cpp(&self, asked: &Asked) -> Value {
        let prompt = &asked.prompt;
        let (scored, t) = (&self.beginnings[prompt], prompt.len());
        let forced = asked.body["logit_bias"][0][0].as_u64().unwrap() as u32;
        let mut answer = json!({"content": "", "tokens_evaluated": t, "truncated": false, "stop_type": "limit"});
        if self.partial.contains(&forced) {
            return answer;
        }
        let known = |id: u32| scored.top[t].iter().find(|entry| entry.0 == id).map(|entry| entry.1);
        // The scorer ranks 256 tokens at most; the others are less likely than those.
        let others = (0..self.vocabulary).filter(|&id| known(id).is_none()).map(|id| (id, -15.0));
        let mut all: Vec<(u32, f32)> = scored.top[t].iter().copied().chain(others).collect();
        for (whole, scored) in self.prompts.iter().filter(|(whole, _)| whole.len() > t && whole.starts_with(prompt)) {
            all.iter_mut().filter(|e| e.0 == whole[t]).for_each(|e| e.1 = scored.log_probs[t].unwrap());
        }
        let own = all.iter().find(|entry| entry.0 == forced).unwrap().1;
        let n = asked.body["n_probs"].as_u64().unwrap() as usize;
        let top: Vec<Value> = all.iter().take(n).map(|(id, l)| json!({"id": id, "token": "x", "logprob": l})).collect();
        answer["completion_probabilities"] = json!([{"id": forced, "token": "x", "logprob": own, "top_logprobs": top}]);
        answer
    }

    /// The right answer of whichever server has the path.
    pub fn answer(&self, asked: &Asked) -> Value {
        match asked.path.as_str() {
            "/v1/completions" => self.vllm(asked),
            "/generate" => self.sglang(asked),
            "/completion" => self.llama_cpp(asked),
            other => panic!("nobody should ask for {other}"),
        }
    }
}

/// `/v1/models` of a server with one model.
pub fn models(owner: &str) -> Value {
    json!({"object": "list", "data": [{"id": "org/teacher", "object": "model", "owned_by": owner}]})
}
