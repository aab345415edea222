//! Frozen models whose matrices stay as their file stores them: what they compute is what their f32 weights compute.

use crate::common::{gpus, novel, recipe, small_config, small_model, small_tokenizer};
use potstill::device::{Device, Precision};
use potstill::distill::corpus::{CorpusOptions, read_corpus};
use potstill::distill::recipe::SaveDtype;
use potstill::distill::setup::Setup;
use potstill::distill::student::write_folder;
use potstill::distill::{CaptureOptions, capture};
use potstill::formats::ModelFolder;
use potstill::generate::{Generator, Sampling};
use potstill::graph::Store;
use potstill::models::{self, FrozenWeights, load_parameters, random_parameters};
use potstill::random::SplitMix64;
use potstill::shards::spec::LogProbType;
use potstill::shards::{Reader, Record, Records, RowBatch};
use serde_json::{Value, json};
use std::ops::ControlFlow::Continue;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A type: ggml's number, values and bytes of a block, where its f16 scales are, and its largest quant times its
/// largest inner scale.
type Type = (u32, usize, usize, &'static [usize], f64);

/// Every type but F32 (`ggml.h`, `ggml-common.h`).
const TYPES: [Type; 12] = [
    (1, 1, 2, &[0], 1.0),
    (30, 1, 2, &[0], 1.0),
    (2, 32, 18, &[0], 8.0),
    (3, 32, 20, &[0, 2], 16.0),
    (6, 32, 22, &[0], 16.0),
    (7, 32, 24, &[0, 2], 32.0),
    (8, 32, 34, &[0], 128.0),
    (10, 256, 84, &[80, 82], 45.0),
    (11, 256, 110, &[108], 128.0),
    (12, 256, 144, &[0, 2], 945.0),
    (13, 256, 176, &[0, 2], 1953.0),
    (14, 256, 210, &[208], 4096.0),
];

/// Random blocks of a type, the values within about 0.05 of zero.
fn blocks(random: &mut SplitMix64, numbers: usize, (id, values, bytes, scales, largest): Type) -> Vec<u8> {
    let mut data: Vec<u8> = (0..numbers / values * bytes).map(|_| (random.bits() >> 56) as u8).collect();
    for block in data.chunks_exact_mut(bytes) {
        for &at in scales {
            let scale = (0.1 * random.uniform() - 0.05) / largest;
            let bits =
                if id == 30 { half::bf16::from_f64(scale).to_bits() } else { half::f16::from_f64(scale).to_bits() };
            block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        }
    }
    data
}

/// The parts of a GGUF (version 3) as they are appended to one.
#[derive(Default)]
struct Gguf {
    keys: Vec<u8>,
    key_count: u64,
    infos: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

fn text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

impl Gguf {
    fn key(&mut self, name: &str, kind: u32, value: &[u8]) {
        text(&mut self.keys, name);
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.key_count += 1;
    }

    fn string(&mut self, name: &str, value: &str) {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        self.key(name, 8, &bytes);
    }

    fn strings<'a>(&mut self, name: &str, values: impl ExactSizeIterator<Item = &'a str>) {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.for_each(|value| text(&mut bytes, value));
        self.key(name, 9, &bytes);
    }

    fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, data: &[u8]) {
        text(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&n| self.infos.extend((n as u64).to_le_bytes()));
        self.infos.extend(kind.to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(data);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.tensor_count += 1;
    }

    fn write(self, path: &Path) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(self.tensor_count.to_le_bytes());
        bytes.extend(self.key_count.to_le_bytes());
        bytes.extend(self.keys);
        bytes.extend(self.infos);
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(self.data);
        std::fs::write(path, bytes).unwrap();
    }
}

