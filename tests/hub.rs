//! Models by hub id, against a small server of this test's own: what is fetched, what is reused, what is said when
//! it fails.
#![cfg(all(feature = "cli", feature = "hub"))]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves repositories of files the way the hub does, and remembers what was asked for.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

type Repositories = HashMap<&'static str, Vec<(&'static str, Vec<u8>)>>;

impl Server {
    fn start(repositories: Repositories) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        thread::spawn(move || listener.incoming().for_each(|stream| answer(stream.unwrap(), &repositories, &log)));
        Server { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn answer(mut stream: TcpStream, repositories: &Repositories, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let path = request.split(' ').nth(1).unwrap().to_string();
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let range = headers.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_string));
    log.lock().unwrap().push(path.clone());
    let (status, extra, body) = respond(&path, range, repositories);
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{extra}\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body).unwrap();
}

fn respond(path: &str, range: Option<String>, repositories: &Repositories) -> (&'static str, String, Vec<u8>) {
    let missing = ("404 Not Found", String::new(), Vec::new());
    if path.contains("own/gated") {
        return ("401 Unauthorized", String::new(), Vec::new());
    }
    if let Some(repo) = path.strip_prefix("/api/models/").and_then(|path| path.strip_suffix("/revision/main")) {
        let Some(files) = repositories.get(repo) else { return missing };
        let names: Vec<_> = files.iter().map(|(name, _)| serde_json::json!({"rfilename": name})).collect();
        return ("200 OK", String::new(), serde_json::json!({"siblings": names, "sha": COMMIT}).to_string().into());
    }
    let found = repositories.iter().find_map(|(repo, files)| {
        let name = path.strip_prefix(&format!("/{repo}/resolve/{COMMIT}/"))?;
        files.iter().find(|(file, _)| *file == name)
    });
    let Some((name, bytes)) = found else { return missing };
    let range = range.expect("the client asks for ranges");
    let (from, to) = range.split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let to = if to.is_empty() { bytes.len() - 1 } else { to.parse().unwrap() };
    let range = format!("content-range: bytes {from}-{to}/{}\r\n", bytes.len());
    let headers = format!("{range}etag: \"etag-of-{name}\"\r\nx-repo-commit: {COMMIT}\r\n");
    ("206 Partial Content", headers, bytes[from..=to].to_vec())
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)).unwrap()
}

fn repositories() -> Repositories {
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut files = vec![
        ("config.json", golden("two_shards/config.json")),
        ("model.safetensors.index.json", golden("two_shards/model.safetensors.index.json")),
        ("tokenizer.json", golden("smollm_tokenizer.json")),
        ("pytorch_model.bin", vec![0; 64]),
        ("README.md", b"a model".to_vec()),
    ];
    files.extend(shards.map(|name| (name, golden(&format!("two_shards/{name}")))));
    let gguf = vec![("tiny.gguf", golden("tiny_llama.gguf")), ("README.md", b"quantised".to_vec())];
    HashMap::from([("own/model", files), ("own/quantised", gguf)])
}

fn inspect(endpoint: &str, cache: &Path, model: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_potstill"));
    for proxy in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", endpoint).env("HF_HUB_CACHE", cache);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["inspect", model, "--json"]).output().unwrap()
}

fn report(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_model_is_fetched_once_and_then_needs_no_network() {
    let server = Server::start(repositories());
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let fetched = report(&inspect(&server.address, &cache, "own/model"));
    let local: serde_json::Value = report(&inspect(&server.address, &cache, "tests/golden/two_shards"));
    assert_eq!((&fetched["tensors"], &fetched["bytes"]), (&local["tensors"], &local["bytes"]));
    assert!(fetched["tokenizer"]["vocab_size"].as_u64().unwrap() > 0, "{fetched}");
    let asked = server.asked();
    assert!(asked.iter().all(|path| !path.ends_with(".bin") && !path.ends_with(".md")), "{asked:?}");

    report(&inspect(&server.address, &cache, "own/model"));
    report(&inspect(&server.address, &cache, &format!("own/model@{COMMIT}")));
    assert_eq!(server.asked(), Vec::<String>::new(), "what is there is not asked for");

    // A folder that lost a file is completed, and only that file is fetched.
    let lost = cache.join("models--own--model/snapshots").join(COMMIT).join("model-00002-of-00002.safetensors");
    std::fs::remove_file(lost).unwrap();
    report(&inspect(&server.address, &cache, "own/model"));
    let asked = server.asked();
    assert!(asked[1..].iter().all(|path| path.ends_with("model-00002-of-00002.safetensors")), "{asked:?}");
}

#[test]
fn one_gguf_file_is_fetched_by_its_name() {
    let server = Server::start(repositories());
    let dir = tempfile::tempdir().unwrap();
    let whole = report(&inspect(&server.address, dir.path(), "own/quantised/tiny.gguf"));
    assert_eq!((&whole["format"], &whole["problem"]), (&"gguf".into(), &serde_json::Value::Null));
    let message = error(&inspect(&server.address, dir.path(), "own/quantised"));
    assert!(message.contains("`own/quantised/tiny.gguf`"), "{message}");
    let message = error(&inspect(&server.address, dir.path(), "own/quantised/other.gguf"));
    assert!(message.contains("expected a file `other.gguf`: found tiny.gguf"), "{message}");
}

#[test]
fn what_cannot_be_fetched_is_explained_in_one_paragraph() {
    let server = Server::start(repositories());
    let dir = tempfile::tempdir().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (endpoint, model, expected) in [
        (server.address.clone(), "own/gated", "set HF_TOKEN"),
        (server.address.clone(), "own/nothing", "expected a model of this name and revision"),
        (format!("http://{closed}"), "own/model", "check the network"),
    ] {
        let message = error(&inspect(&endpoint, dir.path(), model));
        assert!(message.starts_with(&format!("error: `{model}` on the model hub: ")), "{message}");
        assert!(message.contains(expected) && message.lines().count() == 1, "{message}");
    }
}
