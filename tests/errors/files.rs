//! Models, tokenizers and shard sets that are damaged, unknown, or do not belong together.

use super::place::{LETTERS, Place, VOCABULARY};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

#[test]
fn weights_that_are_missing_or_cut_short() {
    let place = Place::new();
    place.distill_fails("model: nowhere", &["`nowhere`", "a model folder", "no file of this name", "check the path"]);
    place.distill_fails("model: own/model", &["`own/model`", "cache", "unset HF_HUB_OFFLINE"]);
    let folder = place.model("cut", LETTERS);
    let whole = fs::read(folder.join("model.safetensors")).unwrap();
    for length in [0, 4, 100, whole.len() - 1] {
        fs::write(folder.join("model.safetensors"), &whole[..length]).unwrap();
        let found = format!("found {length} bytes");
        place.distill_fails("model: cut", &["cut/model.safetensors", "expected a whole", &found, "fetch it again"]);
    }
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    place.distill_fails("model: cut", &["cut: expected model.safetensors", "found neither", "converted"]);

    let whole = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny_llama.gguf")).unwrap();
    for length in [50, whole.len() - 1] {
        fs::write(place.path("cut.gguf"), &whole[..length]).unwrap();
        place.distill_fails("model: cut.gguf", &["cut.gguf: ", "truncated", "fetch it again"]);
    }
    place.write("cut.gguf", "GIF89a and more of that");
    place.distill_fails("model: cut.gguf", &["cut.gguf", "expected a GGUF file", "GIF8", "fetch it again"]);
}

#[test]
fn tensors_of_another_shape_name_type_or_value() {
    let place = Place::new();
    place.changed("shape", |name, shape, values| {
        if name == "model.norm.weight" {
            *shape = vec![47];
            values.truncate(47);
        }
    });
    let parts = ["shape/model.safetensors: tensor `model.norm.weight`", "shape [48]", "found [47]", "together"];
    place.distill_fails("model: shape", &parts);
    place.changed("name", |name, _, _| {
        if name == "model.norm.weight" {
            *name = "model.nrom.weight".into();
        }
    });
    let parts = ["tensor `model.norm.weight`", "none of this name", "nearest name is `model.nrom.weight`"];
    place.distill_fails("model: name", &parts);
    place.configured("config", json!({ "vocab_size": 140 }));
    let parts =
        ["config/model.safetensors: tensor `model.embed_tokens.weight`", "[140, 48]", "[131, 48]", "config.json"];
    place.distill_fails("model: config", &parts);
    place.changed("value", |name, _, values| {
        if name == "model.layers.1.mlp.up_proj.weight" {
            values[7] = f32::INFINITY;
        }
    });
    let parts = ["tensor `model.layers.1.mlp.up_proj.weight`", "finite", "inf at value 7", "damaged"];
    place.distill_fails("model: value", &parts);
    place.fails("generate value --prompt The --device cpu", &parts);
    place.fails("capture value text.txt -o shards --top-k 4 --device cpu", &parts);
}

#[test]
fn architectures_quantisations_and_sizes_that_are_unknown() {
    let place = Place::new();
    place.configured("other", json!({ "model_type": "mamba" }));
    place.distill_fails("model: other", &["other: `model_type`", "llama", "found `mamba`", "families"]);
    place.configured("activation", json!({ "hidden_act": "relu" }));
    place.distill_fails("model: activation", &["`hidden_act`", "expected one of `silu`", "\"relu\""]);
    place.configured("quantised", json!({ "quantization_config": { "quant_method": "gptq" } }));
    place.distill_fails("model: quantised", &["`quantization_config`", "F32, F16 or BF16", "`gptq`", "GGUF"]);
    // Sizes no machine has: refused as such, not tried.
    for (key, size) in [("num_hidden_layers", 1_000_000_000u64), ("hidden_size", 48_000_000), ("vocab_size", 1 << 31)] {
        place.configured("huge", json!({ key: size }));
        place.distill_fails("model: huge", &[&format!("huge: `{key}`"), "at most", &size.to_string()]);
    }
    // A GGUF tensor of a type that is not read: IQ2_XXS is number 16 of ggml's types.
    let mut bytes = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny_llama.gguf")).unwrap();
    let name = b"output_norm.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len();
    let dims = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    bytes[at + 4 + 8 * dims] = 16;
    fs::write(place.path("iq.gguf"), bytes).unwrap();
    place.distill_fails("model: iq.gguf", &["iq.gguf", "output_norm.weight", "IQ2_XXS"]);
}

