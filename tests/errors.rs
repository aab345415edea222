//! Every mistake a user can make: the command ends with 1 and one line that says which file and field, what was
//! expected and found, and what to do; and what was on the disk before is still whole.
#![cfg(feature = "cli")]

use potstill::formats::{Dtype, TensorSpec, Tensors, write_safetensors};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz .,\nABCDEFGHIJKLMNOPQRSTUVWXYZ";
/// Ids of the tokenizer: three special tokens and the letters. The model's embedding has 131 rows.
const VOCABULARY: usize = 3 + 56;

/// A working folder with a model, `text.txt` and a recipe that trains on it; the command runs in it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        place.model("model", LETTERS);
        place.write("text.txt", &"The cat sat on the mat, and the dog looked on.\n".repeat(20));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// A golden model with a tokenizer of single characters.
    fn model(&self, name: &str, letters: &str) -> PathBuf {
        let (folder, golden) = (self.path(name), Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gqa_untied"));
        fs::create_dir_all(&folder).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(golden.join(file), folder.join(file)).unwrap();
        }
        let special = ["<unk>", "<s>", "</s>"];
        let tokens = special.iter().map(|s| s.to_string()).chain(letters.chars().map(String::from));
        let vocab: Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
        let added = |(id, token): (usize, &&str)| {
            json!({
                "id": id, "content": token, "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        };
        let tokenizer = json!({
            "version": "1.0", "added_tokens": special.iter().enumerate().map(added).collect::<Vec<_>>(),
            "decoder": { "type": "Fuse" },
            "model": { "type": "BPE", "unk_token": "<unk>", "vocab": vocab, "merges": [] },
        });
        fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let config = json!({ "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>" });
        fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
        folder
    }

    /// Another model like `model`, whose config.json has other values for some keys.
    fn configured(&self, name: &str, changes: Value) {
        let path = self.model(name, LETTERS).join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        fs::write(path, config.to_string()).unwrap();
    }

    /// Another model like `model`, each of whose tensors `change` may rename, reshape or overwrite.
    fn changed(&self, name: &str, change: impl Fn(&mut String, &mut Vec<usize>, &mut Vec<f32>)) {
        let folder = self.model(name, LETTERS);
        let tensors = Tensors::open_folder(&folder).unwrap();
        let (mut specs, mut all) = (Vec::new(), BTreeMap::new());
        for tensor in tensors.names() {
            let (mut name, mut shape) = (tensor.to_string(), tensors.shape(tensor).unwrap().to_vec());
            let mut values = tensors.read_f32(tensor).unwrap();
            change(&mut name, &mut shape, &mut values);
            specs.push(TensorSpec { name: name.clone(), dtype: Dtype::F32, shape });
            all.insert(name, values);
        }
        let file = folder.join("model.safetensors");
        write_safetensors(&file, &specs, &BTreeMap::new(), |spec| Ok(Cow::Borrowed(&all[&spec.name][..]))).unwrap();
    }

    /// Writes `recipe.yaml`: the base with these lines put in the place of those of the same keys.
    fn recipe(&self, lines: &str) {
        let base = "output_path: out\ndevice: cpu\nsequence_length: 32\nmodel: model\n\
                    dataset: { train: text.txt, holdout: { fraction: 0.1 } }\n\
                    training_args: { max_steps: 4, per_device_train_batch_size: 2, save_steps: 2, logging_steps: 1 }\n";
        let key = |line: &str| line.split(':').next().unwrap_or_default().to_string();
        let given: Vec<String> = lines.lines().map(key).collect();
        let kept: Vec<&str> = base.lines().filter(|line| !given.contains(&key(line))).collect();
        self.write("recipe.yaml", &format!("{}\n{lines}\n", kept.join("\n")));
    }

    fn run(&self, arguments: &str) -> Output {
        command(self.dir.path()).args(arguments.split_whitespace()).output().expect("the command starts")
    }

    fn succeeds(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The error's line, which has all of these parts.
    fn fails(&self, arguments: &str, parts: &[&str]) -> String {
        error_line(&self.run(arguments), parts)
    }

    fn distill_fails(&self, lines: &str, parts: &[&str]) {
        self.recipe(lines);
        self.fails("distill recipe.yaml", parts);
        let left = self.files("out");
        assert!(!left.iter().any(|name| name == "model.safetensors" || name.contains(".tmp")), "{left:?}");
    }

    /// Every file and folder below `folder`, sorted.
    fn files(&self, folder: &str) -> Vec<String> {
        let (mut found, mut open) = (Vec::new(), vec![self.path(folder)]);
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                found.push(entry.file_name().to_string_lossy().into_owned());
                open.extend(entry.path().is_dir().then(|| entry.path()));
            }
        }
        found.sort();
        found
    }
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_potstill"));
    command.current_dir(folder).env("HF_HUB_OFFLINE", "1").env("HF_HUB_CACHE", "no such folder");
    command
}

fn error_line(output: &Output, parts: &[&str]) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let line = text.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("no error in: {text}"));
    for part in parts {
        assert!(line.contains(part), "no `{part}` in: {line}");
    }
    line.to_string()
}

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

