//! Capture from a server, against a server of this test's own: the records are those of a local capture of the same
//! model, whatever goes wrong on the way; what cannot be mended is said at once.
#![cfg(feature = "endpoint")]

mod refusals;
mod server;

use crate::common::{small_model, small_tokenizer};
use potstill::Error;
use potstill::data::tokens::Corpus;
use potstill::device::Device;
use potstill::distill::capture::Progress;
use potstill::distill::corpus::{CorpusOptions, read_corpus};
use potstill::distill::endpoint::{ApiKey, Dialect, EndpointOptions, capture_endpoint};
use potstill::distill::{CaptureOptions, capture};
use potstill::formats::ModelFolder;
use potstill::random::SplitMix64;
use potstill::score::Scorer;
use potstill::shards::{LogProbType, Manifest, Reader, Record, Source, TailMass};
use server::{Asked, Known, Reply, Server, models};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow::{Break, Continue};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const CONTEXT: usize = 16;
const K: u32 = 8;

/// A model, a text and what the model says of it.
struct World {
    dir: tempfile::TempDir,
    corpus: Arc<Corpus>,
    known: Arc<Known>,
}

/// Documents of one token, of less than a context, of several, and with characters of several tokens.
const LINES: [&str; 6] = ["a", "", "Ça va? 👋🏽 très bien.", "the", LONG, "and so on"];
const LONG: &str = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of \
                    foolishness, it was the epoch of belief, it was the epoch of incredulity.";

impl World {
    fn new(lines: &[String], context: usize, top: usize) -> World {
        let dir = tempfile::tempdir().unwrap();
        small_model(&dir.path().join("teacher"), 32, 1, 11);
        let rows: String = lines.iter().map(|text| format!("{}\n", serde_json::json!({ "text": text }))).collect();
        std::fs::write(dir.path().join("text.jsonl"), rows).unwrap();
        let tokenizer = small_tokenizer();
        let options = CorpusOptions::new(vec![dir.path().join("text.jsonl")]);
        let corpus = Arc::new(read_corpus(&tokenizer, &options).unwrap());
        let teacher = ModelFolder::open(dir.path().join("teacher")).unwrap();
        let mut scorer = Scorer::new(&Device::cpu(), &teacher, 340, top).unwrap();
        let partial = |id: &u32| tokenizer.decode(&[*id], false).unwrap().contains('\u{FFFD}');
        let mut known = Known { partial: (0..340).filter(partial).collect(), vocabulary: 340, ..Known::default() };
        for prompt in prompts(&corpus, context) {
            let scored = scorer.score(&prompt).unwrap();
            known.add(&prompt, scored);
        }
        World { dir, corpus, known: Arc::new(known) }
    }