/// A Llama of two layers with every type among its matrices, tied, with the small tokenizer; and the bytes of its
/// matrices in memory.
fn every_type(path: &Path) -> u64 {
    let mut file = Gguf::default();
    file.string("general.architecture", "llama");
    for (name, value) in [
        ("embedding_length", 256u32),
        ("feed_forward_length", 512),
        ("block_count", 2),
        ("context_length", 1024),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("vocab_size", 340),
    ] {
        file.key(&format!("llama.{name}"), 4, &value.to_le_bytes());
    }
    file.key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes());
    tokenizer_keys(&mut file);
    let mut random = SplitMix64::new(5);
    let (mut count, mut bytes) = (0, 0);
    let mut matrix = |file: &mut Gguf, name: &str, shape: [usize; 2]| {
        // The embedding, which is the head too, in Q8_0.
        let kind = TYPES[(count + 6) % TYPES.len()];
        count += 1;
        file.tensor(name, &shape, kind.0, &blocks(&mut random, shape[0] * shape[1], kind));
        let blocks = (shape[0] * shape[1] / kind.1) as u64;
        bytes += if kind.1 == 1 { 2 * blocks } else { blocks * kind.2.next_multiple_of(4) as u64 };
    };
    let ones: Vec<u8> = [1f32; 256].iter().flat_map(|x| x.to_le_bytes()).collect();
    matrix(&mut file, "token_embd.weight", [340, 256]);
    for layer in 0..2 {
        let at = |name: &str| format!("blk.{layer}.{name}.weight");
        file.tensor(&at("attn_norm"), &[256], 0, &ones);
        file.tensor(&at("ffn_norm"), &[256], 0, &ones);
        for (name, shape) in [
            ("attn_q", [256, 256]),
            ("attn_k", [128, 256]),
            ("attn_v", [128, 256]),
            ("attn_output", [256, 256]),
            ("ffn_gate", [512, 256]),
            ("ffn_up", [512, 256]),
            ("ffn_down", [256, 512]),
        ] {
            matrix(&mut file, &at(name), shape);
        }
    }
    file.tensor("output_norm.weight", &[256], 0, &ones);
    file.write(path);
    bytes
}

fn tokenizer_keys(file: &mut Gguf) {
    let path = crate::common::golden("smollm_tokenizer.json");
    let json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let model = &json["model"];
    let mut tokens: Vec<(&str, u64)> =
        model["vocab"].as_object().unwrap().iter().map(|(token, id)| (token.as_str(), id.as_u64().unwrap())).collect();
    tokens.sort_by_key(|(_, id)| *id);
    file.string("tokenizer.ggml.model", "gpt2");
    file.string("tokenizer.ggml.pre", "smollm");
    file.strings("tokenizer.ggml.tokens", tokens.iter().map(|(token, _)| *token));
    let merges: Vec<String> = model["merges"].as_array().unwrap().iter().map(merge).collect();
    file.strings("tokenizer.ggml.merges", merges.iter().map(String::as_str));
    let mut types = 5u32.to_le_bytes().to_vec();
    types.extend((tokens.len() as u64).to_le_bytes());
    for (token, id) in &tokens {
        types.extend((if *token == "<|end|>" { 3i32 } else { 1 }).to_le_bytes());
        if *token == "<|end|>" {
            file.key("tokenizer.ggml.eos_token_id", 4, &(*id as u32).to_le_bytes());
            file.key("tokenizer.ggml.bos_token_id", 4, &(*id as u32).to_le_bytes());
        }
    }
    file.key("tokenizer.ggml.token_type", 9, &types);
}

/// A merge rule, which is a text or a pair.
fn merge(rule: &Value) -> String {
    match rule.as_array() {
        Some(pair) => pair.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        None => rule.as_str().unwrap().to_owned(),
    }
}

/// A bfloat16 safetensors folder of a small Llama.
fn bfloat16(folder: &Path) {
    let decoder = models::from_config(folder, &small_config(32, 2)).unwrap();
    let mut store = Store::new(&Device::cpu());
    decoder.allocate(&mut store, "", 1).unwrap();
    random_parameters(&decoder, &store, "", 3).unwrap();
    let tokenizer = small_tokenizer();
    let dtype = SaveDtype::Bfloat16;
    pollster::block_on(write_folder(folder, &decoder, &store, "", Some(&tokenizer), &Value::Null, dtype)).unwrap();
}