#[test]
fn recipe_keys_and_values_that_are_unknown() {
    let place = Place::new();
    place.distill_fails("sede: 3", &["recipe.yaml: `sede`: ", "an unknown key", "did you mean `seed`?"]);
    place.distill_fails(
        "training_args: { max_steps: 4, learning_rte: 0.1 }",
        &["`training_args.learning_rte`", "did you mean `learning_rate`?"],
    );
    place.distill_fails("seed: many", &["recipe.yaml: `seed`: expected a whole number", "the text \"many\""]);
    place.distill_fails("training_args: { max_steps: 4, learning_rate: .nan }", &["recipe.yaml", ".nan", "line"]);
    place.distill_fails("seed: 1\nseed: 2", &["recipe.yaml", "duplicate mapping key: seed"]);
    place.distill_fails("sequence_length: 100000000000000000", &["`sequence_length`", "1 to 16777216"]);
    let many = "training_args: { max_steps: 1, per_device_train_batch_size: 100000000000 }";
    place.distill_fails(many, &["`training_args.per_device_train_batch_size`", "16777216 tokens", "100000000000"]);
    place.distill_fails("model: { layers_of: model, layers: [0, 7] }", &["`model.layers`", "0 to 2", "[0, 7]"]);
    place.fails("distill nowhere.yaml", &["cannot read nowhere.yaml", "check the path"]);
    place.fails("distill model", &["cannot read model", "name a file"]);
    let line = place.fails("distill text.txt", &["text.txt: expected a mapping", "the text \"The cat"]);
    assert!(line.len() < 200, "{line}");
}

#[test]
fn datasets_that_are_empty_missing_or_malformed() {
    let place = Place::new();
    place.write("blank.txt", "  \n\n ");
    place.write("empty.jsonl", "");
    fs::create_dir(place.path("folder")).unwrap();
    let dataset = |train: &str| format!("dataset: {{ train: {train} }}");
    let parts = ["blank.txt: ", "at least one document", "found none", "the dataset is empty"];
    place.distill_fails(&dataset("blank.txt"), &parts);
    place.distill_fails(&dataset("empty.jsonl"), &["empty.jsonl: ", "the dataset is empty"]);
    place.distill_fails(&dataset("folder"), &["folder: ", ".txt or .jsonl file", "found none"]);
    place.distill_fails(&dataset("none.txt"), &["none.txt: expected a .txt", "nothing of this name", "check the path"]);
    place.distill_fails(&dataset("recipe.yaml"), &["recipe.yaml", "the extension \"yaml\"", "rename"]);
    place.fails("capture model blank.txt -o shards --top-k 4", &["the dataset is empty"]);
    place.fails("capture model text.txt -o shards --top-k 4 --limit-tokens 0", &["at least 1", "found 0"]);
    for (row, parts) in [
        ("{\"txt\": \"x\"}", ["rows.jsonl:1: ", "`text`", "found txt"]),
        ("{\"text\": 1}", ["rows.jsonl:1: text", "a string", "found 1"]),
        ("{\"input_ids\": [1, 999]}", ["rows.jsonl:1: token 1", "below 59", "another tokenizer"]),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}", ["rows.jsonl:1", "chat template", "instruct"]),
    ] {
        place.write("rows.jsonl", row);
        place.distill_fails(&dataset("rows.jsonl"), &parts);
    }
    let parts = ["held-out split", "tokens on both sides", "sequences of 4096", "shorter sequences"];
    place.distill_fails("sequence_length: 4096", &parts);
    assert!(!place.path("shards").exists());
}

