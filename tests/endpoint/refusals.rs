//! What no further attempt mends: one request, and an error that names document, place and remedy.

use super::*;
use serde_json::{Value, json};

/// Captures from a vLLM whose answer for the last context of the long document is changed; the error, and how often it
/// was asked for.
fn refused(
    world: &World,
    owner: &'static str,
    change: impl Fn(Value) -> Reply + Send + Sync + 'static,
) -> (String, usize) {
    let (known, victim) = (world.known.clone(), victim(world));
    let ids = victim.clone();
    let server = Server::start(move |asked, _| match right(&known, asked, owner) {
        answer if asked.prompt == ids => change(answer),
        answer => Reply::Json(answer),
    });
    let options = EndpointOptions { retries: 3, api_key: Some(ApiKey::new("s3cret")), ..options(&server) };
    let out = tempfile::tempdir().unwrap();
    let tokenizer = small_tokenizer();
    let folder = out.path().join("set");
    let error = capture_endpoint(&tokenizer, &world.corpus, &folder, &options, &mut |_| Continue(())).unwrap_err();
    assert!(!folder.join("manifest.json").exists());
    let times = server.asked().iter().filter(|asked| asked.prompt == victim).count();
    (error.to_string(), times)
}

/// A whole context inside the long document.
fn victim(world: &World) -> Vec<u32> {
    let (all, long) = (prompts(&world.corpus, CONTEXT), world.corpus.range(3));
    let inside = |prompt: &Vec<u32>| world.corpus.ids()[long.clone()].windows(CONTEXT + 1).any(|w| w == &prompt[..]);
    all.into_iter().rfind(inside).unwrap()
}

fn check((error, times): (String, usize), attempts: usize, words: &[&str]) {
    assert!(error.starts_with("document 4, tokens "), "{error}");
    words.iter().for_each(|word| assert!(error.contains(word), "{error:?} lacks {word:?}"));
    assert!(!error.contains("s3cret") && error.lines().count() == 1, "{error}");
    assert_eq!(times, attempts, "{error}");
}

