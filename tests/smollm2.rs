//! A real model, SmolLM2-135M-Instruct in Q4_1, when `POTSTILL_TEST_GGUF` or `.cache/models` has it.
//! Reference ids and counts were made with transformers from the same file.

use potstill::formats::{ModelFolder, Tensors};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
const LINE: &str = "Distillation separates a mixture by boiling and condensing: the lighter part rises first, \
                    and what is heavy stays behind in the still.";
const IDS: [u32; 27] = [
    16535, 20075, 24506, 253, 8196, 411, 16891, 284, 9560, 12689, 42, 260, 13603, 599, 13685, 808, 28, 284, 732, 314,
    4591, 13895, 2893, 281, 260, 1361, 30,
];

/// The file, checked to be the one the numbers were made from; none where it has not been fetched.
fn model() -> Option<ModelFolder> {
    let cached = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("POTSTILL_TEST_GGUF").map_or(cached, PathBuf::from);
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    let sum = Sha256::digest(std::fs::read(&path).unwrap());
    assert_eq!(sum.iter().map(|b| format!("{b:02x}")).collect::<String>(), SHA256);
    Some(ModelFolder::open(path).unwrap())
}

#[test]
fn the_tokenizer_gives_the_reference_ids_and_the_text_back() {
    let Some(model) = model() else { return };
    let tokenizer = model.tokenizer().unwrap();
    assert_eq!(tokenizer.encode("Hello world 123", true).unwrap(), [19556, 905, 216, 33, 34, 35]);
    assert_eq!(tokenizer.encode(LINE, true).unwrap(), IDS);
    assert_eq!(tokenizer.decode(&IDS, true).unwrap(), LINE);
    assert_eq!(IDS.iter().map(|id| tokenizer.token_bytes(*id)).sum::<usize>(), LINE.len());
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
    assert_eq!(model.eos_ids(), [2]);
    assert_eq!(tokenizer.encode("<|im_start|>user\n", false).unwrap()[0], 1);
    assert_eq!(tokenizer.token_bytes(1), 0);
    assert!(tokenizer.chat_template().unwrap().contains("You are a helpful AI assistant named SmolLM"));
}

#[test]
fn all_272_tensors_have_the_shapes_that_the_config_says() {
    let Some(model) = model() else { return };
    let config = &model.config;
    let expected = json!({"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "head_dim": 64,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "rope_scaling": null, "tie_word_embeddings": true,
        "attention_bias": false, "mlp_bias": false, "bos_token_id": 1, "eos_token_id": 2});
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&config[key], value, "{key}");
    }
    let tensors = &model.tensors;
    let mut count = 0;
    let mut expect = |name: &str, shape: &[usize]| {
        tensors.expect_shape(name, shape).unwrap();
        count += 1;
    };
    expect("model.embed_tokens.weight", &[49152, 576]);
    expect("model.norm.weight", &[576]);
    for layer in 0..30 {
        let mut expect = |part: &str, shape: &[usize]| expect(&format!("model.layers.{layer}.{part}.weight"), shape);
        expect("input_layernorm", &[576]);
        expect("post_attention_layernorm", &[576]);
        expect("self_attn.q_proj", &[576, 576]);
        expect("self_attn.k_proj", &[192, 576]);
        expect("self_attn.v_proj", &[192, 576]);
        expect("self_attn.o_proj", &[576, 576]);
        expect("mlp.gate_proj", &[1536, 576]);
        expect("mlp.up_proj", &[1536, 576]);
        expect("mlp.down_proj", &[576, 1536]);
    }
    assert_eq!((count, tensors.names().count(), tensors.parameter_count()), (272, 272, 134_515_008));
    assert_eq!(tensors.digest(), tensors.digest());
    read_everything(tensors);
}

/// Every weight decodes to a finite number.
fn read_everything(tensors: &Tensors) {
    for name in tensors.names() {
        assert!(tensors.read_f32(name).unwrap().iter().all(|v| v.is_finite()), "{name}");
    }
}