#[test]
fn a_document_longer_than_the_context_is_split_or_refused_by_choice() {
    let place = Place::new();
    let refuse = "dataset: { train: text.txt, long_documents: refuse }";
    // 20 lines of 47 characters, a token each, and the end-of-text token.
    place.distill_fails(refuse, &["text.txt:1: ", "at most 32 tokens", "found 941 tokens", "be split"]);
    place.recipe("dataset: { train: text.txt }");
    place.succeeds("distill recipe.yaml");
    place.write("long.jsonl", &format!("{{\"input_ids\": [{}]}}", vec!["5"; 300].join(",")));
    let parts = ["long.jsonl:1: ", "at most 256 tokens", "300 tokens", "windows"];
    place.fails("score model long.jsonl --device cpu", &parts);
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint() {
    let place = Place::new();
    // The rate rises from 0 to a third of 3e30 at step 2: the update after it leaves nothing finite.
    let args = |rest: &str| format!("training_args: {{ max_steps: 9, logging_steps: 1, max_grad_norm: 0, {rest} }}");
    let hot = args("save_steps: 1, learning_rate: 3e30, warmup_steps: 3");
    place.recipe(&hot);
    let parts = ["not finite at step 3", "`learning_rate`", "start anew", "last good checkpoint is", "checkpoint-2"];
    place.fails("distill recipe.yaml", &parts);
    let files = place.files("out");
    assert!(files.contains(&"checkpoint-2".into()) && !files.contains(&"model.safetensors".into()), "{files:?}");
    // Whole: the run goes on from it and meets the same end.
    place.fails("distill recipe.yaml", &parts);
    // Without a checkpoint nothing is in the way of another attempt.
    place.recipe(&format!("output_path: fresh\n{}", args("save_steps: 8, learning_rate: 3e30")));
    place.fails("distill recipe.yaml", &["not finite at step 2", "no checkpoint had been saved"]);
    place.recipe("output_path: fresh");
    place.succeeds("distill recipe.yaml");
}

#[test]
fn devices_that_are_not_there() {
    let place = Place::new();
    place.recipe("");
    let parts = ["device: expected a GPU matching `nonexistent`", "found ", "`cpu`"];
    place.fails("distill recipe.yaml --device gpu:nonexistent", &parts);
    place.fails("capture model text.txt -o shards --device gpu:nonexistent", &parts);
    place.fails("generate model --prompt x --device gpu:nonexistent", &parts);
    place.distill_fails("device: nonexistent", &["recipe.yaml: `device`", "gpu:PART", "found nonexistent"]);
    assert!(!place.path("shards").exists() && !place.path("out/metrics.jsonl").exists());
}

#[test]
fn numbers_on_the_command_line_that_make_no_sense() {
    let place = Place::new();
    let capture = |rest: &str| format!("capture model text.txt -o shards --device cpu {rest}");
    place.fails(&capture(""), &["`record.k`", "1 to 59", "found 64"]);
    place.fails(&capture("--top-k 4 --batch-size 0"), &["`batch_size`", "at least 1", "found 0"]);
    place.fails(&capture("--top-k 4 --sequence-length 0"), &["`sequence_length`", "found 0"]);
    place.fails(&capture("--top-k 4 --sequence-length 100000000000"), &["`sequence_length`", "16777216"]);
    place.fails(&capture("--top-k 4 --temperatures 2"), &["`temperatures`", "1 first", "[2.0]"]);
    place.fails(&capture("--kind sampled --temperatures 1,2"), &["`temperatures`", "the one temperature"]);
    assert!(!place.path("shards").exists());
    let generate = |rest: &str| format!("generate model --prompt x --device cpu {rest}");
    place.fails(&generate("--max-tokens 0"), &["`max_tokens`", "at least 1"]);
    place.fails(&generate("--max-tokens 18446744073709551615"), &["`max_tokens`", "at most 16777216"]);
    place.fails(&generate("--temperature nan"), &["`temperature`", "NaN"]);
    place.fails(&generate("--temperature 1 --top-p 0"), &["`top_p`", "above 0"]);
    place.fails("generate model --chat x --device cpu", &["model: expected a chat template", "--prompt"]);
    for (line, parts) in [
        ("{\"text\": \"\"}", ["line.jsonl:1: ", "at least one token", "leave out"]),
        ("{\"input_ids\": [5000]}", ["line.jsonl:1: ", "below 59", "found 5000"]),
        ("{\"input_ids\": [-1]}", ["line.jsonl:1: `input_ids`", "a list of token ids", "whole numbers"]),
        ("{\"txt\": \"x\"}", ["line.jsonl:1: ", "`text` (a string)", "name the field"]),
        ("text", ["line.jsonl:1: ", "a JSON object", "one object a line"]),
    ] {
        place.write("line.jsonl", line);
        place.fails("score model line.jsonl --device cpu", &parts);
    }
    place.fails("quickstart --tokens 0", &["--tokens", "at least 512", "found 0"]);
}

#[test]
fn output_folders_that_hold_something_else_are_left_alone() {
    let place = Place::new();
    fs::create_dir(place.path("thesis")).unwrap();
    place.write("thesis/chapter.txt", "mine");
    place
        .distill_fails("output_path: thesis", &["thesis: expected a new or empty directory", "chapter.txt", "another"]);
    let capture = |to: &str| format!("capture model text.txt -o {to} --top-k 4 --sequence-length 32 --device cpu");
    place.fails(&capture("thesis"), &["thesis: expected an empty folder", "chapter.txt", "another folder"]);
    place.fails(&capture("text.txt"), &["text.txt: expected a folder", "found a file", "another folder"]);
    place.distill_fails("output_path: text.txt", &["text.txt: expected a directory", "a file"]);
    assert_eq!(place.files("thesis"), ["chapter.txt"]);
    assert_eq!(fs::read(place.path("thesis/chapter.txt")).unwrap(), b"mine");

    // Another capture's set, and another recipe's run.
    place.succeeds(&capture("shards"));
    let before = fs::read(place.path("shards/manifest.json")).unwrap();
    let other = capture("shards").replace("--top-k 4", "--top-k 5");
    place.fails(&other, &["shards/manifest.json: `record.k`", "expected 5", "found 4", "another folder"]);
    assert_eq!(fs::read(place.path("shards/manifest.json")).unwrap(), before);
    place.recipe("");
    place.succeeds("distill recipe.yaml");
    let student = fs::read(place.path("out/model.safetensors")).unwrap();
    place.recipe("seed: 7");
    place.fails("distill recipe.yaml", &["recipe key `seed`", "expected 42", "found 7", "another `output_path`"]);
    // Asked to overwrite, a recipe that cannot begin costs nothing either.
    place.recipe("model: nowhere");
    place.fails("distill recipe.yaml --overwrite", &["`nowhere`"]);
    assert!(place.files("out").contains(&"checkpoint-4".into()));
    assert_eq!(fs::read(place.path("out/model.safetensors")).unwrap(), student);
    place.recipe("seed: 7");
    place.succeeds("distill recipe.yaml --overwrite");
    assert_ne!(fs::read(place.path("out/model.safetensors")).unwrap(), student);
}

/// Runs the command where no file may grow past `kib`: what a full disk does, without needing one.
#[cfg(target_os = "linux")]
fn limited(place: &Place, kib: usize, arguments: &str) -> Output {
    let script = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$0\" {arguments}");
    let mut shell = Command::new("bash");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_potstill")]).current_dir(place.dir.path());
    shell.output().expect("bash starts")
}