    fn small() -> World {
        World::new(&LINES.map(String::from), CONTEXT, 256)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A server without faults.
    fn server(&self, owner: &'static str) -> Server {
        let known = self.known.clone();
        Server::start(move |asked, _| Reply::Json(right(&known, asked, owner)))
    }

    fn capture(&self, name: &str, options: &EndpointOptions) -> Result<Manifest, Error> {
        capture_endpoint(&small_tokenizer(), &self.corpus, &self.path(name), options, &mut |_| Continue(()))
    }
}

fn right(known: &Known, asked: &Asked, owner: &str) -> serde_json::Value {
    if asked.path == "/v1/models" { models(owner) } else { known.answer(asked) }
}

/// The contexts of a corpus with the token behind each, worked out token by token.
fn prompts(corpus: &Corpus, context: usize) -> Vec<Vec<u32>> {
    let mut prompts: Vec<Vec<u32>> = Vec::new();
    for document in 0..corpus.documents() {
        let range = corpus.range(document);
        for at in range.clone() {
            if at == range.start || at % context == 0 {
                prompts.push(Vec::new());
            }
            prompts.last_mut().unwrap().push(corpus.ids()[at]);
            if at + 1 < range.end && (at + 1) % context == 0 {
                prompts.last_mut().unwrap().push(corpus.ids()[at + 1]);
            }
        }
    }
    prompts.retain(|prompt| prompt.len() > 1);
    prompts
}

fn options(server: &Server) -> EndpointOptions {
    let mut options = EndpointOptions::new(&server.url, "org/teacher");
    (options.top_k, options.sequence_length, options.rows_per_shard) = (K, CONTEXT, 20);
    options.backoff = Duration::from_millis(2);
    options
}

/// Every file by name.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

#[test]
fn a_served_teacher_gives_the_records_of_a_local_one() {
    let world = World::small();
    let teacher = ModelFolder::open(world.path("teacher")).unwrap();
    let record = Record::TopK { k: K, log_probs: LogProbType::DEFAULT };
    let local = CaptureOptions { record, sequence_length: CONTEXT, rows_per_shard: 20, ..CaptureOptions::default() };
    let out = world.path("local");
    capture(&Device::cpu(), &teacher, &world.corpus, &out, &local, &mut |_| (), &mut |_| Continue(())).unwrap();
    let local = Reader::open(&out).unwrap();
    let expected = local.read_rows(0, local.rows()).unwrap();
    let longest = world.known.prompts.keys().map(Vec::len).max();
    assert_eq!(longest, Some(CONTEXT + 1));

    for (dialect, owner) in [(Dialect::Vllm, "vllm"), (Dialect::Sglang, "sglang"), (Dialect::LlamaCpp, "llamacpp")] {
        let server = world.server(owner);
        let options = EndpointOptions { api_key: Some(ApiKey::new("s3cret")), ..options(&server) };
        let manifest = world.capture(owner, &options).unwrap();
        let source = Source::Endpoint { dialect: dialect.name().into() };
        assert_eq!(manifest.spec.tail_mass, TailMass::Derived);
        assert_eq!((&manifest.spec.source, manifest.spec.entropy), (&Some(source), false));
        assert_eq!(manifest.spec.teacher.name, "org/teacher");
        manifest.check_compatible(&small_tokenizer().digest(), 340, Some(&world.corpus.digest())).unwrap();
        let reader = Reader::open(&world.path(owner)).unwrap();
        reader.verify().unwrap();
        reader.alignment().unwrap();
        let found = reader.read_rows(0, reader.rows()).unwrap();
        assert_eq!((&found.tokens, &found.flags), (&expected.tokens, &expected.flags));
        // Two plans of the same model differ by f32 rounding, and that may move a stored value to its neighbour.
        let close = local.layout().step() * 1.001 + 1e-5;
        for row in (0..found.len()).filter(|&row| found.flags[row] & potstill::shards::VALID != 0) {
            let [ours, theirs] = [&found, &expected].map(|rows| rows.top_k_at(local.spec(), row, 0).unwrap());
            assert_eq!(ours.0, theirs.0, "{owner}, row {row}");
            assert!(ours.1.iter().zip(&theirs.1).all(|(a, b)| (a - b).abs() <= close), "{owner}, row {row}");
            assert!((ours.2 - theirs.2).abs() < 1e-5, "{owner}, row {row}: tail {} {}", ours.2, theirs.2);
            assert!((found.nll[row] - expected.nll[row]).abs() < 1e-4, "{owner}, row {row}");
        }
        check_requests(&server.asked(), dialect, &world);
        assert!(!contents(&world.path(owner)).values().any(|bytes| bytes.windows(6).any(|w| w == b"s3cret")));
        assert!(!format!("{options:?}").contains("s3cret"));
    }
}

/// That each context was asked for once, as ids, at temperature 1 and with the key.
fn check_requests(asked: &[Asked], dialect: Dialect, world: &World) {
    let mut expected: Vec<Vec<u32>> = prompts(&world.corpus, CONTEXT);
    let mut found: Vec<Vec<u32>> = asked.iter().map(|asked| asked.prompt.clone()).collect();
    if dialect == Dialect::LlamaCpp {
        expected = expected.iter().flat_map(|prompt| (1..prompt.len()).map(|end| prompt[..end].to_vec())).collect();
        // Tokens that are no whole character take a second request, and a third where they are unlikely.
        assert!(asked.iter().any(|asked| asked.body["n_probs"] == 340), "no partial character was unlikely");
        let unbiased = |asked: &&Asked| asked.body["n_probs"] == K;
        found = asked.iter().filter(unbiased).map(|asked| asked.prompt.clone()).collect();
    }
    [&mut expected, &mut found].into_iter().for_each(|all| all.sort());
    if dialect == Dialect::LlamaCpp {
        expected.dedup();
        found.dedup();
    }
    assert_eq!(found, expected);
    for asked in asked {
        assert!(asked.headers.to_lowercase().contains("authorization: bearer s3cret"), "{}", asked.headers);
        let sampling = asked.body.get("sampling_params").unwrap_or(&asked.body);
        assert_eq!(sampling["temperature"], 1.0, "{}", asked.body);
    }
}

#[test]
fn answers_that_fail_in_passing_are_asked_for_again() {
    let world = World::small();
    let quiet = world.server("vllm");
    world.capture("quiet", &options(&quiet)).unwrap();
    let (known, first) = (world.known.clone(), prompts(&world.corpus, CONTEXT)[0].clone());
    let server = Server::start(move |asked, number| {
        let answer = right(&known, asked, "vllm");
        let salt = asked.prompt.iter().sum::<u32>() as usize;
        match (number, salt % 5) {
            (0, _) if asked.prompt == first => {
                Reply::Status("429 Too Many Requests", "retry-after: 1\r\n", "{}".into())
            }
            _ if asked.path == "/v1/models" && number == 0 => {
                Reply::Status("503 Service Unavailable", "", "loading the model".into())
            }
            (0, 0) => Reply::Status("500 Internal Server Error", "", "oh".into()),
            (0 | 1, 1) => Reply::Cut(answer),
            (0, 2) => Reply::Hang,
            (0, 3) => Reply::Late(Duration::from_millis(900), answer),
            (1, 3) => Reply::Status("200 OK", "", "[1, 2".into()),
            (2, 3) => Reply::Json(serde_json::json!({"choices": []})),
            _ => Reply::Json(answer),
        }
    });
    let options = EndpointOptions { timeout: Duration::from_millis(300), ..options(&server) };
    world.capture("noisy", &options).unwrap();
    assert!(contents(&world.path("noisy")) == contents(&world.path("quiet")), "the sets differ");
    let asked = server.asked();
    assert!(asked.len() > prompts(&world.corpus, CONTEXT).len() + 3);
    let again: Vec<&Asked> = asked.iter().filter(|a| a.prompt == prompts(&world.corpus, CONTEXT)[0]).collect();
    let waited = again[1].at - again[0].at;
    assert!(waited >= Duration::from_millis(990), "Retry-After asked for 1 s, and {waited:?} passed");
}

#[test]
fn a_stopped_capture_goes_on_and_ends_bit_for_bit_as_an_unbroken_one() {
    let world = World::small();
    let known = world.known.clone();
    // Contexts come back in an order of their own.
    let server = Server::start(move |asked, _| {
        let wait = u64::from(asked.prompt.iter().sum::<u32>() % 7);
        Reply::Late(Duration::from_millis(wait), right(&known, asked, "vllm"))
    });
    let options = EndpointOptions { rows_per_shard: 8, ..options(&server) };
    world.capture("whole", &options).unwrap();
    let contexts = server.asked().len();
    let mut stops = 0;
    loop {
        let mut heard = BTreeSet::new();
        let mut progress = |progress: Progress| {
            heard.insert(progress.rows);
            if heard.len() == 4 { Break(()) } else { Continue(()) }
        };
        let tokenizer = small_tokenizer();
        match capture_endpoint(&tokenizer, &world.corpus, &world.path("broken"), &options, &mut progress) {
            Err(Error::Cancelled) => stops += 1,
            other => break drop(other.unwrap()),
        }
        // A kill loses what is not in a finished shard; with shards of 8 rows each start gets some way.
        assert!(stops < 100);
    }
    assert!(stops > 2);
    assert!(contents(&world.path("broken")) == contents(&world.path("whole")), "the sets differ");
    let asked = server.asked().len();
    assert!(asked < contexts * (stops + 1), "{asked} requests of {contexts}: what is on disk was asked for again");
    // A complete set is left alone.
    let before = contents(&world.path("whole"));
    world.capture("whole", &options).unwrap();
    assert!(server.asked().is_empty() && contents(&world.path("whole")) == before);
    let other = EndpointOptions { model: "org/other".into(), dialect: Some(Dialect::Vllm), ..options.clone() };
    let error = world.capture("whole", &other).unwrap_err().to_string();
    assert!(error.contains("`teacher.name`") && error.contains("org/other"), "{error}");
    let other = EndpointOptions { dialect: Some(Dialect::Sglang), ..options };
    assert!(world.capture("whole", &other).unwrap_err().to_string().contains("`source.dialect`"));
}

#[cfg(feature = "cli")]
mod command {
    use super::*;
    use std::process::{Child, Command, Stdio};