/// The first rows that a teacher records on a device, and the planned bytes of its weights.
fn recorded(
    dir: &Path,
    device: &Device,
    teacher: &Path,
    weights: FrozenWeights,
    precision: Precision,
) -> (RowBatch, u64) {
    let teacher = ModelFolder::open(teacher).unwrap();
    let text = novel(dir, "captured.txt", 30_000..31_000);
    let options = CorpusOptions { limit: Some(200), ..CorpusOptions::new(vec![text]) };
    let corpus = Arc::new(read_corpus(&teacher.tokenizer().unwrap(), &options).unwrap());
    let record = Record::TopK { k: 8, log_probs: LogProbType::F32 };
    let options = CaptureOptions { record, weights, precision, sequence_length: 64, ..CaptureOptions::default() };
    let (out, mut bytes) = (tempfile::tempdir().unwrap(), 0);
    let mut planned = |memory: &potstill::distill::memory::Memory| bytes = memory.parameters;
    let out = out.path().join("shards");
    capture(device, &teacher, &corpus, &out, &options, &mut planned, &mut |_| Continue(())).unwrap();
    (Reader::open(&out).unwrap().read_rows(0, 200).unwrap(), bytes)
}

/// f32 sums of up to 512 terms in another order, through two layers: some hundreds of roundings of numbers below 10.
const SUMS: f64 = 1e-4;
/// Numbers below 10, of factors that may be rounded to either neighbour among the 16-bit floats.
const HALVES: f64 = 10.0 / 1024.0;

fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(f64::from((found - expected).abs()) < tolerance, "{what} {i}: {found}, of f32 weights {expected}");
    }
}

fn log_probs(rows: &RowBatch) -> &[f32] {
    let Records::TopK { log_probs, .. } = &rows.records else { panic!("records of another kind") };
    log_probs
}

/// Bytes of the norms' weights, f32, of a model of this width with two layers.
fn norms(width: u64) -> u64 {
    4 * 5 * width
}

fn records_alike(device: &Device) {
    let dir = tempfile::tempdir().unwrap();
    let (gguf, folder) = (dir.path().join("teacher.gguf"), dir.path().join("teacher"));
    let matrices = every_type(&gguf);
    bfloat16(&folder);
    for (teacher, bytes) in [(&gguf, matrices + norms(256)), (&folder, 2 * 35_456 + norms(32))] {
        for (precision, tolerance) in [(Precision::F32, SUMS), (Precision::F16, HALVES)] {
            if precision == Precision::F16 && !device.caps().f16 {
                continue;
            }
            let (found, kept) = recorded(dir.path(), device, teacher, FrozenWeights::Stored, precision);
            let (expected, widened) = recorded(dir.path(), device, teacher, FrozenWeights::F32, precision);
            assert_close("NLL", &found.nll, &expected.nll, tolerance);
            assert_close("log-probability", log_probs(&found), log_probs(&expected), tolerance);
            assert_eq!(kept, bytes);
            assert!(widened > kept, "{widened} {kept}");
        }
    }
}

#[test]
fn a_stored_teacher_records_what_its_f32_weights_record() {
    records_alike(&Device::cpu());
}

#[test]
fn a_stored_teacher_records_what_its_f32_weights_record_on_every_gpu() {
    gpus().iter().for_each(records_alike);
}

/// Losses of some dense steps beside a live teacher, and the planned bytes of the teacher's weights.
fn taught(dir: &Path, device: &Device, weights: &str) -> (Vec<Vec<f64>>, u64) {
    let teacher = dir.join("teacher.gguf").display().to_string();
    let text = novel(dir, "taught.txt", 30_000..32_000).display().to_string();
    let recipe = recipe(
        &json!({
            "output_path": dir.join("unused"), "sequence_length": 32,
            "model": { "layers_of": teacher, "layers": [0] },
            "teacher": { "kind": "live", "path": teacher, "weights": weights },
            "dataset": { "train": text },
            "loss_functions": [{ "function": "kl", "weight": 1 }],
            "training_args": { "max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-3 },
        })
        .to_string(),
    );
    let setup = Setup::open_on(&recipe, device.clone()).unwrap();
    let bytes = setup.memory.teacher;
    let mut trainer = pollster::block_on(setup.trainer()).unwrap();
    let losses = (0..3).map(|_| {
        let counts = trainer.advance().unwrap();
        pollster::block_on(trainer.reports(&[counts])).unwrap()[0].losses.clone()
    });
    (losses.collect(), bytes)
}

fn teaches_alike(device: &Device) {
    let dir = tempfile::tempdir().unwrap();
    let matrices = every_type(&dir.path().join("teacher.gguf"));
    let (found, bytes) = taught(dir.path(), device, "stored");
    let (expected, _) = taught(dir.path(), device, "f32");
    // And a rotary table, f32 [32, 64].
    assert_eq!(bytes, matrices + norms(256) + 4 * 32 * 64);
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() < SUMS && *expected > 0.0, "{found}, of f32 weights {expected}");
    }
}

