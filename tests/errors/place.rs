//! A working folder to make mistakes in, and the command run there.

use potstill::formats::{Dtype, TensorSpec, Tensors, write_safetensors};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz .,\nABCDEFGHIJKLMNOPQRSTUVWXYZ";
/// Ids of the tokenizer: three special tokens and the letters. The model's embedding has 131 rows.
pub const VOCABULARY: usize = 3 + 56;

/// A working folder with a model, `text.txt` and a recipe that trains on it; the command runs in it.
pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        place.model("model", LETTERS);
        place.write("text.txt", &"The cat sat on the mat, and the dog looked on.\n".repeat(20));
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// A golden model with a tokenizer of single characters.
    pub fn model(&self, name: &str, letters: &str) -> PathBuf {
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
    pub fn configured(&self, name: &str, changes: Value) {
        let path = self.model(name, LETTERS).join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        fs::write(path, config.to_string()).unwrap();
    }

    /// Another model like `model`, each of whose tensors `change` may rename, reshape or overwrite.
    pub fn changed(&self, name: &str, change: impl Fn(&mut String, &mut Vec<usize>, &mut Vec<f32>)) {
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
        let fill = async |spec: &TensorSpec| Ok(Cow::Borrowed(&all[&spec.name][..]));
        pollster::block_on(write_safetensors(&file, &specs, &BTreeMap::new(), fill)).unwrap();
    }

    /// Writes `recipe.yaml`: the base with these lines put in the place of those of the same keys.
    pub fn recipe(&self, lines: &str) {
        let base = "output_path: out\ndevice: cpu\nsequence_length: 32\nmodel: model\n\
                    dataset: { train: text.txt, holdout: { fraction: 0.1 } }\n\
                    training_args: { max_steps: 4, per_device_train_batch_size: 2, save_steps: 2, logging_steps: 1 }\n";
        let key = |line: &str| line.split(':').next().unwrap_or_default().to_string();
        let given: Vec<String> = lines.lines().map(key).collect();
        let kept: Vec<&str> = base.lines().filter(|line| !given.contains(&key(line))).collect();
        self.write("recipe.yaml", &format!("{}\n{lines}\n", kept.join("\n")));
    }

    pub fn run(&self, arguments: &str) -> Output {
        command(self.dir.path()).args(arguments.split_whitespace()).output().expect("the command starts")
    }

    pub fn succeeds(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The error's line, which has all of these parts.
    pub fn fails(&self, arguments: &str, parts: &[&str]) -> String {
        error_line(&self.run(arguments), parts)
    }

    pub fn distill_fails(&self, lines: &str, parts: &[&str]) {
        self.recipe(lines);
        self.fails("distill recipe.yaml", parts);
        let left = self.files("out");
        assert!(!left.iter().any(|name| name == "model.safetensors" || name.contains(".tmp")), "{left:?}");
    }

    /// Every file and folder below `folder`, sorted.
    pub fn files(&self, folder: &str) -> Vec<String> {
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

pub fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_potstill"));
    command.current_dir(folder).env("HF_HUB_OFFLINE", "1").env("HF_HUB_CACHE", "no such folder");
    command
}

pub fn error_line(output: &Output, parts: &[&str]) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let line = text.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("no error in: {text}"));
    for part in parts {
        assert!(line.contains(part), "no `{part}` in: {line}");
    }
    line.to_string()
}