    const KEY: &str = "POTSTILL_TEST_ENDPOINT_KEY";

    fn command(world: &World, server: &Server, out: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_potstill"));
        command.arg("capture").arg(world.path("text.jsonl")).arg("-o").arg(world.path(out));
        command.args(["--endpoint", &server.url, "--model", "org/teacher", "--api-key-env", KEY]).env(KEY, "s3cret");
        command.arg("--tokenizer").arg(world.path("teacher")).args(["--top-k", "4"]).args(more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(world: &World, server: &Server, out: &str, more: &[&str]) -> Child {
        command(world, server, out, more).spawn().unwrap()
    }

    fn finish(child: Child) -> (bool, String) {
        let output = child.wait_with_output().unwrap();
        assert!(output.stdout.is_empty());
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    }

    /// Five shards' worth of text in sentences of a few known words.
    fn long_lines() -> Vec<String> {
        let words = ["the", "sea", "was", "not", "calm", "and", "whales", "of", "Nantucket", "rose"];
        let mut random = SplitMix64::new(3);
        let mut sentence = || (0..900).map(|_| words[(random.bits() % 10) as usize]).collect::<Vec<_>>().join(" ");
        (0..16).map(|_| sentence()).collect()
    }

    #[test]
    fn a_killed_capture_goes_on_bit_for_bit() {
        let world = World::new(&long_lines(), 512, 4);
        assert!(world.corpus.ids().len() > 2 * 16_384, "too few shards to be killed between");
        let known = world.known.clone();
        let server = Server::start(move |asked, _| {
            Reply::Late(
                Duration::from_millis(if asked.path == "/v1/models" { 0 } else { 20 }),
                right(&known, asked, "vllm"),
            )
        });
        let (done, words) = finish(start(&world, &server, "whole", &["--concurrency", "3", "-v", "-v"]));
        assert!(done && words.contains("mean tail mass") && !words.contains("s3cret"), "{words}");
        let whole = contents(&world.path("whole"));
        let inspected =
            Command::new(env!("CARGO_BIN_EXE_potstill")).arg("inspect").arg(world.path("whole")).output().unwrap();
        let inspected = String::from_utf8(inspected.stdout).unwrap();
        assert!(inspected.contains("a server's API (vllm)") && inspected.contains("org/teacher"), "{inspected}");
        let begun = std::time::Instant::now();
        finish(start(&world, &server, "again", &["--concurrency", "3"]));
        let unbroken = begun.elapsed();
        let mut random = SplitMix64::new(1);
        for _ in 0..6 {
            let mut child = start(&world, &server, "broken", &["--concurrency", "3"]);
            std::thread::sleep(unbroken.mul_f64(0.2 + 0.6 * random.uniform()));
            let _ = child.kill();
            child.wait().unwrap();
        }
        let (done, words) = finish(start(&world, &server, "broken", &["--concurrency", "3"]));
        assert!(done, "{words}");
        assert!(contents(&world.path("broken")) == whole, "the killed capture's files differ");
    }

    #[test]
    fn the_command_says_what_it_cannot_do() {
        let world = World::small();
        let server = world.server("vllm");
        let refused = |more: &[&str]| {
            let (done, words) = finish(start(&world, &server, "out", more));
            assert!(!done && !words.contains("s3cret") && !world.path("out").exists(), "{words}");
            words
        };
        assert!(refused(&["--kind", "sampled"]).contains("--kind: expected top-k with --endpoint"));
        assert!(refused(&["--temperatures", "1,2"]).contains("--temperatures: expected 1 alone"));
        assert!(refused(&["--draws", "3"]).contains("cannot be used with"));
        assert!(refused(&["--dialect", "openai"]).contains("none of vllm, sglang, llama-cpp"));
        assert!(refused(&["--timeout=-1"]).contains("--timeout: expected seconds"));
        let (done, words) = finish(command(&world, &server, "out", &[]).env_remove(KEY).spawn().unwrap());
        assert!(
            !done && words.contains(&format!("--api-key-env: expected a key in the environment variable {KEY}")),
            "{words}"
        );
        assert!(server.asked().is_empty());
    }
}