#[test]
#[cfg(target_os = "linux")]
fn a_write_that_fails_leaves_what_was_there_and_can_be_repeated() {
    let place = Place::new();
    // A checkpoint is three times the 263 KB of weights; the set is 941 rows of 64 bytes.
    place.recipe("");
    let parts = ["cannot write", "checkpoint-2", "File too large", "limit"];
    error_line(&limited(&place, 500, "distill recipe.yaml"), &parts);
    assert_eq!(place.files("out"), ["checkpoints", "metrics.jsonl", "samples-before.json"]);
    place.succeeds("distill recipe.yaml");
    let capture = "capture model text.txt -o shards --top-k 16 --sequence-length 32 --device cpu";
    error_line(&limited(&place, 16, capture), &["cannot write", "00000.shard", "File too large"]);
    assert_eq!(place.files("shards"), ["journal.jsonl"]);
    place.succeeds(capture);
    place.succeeds("inspect shards --verify");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_named_and_the_same_command_goes_on_later() {
    let place = Place::new();
    let disk = place.path("disk");
    fs::create_dir(&disk).unwrap();
    let mount = |arguments: &[&str]| {
        let status = Command::new("mount").args(arguments).arg(&disk).stderr(std::process::Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    if !mount(&["-t", "tmpfs", "-o", "size=1200k", "tmpfs"]) {
        println!("skipped: mounting a small tmpfs is not permitted here");
        return;
    }
    place.recipe("output_path: disk/out");
    let first = place.run("distill recipe.yaml");
    let left = place.files("disk");
    let grown = mount(&["-o", "remount,size=64m"]);
    let second = place.run("distill recipe.yaml");
    let all = place.files("disk");
    let _ = Command::new("umount").arg(&disk).status();
    error_line(&first, &["cannot write", "checkpoint-4", "No space left", "free some space", "it resumes"]);
    assert!(left.contains(&"checkpoint-2".into()) && !left.iter().any(|name| name.contains(".tmp")), "{left:?}");
    assert!(grown && second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
    assert!(all.contains(&"model.safetensors".into()), "{all:?}");
}
