//! What several test files need.
#![allow(dead_code)]

use potstill::device::{Choice, Device, adapters};
use potstill::distill::Recipe;
use potstill::distill::recipe::SaveDtype;
use potstill::distill::student::write_folder;
use potstill::formats::Tokenizer;
use potstill::graph::Store;
use potstill::models;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Names of the adapters to test on: all found, but only those named by POTSTILL_TEST_ADAPTER if it is set. None is an
/// error unless POTSTILL_TEST_ADAPTER is `none`.
pub fn gpu_names() -> BTreeSet<String> {
    let only = std::env::var("POTSTILL_TEST_ADAPTER").unwrap_or_default().to_lowercase();
    if only == "none" {
        return BTreeSet::new();
    }
    let found = pollster::block_on(adapters());
    let names: BTreeSet<String> = found.iter().map(|a| a.name.to_lowercase()).filter(|n| n.contains(&only)).collect();
    assert!(!names.is_empty(), "no GPU adapter matches `{only}`; tests/setup.sh installs a software driver");
    names
}

/// The adapters to test on, opened.
pub fn gpus() -> Vec<Device> {
    let open = |name: String| pollster::block_on(Choice::Gpu(name).open()).expect("the adapter opens");
    gpu_names().into_iter().map(open).collect()
}

/// A folder of `tests/golden/`.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The reference model, fetched by tests/setup.sh.
pub fn smollm2() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.exists(), "{} is missing: run tests/setup.sh first", path.display());
    path
}

/// A real tokenizer of 340 tokens: every byte, 83 merges, one special token.
pub fn small_tokenizer() -> Tokenizer {
    let path = golden("smollm_tokenizer.json");
    let Value::Object(config) = json!({"bos_token": "<|end|>", "eos_token": "<|end|>"}) else { unreachable!() };
    Tokenizer::from_json(&path, std::fs::read(&path).unwrap(), config).unwrap()
}

/// The config.json of a Llama for [`small_tokenizer`].
pub fn small_config(hidden: usize, layers: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "bos_token_id": 0, "eos_token_id": 0, "vocab_size": 340, "max_position_embeddings": 1024,
        "hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "initializer_range": 0.05, "tie_word_embeddings": true,
    })
}

/// Writes a model folder of random weights with [`small_config`] and [`small_tokenizer`].
pub fn small_model(folder: &Path, hidden: usize, layers: usize, seed: u64) {
    let decoder = models::from_config(folder, &small_config(hidden, layers)).unwrap();
    let mut store = Store::new(&Device::cpu());
    decoder.allocate(&mut store, "", 1).unwrap();
    models::random_parameters(&decoder, &store, "", seed).unwrap();
    let tokenizer = small_tokenizer();
    pollster::block_on(write_folder(folder, &decoder, &store, "", Some(&tokenizer), &Value::Null, SaveDtype::Float32))
        .unwrap();
}

/// Bytes `range` of the novel that tests/setup.sh fetches, as a file in `folder`.
pub fn novel(folder: &Path, name: &str, range: Range<usize>) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/text/moby-dick.txt");
    let text = std::fs::read(&source).unwrap_or_else(|e| panic!("{}: {e}; run tests/setup.sh", source.display()));
    let path = folder.join(name);
    std::fs::write(&path, String::from_utf8_lossy(&text[range]).as_bytes()).unwrap();
    path
}

/// A recipe from its YAML.
pub fn recipe(text: &str) -> Recipe {
    Recipe::parse(text, Path::new("recipe.yaml")).unwrap()
}

/// A safetensors file of golden values.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(path: &Path) -> Golden {
        Golden(std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data().to_vec()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&self.bytes(name))
    }

    pub fn f64(&self, name: &str) -> Vec<f64> {
        bytemuck::pod_collect_to_vec(&self.bytes(name))
    }

    pub fn i32(&self, name: &str) -> Vec<i32> {
        bytemuck::pod_collect_to_vec(&self.bytes(name))
    }

    pub fn names(&self) -> Vec<String> {
        SafeTensors::deserialize(&self.0).unwrap().names().into_iter().map(|n| n.to_string()).collect()
    }

    pub fn metadata(&self) -> serde_json::Value {
        let (_, header) = SafeTensors::read_metadata(&self.0).unwrap();
        serde_json::from_str(&header.metadata().as_ref().unwrap()["golden"]).unwrap()
    }
}

/// Largest absolute difference divided by the largest magnitude expected.
pub fn relative_error(expected: &[f32], found: &[f32]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let largest = expected.iter().fold(1e-30f64, |a, b| a.max(f64::from(b.abs())));
    let worst = expected
        .iter()
        .zip(found)
        .map(|(e, f)| (f64::from(*e) - f64::from(*f)).abs())
        .fold(0.0, |a, b| if b.is_nan() { f64::INFINITY } else { f64::max(a, b) });
    worst / largest
}
