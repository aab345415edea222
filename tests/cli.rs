//! The command as a user types it: help, misuse, reports, and what the exit code and stderr say.
#![cfg(feature = "cli")]

use potstill::device::Precision;
use potstill::shards::{
    CONTEXT_START, DOCUMENT_START, LogProbType, Record, Records, RowBatch, SetSpec, Teacher, VALID, Writer,
};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

/// Runs the command in the repository's root, away from the network and the user's own cache.
fn potstill(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_potstill"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("HF_HUB_OFFLINE", "1").env("HF_HUB_CACHE", "no such folder");
    command.args(arguments).output().expect("the command starts")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("an exit code")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// Stdout of a run that succeeds.
fn stdout(arguments: &[&str]) -> String {
    let output = potstill(arguments);
    assert_eq!(code(&output), 0, "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout).to_string()
}

/// Stderr of a run that fails with 1 and prints nothing else.
fn failure(arguments: &[&str]) -> String {
    let output = potstill(arguments);
    assert_eq!(code(&output), 1, "{arguments:?}: {}", text(&output.stdout));
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    text(&output.stderr).to_string()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout(arguments)).expect("JSON")
}

#[test]
fn help_and_version_are_no_errors_and_every_command_has_examples() {
    assert!(stdout(&["--version"]).starts_with("potstill 0."));
    let help = stdout(&["--help"]);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<&str> = commands.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.contains(&"inspect") && commands.contains(&"doctor"), "{commands:?}");
    for command in commands.into_iter().filter(|name| *name != "help") {
        for form in ["-h", "--help"] {
            let help = stdout(&[command, form]);
            assert!(help.contains("Examples:\n") && help.contains(&format!("  potstill {command}")), "{help}");
            assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        }
    }
}

#[test]
fn misuse_ends_with_1_and_says_what_is_wrong() {
    assert!(failure(&[]).contains("Usage: potstill"));
    assert!(failure(&["inspekt", "x"]).contains("'inspect'"));
    assert!(failure(&["inspect"]).contains("<PATH>"));
    assert!(failure(&["inspect", "x", "--jsn"]).contains("--json"));
    let message = failure(&["doctor", "--device", "tpu"]);
    assert!(message.contains("`auto`, `cpu`, `gpu`") && message.contains("tpu"), "{message}");
}