#[test]
fn refusals_are_told_at_once_in_the_server_s_words() {
    let world = World::small();
    let status = |status: &'static str, body: &'static str| {
        refused(&world, "vllm", move |_| Reply::Status(status, "", body.to_string()))
    };
    let max = r#"{"error": {"message": "Requested prompt logprobs of 8, which is greater than max allowed: 5"}}"#;
    check(
        status("400 Bad Request", max),
        1,
        &["status 400", "greater than max allowed: 5", "--max-logprobs", "/v1/completions"],
    );
    check(
        status("404 Not Found", r#"{"object":"error","message":"The model does not exist"}"#),
        1,
        &["does not exist", "model's name"],
    );
    check(
        status("401 Unauthorized", r#"{"error":"the key s3cret is wrong"}"#),
        1,
        &["the key (the key) is wrong", "--api-key-env"],
    );
    check(status("422 Unprocessable", r#"{"detail":[{"loc":["prompt"]}]}"#), 1, &["loc", "prompt"]);
    check(status("501 Not Implemented", "no"), 1, &["status 501"]);
    let wait =
        refused(&world, "vllm", |_| Reply::Status("429 Too Many Requests", "retry-after: 7200\r\n", "busy".into()));
    check(wait, 1, &["status 429", "busy", "to wait 7200 s", "run the same command later"]);
}

#[test]
fn what_stays_broken_is_an_error_after_the_last_attempt() {
    let world = World::small();
    check(refused(&world, "vllm", Reply::Cut), 4, &["expected an answer", "goes on where it stopped"]);
    let overloaded = |_| Reply::Status("500 Internal Server Error", "", "out of memory".into());
    check(refused(&world, "vllm", overloaded), 4, &["status 500", "out of memory"]);
    let no_json = |_| Reply::Status("200 OK", "", "<html>".into());
    check(refused(&world, "vllm", no_json), 4, &["an answer in JSON"]);
    let openai = |_| Reply::Json(json!({"choices": [{"text": "a", "logprobs": null}]}));
    check(refused(&world, "vllm", openai), 1, &["`prompt_logprobs`", "found none", "--dialect"]);
    let sglang = |_| Reply::Json(json!({"meta_info": {}}));
    check(refused(&world, "sglang", sglang), 1, &["`input_token_logprobs`", "found none"]);
}

/// Changes position 5 of a vLLM's answer.
fn at_five(change: impl Fn(&mut serde_json::Map<String, Value>) + Send + Sync + 'static) -> impl Fn(Value) -> Reply {
    move |mut answer| {
        change(answer.pointer_mut("/choices/0/prompt_logprobs/5").unwrap().as_object_mut().unwrap());
        Reply::Json(answer)
    }
}

fn rank(entry: &Value) -> u64 {
    entry["rank"].as_u64().unwrap()
}

#[test]
fn answers_to_another_question_are_refused() {
    let world = World::small();
    let own = victim(&world)[5].to_string();
    let without = own.clone();
    let no_own = refused(&world, "vllm", at_five(move |map| drop(map.remove(&without))));
    check(no_own, 1, &["prompt_logprobs[5]", &format!("expected {own}, the token that was sent"), "tokenizer"]);
    let longer = refused(&world, "vllm", |mut answer| {
        answer.pointer_mut("/choices/0/prompt_logprobs").unwrap().as_array_mut().unwrap().insert(1, json!({}));
        Reply::Json(answer)
    });
    check(longer, 1, &["`prompt_logprobs`", "17 items", "found 18"]);
    let echo = refused(&world, "vllm", |mut answer| {
        answer["choices"][0]["prompt_token_ids"] = json!([1, 2, 3]);
        Reply::Json(answer)
    });
    check(echo, 1, &["`prompt_token_ids`", "found [1,2,3]"]);
    let shifted = refused(&world, "sglang", |mut answer| {
        answer["meta_info"]["input_token_logprobs"].as_array_mut().unwrap().rotate_left(1);
        Reply::Json(answer)
    });
    check(shifted, 1, &["input_token_logprobs[0]", "which was sent"]);
}

#[test]
fn fewer_tokens_or_other_numbers_than_asked_for_are_refused() {
    let world = World::small();
    let own = victim(&world)[5].to_string();
    let kept = own.clone();
    let few = at_five(move |map| map.retain(|id, entry| *id == kept || rank(entry) <= 3));
    check(refused(&world, "vllm", few), 1, &["prompt_logprobs[5]", "expected 8 tokens", "--max-logprobs"]);
    // A hole among the ranks, though there are as many entries as asked for: the answer may be damaged.
    let hole = at_five(move |map| {
        map.retain(|_, entry| rank(entry) != 2);
        for id in 300..300 + 2 * K {
            map.entry(id.to_string()).or_insert(json!({"logprob": -14.0, "rank": 300}));
        }
    });
    check(refused(&world, "vllm", hole), 4, &["prompt_logprobs[5]", "of rank "]);
    let logits = at_five(|map| map.values_mut().for_each(|entry| entry["logprob"] = json!(11.5)));
    check(refused(&world, "vllm", logits), 1, &["log-probabilities of one distribution", "raw_logprobs"]);
    let doubled = at_five(|map| {
        map.values_mut().for_each(|entry| entry["logprob"] = json!(entry["logprob"].as_f64().unwrap() / 6.0));
    });
    check(refused(&world, "vllm", doubled), 1, &["log-probabilities of one distribution", "a sum of"]);
    let foreign = at_five(|map| {
        map.insert("340".into(), json!({"logprob": 0.0, "rank": 1}));
        map.values_mut().for_each(|entry| entry["logprob"] = json!(entry["logprob"].as_f64().unwrap() - 3.0));
    });
    check(refused(&world, "vllm", foreign), 1, &["ids below 340", "found 340"]);
    let null = at_five(|map| map.values_mut().for_each(|entry| entry["logprob"] = Value::Null));
    check(refused(&world, "vllm", null), 4, &["each with its `logprob`"]);
    let triples = refused(&world, "sglang", |mut answer| {
        answer["meta_info"]["input_top_logprobs"][5].as_array_mut().unwrap().truncate(2);
        Reply::Json(answer)
    });
    check(triples, 1, &["input_top_logprobs[5]", "expected 8 tokens"]);
}

#[test]
fn a_server_without_ranks_and_with_endless_logits_is_understood() {
    let world = World::small();
    let quiet = world.server("vllm");
    world.capture("quiet", &options(&quiet)).unwrap();
    let known = world.known.clone();
    let server = Server::start(move |asked, _| {
        let mut answer = right(&known, asked, "vllm");
        if let Some(Value::Array(positions)) = answer.pointer_mut("/choices/0/prompt_logprobs") {
            for map in positions.iter_mut().filter_map(Value::as_object_mut) {
                map.values_mut().for_each(|entry| drop(entry.as_object_mut().unwrap().remove("rank")));
                // What vLLM writes for a token that the model rules out; it never is among the likeliest.
                map.entry("339").or_insert(json!({"logprob": -9999.0}));
            }
        }
        Reply::Json(answer)
    });
    world.capture("plain", &options(&server)).unwrap();
    assert!(contents(&world.path("plain")) == contents(&world.path("quiet")), "the sets differ");
}

#[test]
fn an_unknown_server_or_model_is_named_before_any_work() {
    let world = World::small();
    let ask = |server: &Server, model: &str| {
        let options = EndpointOptions { model: model.into(), retries: 1, ..options(server) };
        let error = world.capture("none", &options).unwrap_err().to_string();
        assert!(!world.path("none").exists());
        error
    };
    let error = ask(&world.server("openai"), "org/teacher");
    assert!(
        error.contains("expected vllm, sglang or llamacpp: found \"openai\"") && error.contains("--dialect"),
        "{error}"
    );
    let error = ask(&world.server("vllm"), "teacher");
    assert!(error.contains("expected one of org/teacher: found teacher"), "{error}");
    let empty = Server::start(|_, _| Reply::Json(json!({"data": []})));
    assert!(ask(&empty, "org/teacher").contains("a list of models"));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = EndpointOptions {
        retries: 1,
        backoff: Duration::ZERO,
        ..EndpointOptions::new(format!("http://{closed}"), "m")
    };
    let error = world.capture("none", &options).unwrap_err().to_string();
    assert!(error.contains("/v1/models") && error.contains("check that the server runs"), "{error}");
}

#[test]
fn a_llama_cpp_that_counts_or_answers_otherwise_is_refused() {
    let world = World::small();
    let changed = |change: fn(&mut Value)| {
        let known = world.known.clone();
        let server = Server::start(move |asked, _| {
            let mut answer = right(&known, asked, "llamacpp");
            if asked.path == "/completion" {
                change(&mut answer);
            }
            Reply::Json(answer)
        });
        let options = EndpointOptions { retries: 1, concurrency: 1, ..options(&server) };
        world.capture("none", &options).unwrap_err().to_string()
    };
    // A server that puts a beginning-of-text token of its own before the prompt.
    let error = changed(|answer| answer["tokens_evaluated"] = json!(answer["tokens_evaluated"].as_u64().unwrap() + 1));
    assert!(error.contains("token 1 of it: `tokens_evaluated`: expected a prompt of 1 tokens"), "{error}");
    let error = changed(|answer| answer["completion_probabilities"][0]["id"] = json!(7));
    assert!(error.contains("which was asked for: found 7"), "{error}");
    let error = changed(|answer| {
        answer["completion_probabilities"] = json!([{"content": "x", "probs": [{"tok_str": "x", "prob": 0.5}]}]);
    });
    assert!(error.contains("December 2024"), "{error}");
    let error = changed(|answer| drop(answer.as_object_mut().unwrap().remove("completion_probabilities")));
    assert!(error.contains("log-probabilities of one token"), "{error}");
}