#[test]
fn a_stored_live_teacher_teaches_what_its_f32_weights_teach() {
    teaches_alike(&Device::cpu());
}

#[test]
fn a_stored_live_teacher_teaches_what_its_f32_weights_teach_on_every_gpu() {
    gpus().iter().for_each(teaches_alike);
}

fn generates_alike(device: &Device) {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("model.gguf");
    every_type(&path);
    let folder = ModelFolder::open(path).unwrap();
    let mut stored = Generator::new(device, &folder, 64, 340).unwrap();
    let decoder = models::from_config(folder.path(), &folder.config).unwrap();
    let mut store = Store::new(device);
    decoder.allocate(&mut store, "", 64).unwrap();
    load_parameters(&decoder, &store, "", &folder.tensors, None).unwrap();
    let mut widened = Generator::over(decoder, store, 64, 340).unwrap();
    // More than a prefill, so that both plans run.
    let prompt: Vec<u32> = (0..40).map(|i| 7 * i % 340).collect();
    let sampling = Sampling { max_tokens: 1, ..Sampling::default() };
    let logits = |generator: &mut Generator| {
        pollster::block_on(generator.generate(&prompt, &sampling, &mut |_| Continue(()))).unwrap();
        pollster::block_on(generator.last_logits()).unwrap()
    };
    let (found, expected) = (logits(&mut stored), logits(&mut widened));
    assert_close("logit", &found, &expected, SUMS);
}

#[test]
fn a_stored_model_generates_what_its_f32_weights_generate() {
    generates_alike(&Device::cpu());
}

#[test]
fn a_stored_model_generates_what_its_f32_weights_generate_on_every_gpu() {
    gpus().iter().for_each(generates_alike);
}

#[test]
fn a_block_that_is_no_number_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    every_type(&path);
    let mut bytes = std::fs::read(&path).unwrap();
    // The head is first: 340 rows of 8 blocks of 34 bytes. Block 3 of row 5 gets an infinite scale.
    let name = b"token_embd.weight";
    assert!(bytes.windows(name.len()).any(|window| window == name));
    let data = bytes.len() - ModelFolder::open(path.clone()).unwrap().tensors.stored_bytes();
    let start = (0..data + 1).rev().find(|at| at % 32 == 0).unwrap();
    let at = start + (5 * 8 + 3) * 34;
    bytes[at..at + 2].copy_from_slice(&half::f16::INFINITY.to_bits().to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let error = Generator::new(&Device::cpu(), &ModelFolder::open(path).unwrap(), 64, 340).err().unwrap().to_string();
    assert!(error.contains("model.embed_tokens.weight") && error.contains("at value 1376"), "{error}");
}

#[test]
fn other_weights_than_there_are_get_refused() {
    let dir = tempfile::tempdir().unwrap();
    small_model(&dir.path().join("teacher"), 32, 2, 1);
    let refused = |teacher: Value| {
        let text = json!({
            "output_path": "unused", "sequence_length": 32, "model": "student", "teacher": teacher,
            "dataset": { "train": "text.txt" }, "loss_functions": [{ "function": "kl", "weight": 1 }],
            "training_args": { "max_steps": 3 },
        });
        let recipe = potstill::distill::Recipe::parse(&text.to_string(), Path::new("recipe.yaml"));
        recipe.err().unwrap().to_string()
    };
    let live = refused(json!({ "kind": "live", "path": "teacher", "weights": "q4_k" }));
    assert!(live.contains("`teacher.weights`") && live.contains("stored, f32") && live.contains("q4_k"), "{live}");
    let recorded = refused(json!({ "kind": "shards", "path": "shards", "weights": "stored" }));
    assert!(recorded.contains("`teacher.weights`") && recorded.contains("recorded rows"), "{recorded}");
}