#[test]
fn errors_are_one_paragraph_that_names_the_file_and_what_was_expected() {
    let message = failure(&["inspect", "no/such/model"]);
    assert!(message.starts_with("error: `no/such/model`: expected a model folder"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");

    let message = failure(&["inspect", "own/model"]);
    assert!(message.starts_with("error: `own/model`: ") && message.contains("HF_HUB_OFFLINE"), "{message}");

    let message = failure(&["inspect", "tests/golden"]);
    assert!(message.contains("tests/golden: expected") && message.contains("neither config.json nor"), "{message}");

    let dir = tempfile::tempdir().unwrap();
    let cut = dir.path().join("cut.gguf");
    let whole = std::fs::read("tests/golden/tiny_llama.gguf").unwrap();
    std::fs::write(&cut, &whole[..whole.len() - 1]).unwrap();
    let message = failure(&["inspect", cut.to_str().unwrap()]);
    assert!(message.contains("cut.gguf: tensor `") && message.contains("truncated"), "{message}");

    let folder = dir.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("config.json"), "{\n  \"hidden_size\": }").unwrap();
    let message = failure(&["inspect", folder.to_str().unwrap()]);
    assert!(message.contains("config.json: expected JSON") && message.contains("line 2"), "{message}");
}

#[test]
fn inspect_counts_a_folders_parameters() {
    // The golden folders come from transformers; these numbers follow from their config.json alone.
    let report = json(&["inspect", "tests/golden/two_shards", "--json", "--digest"]);
    let config = &report["config"];
    let n = |key: &str| config[key].as_u64().unwrap();
    let (hidden, layers, ffn) = (n("hidden_size"), n("num_hidden_layers"), n("intermediate_size"));
    let head = hidden / n("num_attention_heads");
    let kv = n("num_key_value_heads") * head;
    let embedding = n("vocab_size") * hidden;
    let attention = layers * (2 * hidden * hidden + 2 * hidden * kv);
    let norms = hidden * (2 * layers + 1);
    let expected = [("embedding", embedding), ("attention", attention), ("feed-forward", layers * 3 * hidden * ffn)];
    let group = |name: &str| {
        let groups = report["groups"].as_array().unwrap();
        groups.iter().find(|g| g["name"] == name).map_or(0, |g| g["parameters"].as_u64().unwrap())
    };
    for (name, parameters) in expected.into_iter().chain([("norms", norms)]) {
        assert_eq!(group(name), parameters, "{name}");
    }
    assert_eq!(group("output head"), if config["tie_word_embeddings"] == true { 0 } else { embedding });
    let sum: u64 = report["groups"].as_array().unwrap().iter().map(|g| g["parameters"].as_u64().unwrap()).sum();
    assert_eq!(report["parameters"], sum);
    assert_eq!(report["bytes"], 4 * sum);
    assert_eq!(report["digest"].as_str().unwrap().len(), 64);
    assert_eq!(report["tokenizer"], Value::Null);
}

#[test]
fn inspect_shows_a_gguf_of_an_architecture_that_cannot_be_used() {
    let report = json(&["inspect", "tests/golden/tiny_llama.gguf", "--json"]);
    assert_eq!(
        (&report["kind"], &report["format"], &report["problem"]),
        (&"model".into(), &"gguf".into(), &Value::Null)
    );
    assert_eq!(report["config"]["model_type"], "llama");
    let shown = stdout(&["inspect", "tests/golden/tiny_llama.gguf", "--tensors"]);
    assert!(shown.contains("GGUF file, LlamaForCausalLM") && shown.contains("blk.0.attn_q.weight"), "{shown}");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.gguf");
    let mut bytes = std::fs::read("tests/golden/tiny_llama.gguf").unwrap();
    let key = b"general.architecture";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
    // After the key: the value's type, then the length of the text as u64.
    let value = at + key.len() + 4 + 8;
    assert_eq!(&bytes[value..value + 5], b"llama");
    bytes[value..value + 5].copy_from_slice(b"mamba");
    std::fs::write(&path, bytes).unwrap();
    let shown = stdout(&["inspect", path.to_str().unwrap()]);
    assert!(shown.contains("GGUF file, mamba") && shown.contains("cannot be used"), "{shown}");
}

#[test]
fn inspect_shows_a_tokenizer_and_a_single_safetensors_file() {
    let report = json(&["inspect", "tests/golden/qwen2.gguf", "--json", "--digest"]);
    assert!(report["tokenizer"]["vocab_size"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["tokenizer"]["digest"].as_str().unwrap().len(), 64);
    let shown = stdout(&["inspect", "tests/golden/stored_bf16/model.safetensors"]);
    assert!(shown.contains("safetensors file") && shown.contains("BF16"), "{shown}");
}

/// Four rows of a vocabulary of four, each giving its true next token one half.
fn write_set(dir: &Path) {
    let spec = SetSpec {
        teacher: Teacher { name: "own/teacher".into(), digest: "a1".into() },
        tokenizer_digest: "b2".into(),
        vocab_size: 4,
        real_vocab_size: 3,
        record: Record::TopK { k: 2, log_probs: LogProbType::F32 },
        temperatures: vec![1.0],
        corpus_digest: "c3".into(),
        context_length: 4,
        rows: 4,
        rows_per_shard: 3,
        entropy: false,
        tail_mass: Default::default(),
        source: None,
        precision: Precision::F32,
    };
    let half = 0.5f32.ln();
    let batch = RowBatch {
        tokens: vec![0, 1, 2, 0],
        flags: vec![VALID | DOCUMENT_START | CONTEXT_START, VALID, VALID, 0],
        nll: vec![-half, -half, -half, 0.0],
        entropy: vec![],
        records: Records::TopK {
            ids: vec![1, 0, 2, 0, 0, 1, 1, 0],
            log_probs: [half, 0.25f32.ln()].repeat(4),
            tails: vec![0.25; 4],
            log_partitions: vec![0.0; 4],
        },
    };
    let (mut writer, _) = Writer::resume_or_create(dir, spec).unwrap();
    writer.push_rows(&batch).unwrap();
    writer.finish().unwrap();
}

#[test]
fn inspect_shows_and_verifies_a_shard_set() {
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("set");
    write_set(&set);
    let path = set.to_str().unwrap();
    let report = json(&["inspect", path, "--verify", "--json"]);
    let statistics = &report["manifest"]["statistics"];
    assert_eq!(
        (&report["kind"], &statistics["rows"], &statistics["valid_rows"]),
        (&"shards".into(), &4.into(), &3.into())
    );
    let close = |value: &Value, expected: f64| assert!((value.as_f64().unwrap() - expected).abs() < 1e-6, "{value}");
    close(&statistics["mean_nll"], std::f64::consts::LN_2);
    close(&statistics["mean_tail_mass"], 0.25);
    assert_eq!((&report["verification"]["valid_rows"], &report["verification"]["in_record"]), (&3.into(), &3.into()));
    // Token and flags, NLL, tail and log-partition, a word of ids, two of log-probabilities: 7 words.
    assert_eq!((&report["bytes_per_row"], &report["bytes"]), (&28.into(), &(4 * 28 + 2 * 64).into()));
    let shown = stdout(&["inspect", path, "--verify"]);
    assert!(shown.contains("own/teacher") && shown.contains("0.6931 nats") && shown.contains("100.0 %"), "{shown}");

    let file = set.join("00001.shard");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    stdout(&["inspect", path]);
    let message = failure(&["inspect", path, "--verify"]);
    assert!(message.contains("00001.shard: SHA-256: expected"), "{message}");
    std::fs::rename(set.join("manifest.json"), set.join("journal.jsonl")).unwrap();
    let message = failure(&["inspect", path]);
    assert!(message.contains("unfinished capture"), "{message}");
}

#[test]
fn the_doctor_finds_the_cpu_sound() {
    let shown = stdout(&["doctor", "--device", "cpu"]);
    assert!(shown.contains("Device: CPU") && shown.contains("all right on CPU"), "{shown}");
    assert!(!shown.contains("FAILED"), "{shown}");
}

#[test]
fn the_doctor_names_the_adapters_when_none_fits() {
    let output = potstill(&["doctor", "--device", "gpu:no-such-card"]);
    let message = text(&output.stderr);
    assert_eq!(code(&output), 1);
    assert!(message.starts_with("error: device: expected a GPU matching `no-such-card`: found "), "{message}");
    assert!(text(&output.stdout).contains("Adapters:"));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_potstill"));
    command.args(["inspect", "--tensors"]).arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/two_shards"));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = command.stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
}