#[test]
fn a_tokenizer_that_is_missing_or_larger_than_the_model() {
    let place = Place::new();
    fs::remove_file(place.model("none", LETTERS).join("tokenizer.json")).unwrap();
    place.distill_fails("model: none", &["none: expected tokenizer.json", "save_pretrained"]);
    place.distill_fails("model: { config: none }", &["`model.tokenizer`", "whose tokenizer", "name a model folder"]);
    let many: String = LETTERS.chars().chain((0..100).filter_map(|i| char::from_u32(0x400 + i))).collect();
    place.model("large", &many);
    let parts = ["`large`", "`vocab_size`", "at least 159", "found 131", "belong together"];
    place.distill_fails("model: large", &parts);
    place.fails("capture large text.txt -o shards --top-k 4 --device cpu", &["`real_vocab_size`", "131", "159"]);
}

#[test]
fn a_padded_vocabulary_is_fine_and_its_surplus_is_masked() {
    let place = Place::new();
    // Rows past the tokenizer's ids would win every choice if they took part.
    place.changed("loud", |name, _, values| {
        if name == "lm_head.weight" {
            let width = values.len() / 131;
            values[VOCABULARY * width..].iter_mut().for_each(|x| *x *= 1e4);
        }
    });
    place.write("line.jsonl", "{\"text\": \"The cat sat\"}\n");
    let [quiet, loud] = ["model", "loud"].map(|model| -> Value {
        let line = place.succeeds(&format!("score {model} line.jsonl --top {VOCABULARY} --device cpu"));
        serde_json::from_str(&line).unwrap()
    });
    assert_eq!(quiet, loud, "the surplus rows change nothing");
    for best in loud["top_logprobs"].as_array().unwrap().iter().skip(1) {
        let pairs: Vec<(u64, f64)> = serde_json::from_value(best.clone()).unwrap();
        assert!(pairs.iter().all(|(id, _)| *id < VOCABULARY as u64));
        let mass: f64 = pairs.iter().map(|(_, log_prob)| log_prob.exp()).sum();
        // f32 log-probabilities near 4 carry rounding of 2^-22, and so does each probability, relatively.
        assert!((mass - 1.0).abs() < 1e-5, "{mass}");
    }
    let text = |model: &str| place.succeeds(&format!("generate {model} --prompt The --max-tokens 8 --device cpu"));
    assert_eq!(text("model"), text("loud"));
    // A teacher and a student that pad the same tokenizer differently: 131 rows and 64.
    place.changed("narrow", |name, shape, values| {
        if name == "lm_head.weight" || name == "model.embed_tokens.weight" {
            values.truncate(64 * shape[1]);
            shape[0] = 64;
        }
    });
    let config = place.path("narrow/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(config, text.replace("\"vocab_size\": 131", "\"vocab_size\": 64")).unwrap();
    place.succeeds("capture model text.txt -o shards --top-k 16 --sequence-length 32 --device cpu");
    place.recipe("model: narrow\nteacher: { kind: shards, path: shards }");
    place.succeeds("distill recipe.yaml");
    place.recipe("output_path: live\nmodel: narrow\nteacher: { kind: live, path: model }");
    place.succeeds("distill recipe.yaml");
}

#[test]
fn teachers_and_shards_that_do_not_belong_to_the_student_or_the_text() {
    let place = Place::new();
    place.model("reversed", &LETTERS.chars().rev().collect::<String>());
    place.succeeds("capture model text.txt -o shards --top-k 16 --sequence-length 32 --device cpu");
    let shards = "teacher: { kind: shards, path: shards }\n";
    let parts = ["shards: shard set: `tokenizer_digest`", "(the student's)", "from model", "capture the teacher"];
    place.distill_fails(&format!("{shards}model: reversed"), &parts);
    let live = "teacher: { kind: live, path: model }\nmodel: reversed";
    place.distill_fails(live, &["the teacher, `model`: tokenizer", "the student's (59 tokens", "share a tokenizer"]);
    place.write("other.txt", "Another text.");
    let parts = ["shards: shard set: `corpus_digest`", "captured from model", "train on the text that was captured"];
    place.distill_fails(&format!("{shards}dataset: {{ train: other.txt }}"), &parts);
    let parts = ["shards: `context_length`", "expected 16", "found 32", "set `sequence_length: 32`"];
    place.distill_fails(&format!("{shards}sequence_length: 16"), &parts);
    let cold = "loss_functions: [{ function: kl, weight: 1, temperature: 2 }]";
    place.distill_fails(&format!("{shards}{cold}"), &["shards: `temperatures`", "--temperatures 1,2"]);
    let parts = ["none: expected a shard set", "nothing of this name", "potstill capture"];
    place.distill_fails("teacher: { kind: shards, path: none }", &parts);
    let parts = ["model: expected a shard set", "no manifest.json", "potstill capture"];
    place.distill_fails("teacher: { kind: shards, path: model }", &parts);
    let file = place.path("shards/00000.shard");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    place.distill_fails(shards.trim(), &["shards/00000.shard", "expected", "found"]);
}
