//! From YAML to a [`Recipe`].

use std::path::{Path, PathBuf};

use super::loss_keys::{default_losses, loss_function};
use super::training::training_args;
use super::*;
#[cfg(not(target_family = "wasm"))]
use crate::distill::distillkit;
use crate::yaml::{Fields, Node, keep, read_yaml};
use crate::{Error, Result};

/// Keys that DistillKit's recipes have and this crate's do not.
const DISTILLKIT_ROOT: &[&str] = &[
    "resize_embeddings_to_multiple_of",
    "use_flash_attention",
    "functionary_packing",
    "model_kwargs",
    "model_auto_class",
    "trust_remote_code",
];
const DISTILLKIT_DATASET: &[&str] =
    &["train_dataset", "eval_dataset", "num_samples", "eos_label_token_ids", "prepared_dataset_path", "prepacked"];

impl Recipe {
    /// Reads the recipe at `path`.
    ///
    /// Errors name the file, the key's path, what was expected and found, and the nearest key for a misspelt one.
    pub fn load(path: impl AsRef<Path>) -> Result<Recipe> {
        let path = path.as_ref();
        let text = crate::platform::fs::read_to_string(path).map_err(Error::io("read", path))?;
        Self::parse(&text, path)
    }

    /// Reads a recipe from `text`; `file` stands for it in messages. One of DistillKit's is translated first, but in a
    /// browser.
    pub fn parse(text: &str, file: &Path) -> Result<Recipe> {
        let value = read_yaml(text, file)?;
        #[cfg(not(target_family = "wasm"))]
        let value = if distillkit::is_distillkit(&value) { distillkit::translate(&value, file)? } else { value };
        let recipe = root(Node { file, path: String::new(), value: &value })?;
        recipe.check(file)?;
        Ok(recipe)
    }
}

fn root(node: Node) -> Result<Recipe> {
    let known = &[
        "project_name",
        "output_path",
        "seed",
        "device",
        "sequence_length",
        "model",
        "teacher",
        "dataset",
        "loss_functions",
        "layer_mapping",
        "force_hidden_state_projection",
        "frozen_modules",
        "frozen_res",
        "unfrozen_parameters",
        "freeze_embeddings",
        "freeze_head",
        "lora",
        "training_args",
    ];
    let fields = node.fields(known, DISTILLKIT_ROOT)?;
    let mut wrong = Vec::new();
    let seed = keep(&mut wrong, fields.or("seed", 42, Node::integer));
    // What follows from the seed is not worth a second complaint about it.
    let or_any = seed.unwrap_or(42);
    let project_name = keep(&mut wrong, fields.maybe("project_name", Node::text));
    let output_path = keep(&mut wrong, fields.need("output_path", "the folder to write to", path));
    let device = keep(&mut wrong, fields.or("device", "auto".to_string(), Node::text));
    let sequence_length = "the number of tokens in a sequence";
    let sequence_length = keep(&mut wrong, fields.need("sequence_length", sequence_length, Node::count));
    let model = keep(&mut wrong, fields.need("model", "the student", |node| student(node, or_any)));
    let teachers = keep(&mut wrong, fields.or("teacher", Vec::new(), teachers::read));
    let dataset = keep(&mut wrong, fields.need("dataset", "the text to train on", |node| dataset(node, or_any)));
    let losses = match fields.node("loss_functions") {
        Some(node) => node.list(loss_function),
        None => Ok(default_losses(fields.node("teacher").is_some())),
    };
    let losses = keep(&mut wrong, losses);
    let layer_mapping = keep(&mut wrong, fields.maybe("layer_mapping", hidden::layer_mapping));
    let force = keep(&mut wrong, fields.or("force_hidden_state_projection", false, Node::boolean));
    let masks = keep(&mut wrong, students::masks(&fields));
    let lora = keep(&mut wrong, fields.maybe("lora", |node| students::lora(node, or_any)));
    let args = keep(&mut wrong, fields.need("training_args", "the optimisation", training_args));
    Error::all(wrong)?;
    let whole = || {
        Some(Recipe {
            project_name: project_name?,
            output_path: output_path?,
            seed: seed?,
            device: device?,
            sequence_length: sequence_length?,
            model: model?,
            teachers: teachers?,
            dataset: dataset?,
            loss_functions: losses?,
            layer_mapping: layer_mapping?,
            force_hidden_state_projection: force?,
            masks: masks?,
            lora: lora?,
            training_args: args?,
        })
    };
    whole().ok_or_else(|| Error::internal("a recipe in part"))
}

pub(super) fn path(node: &Node) -> Result<PathBuf> {
    node.text().map(PathBuf::from)
}

fn paths(node: &Node) -> Result<Vec<PathBuf>> {
    node.one_or_more(|item| path(&item))
}

fn student(node: &Node, seed: u64) -> Result<Student> {
    if node.value.is_string() {
        return Ok(Student::Pretrained(node.text()?));
    }
    if !node.value.is_object() {
        let expected = "a model's path or hub id, {config: ...} for random weights, or {layers_of: ..., layers: [...]}";
        return node.complaint().expected(expected).found("something else").err();
    }
    let known = ["path", "adapter", "config", "init_seed", "tokenizer", "layers_of", "layers"];
    let fields = node.clone().fields(&known, &[])?;
    if fields.node("path").is_some() || fields.node("adapter").is_some() {
        return adapted(&fields);
    }
    if fields.node("layers_of").is_none() && fields.node("layers").is_none() {
        return Ok(Student::Random {
            config: fields.need("config", "a config.json, its path or its keys", config)?,
            init_seed: fields.or("init_seed", seed, Node::integer)?,
            tokenizer: fields.maybe("tokenizer", Node::text)?,
        });
    }
    if let Some(other) = ["config", "init_seed", "tokenizer"].iter().find(|key| fields.node(key).is_some()) {
        let complaint = fields.complaint(other).expected("no such key beside `layers_of`").found("one");
        return complaint.help("a student is either random weights or layers of another model").err();
    }
    Ok(Student::Layers {
        layers_of: fields.need("layers_of", "the model whose layers to take", Node::text)?,
        layers: fields.need("layers", "the numbers of the layers to take", |node| node.list(|item| item.count()))?,
    })
}

/// `{path, adapter}`.
fn adapted(fields: &Fields) -> Result<Student> {
    let others = ["config", "init_seed", "tokenizer", "layers_of", "layers"];
    if let Some(other) = others.iter().find(|key| fields.node(key).is_some()) {
        let complaint = fields.complaint(other).expected("no such key beside `path` and `adapter`").found("one");
        return complaint.help("to take layers or random weights, leave out `path` and `adapter`").err();
    }
    let path = fields.need("path", "the model's folder or hub id", Node::text)?;
    match fields.maybe("adapter", self::path)? {
        Some(adapter) => Ok(Student::Adapted { path, adapter }),
        None => Ok(Student::Pretrained(path)),
    }
}

fn config(node: &Node) -> Result<Config> {
    match node.value.as_object() {
        Some(map) => Ok(Config::Inline(map.clone())),
        None => path(node).map(Config::Path),
    }
}

fn dataset(node: &Node, seed: u64) -> Result<Dataset> {
    let known = &[
        "train",
        "eval",
        "split",
        "holdout",
        "train_on_inputs",
        "append_eos",
        "shuffle",
        "route_field",
        "long_documents",
    ];
    let fields = node.clone().fields(known, DISTILLKIT_DATASET)?;
    Ok(Dataset {
        train: fields.need("train", "files or folders of text", paths)?,
        eval: fields.or("eval", Vec::new(), paths)?,
        split: fields.or("split", Split::File, document_split)?,
        holdout: fields.or("holdout", Holdout::Nothing, |node| holdout(node, seed))?,
        train_on_inputs: fields.or("train_on_inputs", false, Node::boolean)?,
        append_eos: fields.or("append_eos", true, Node::boolean)?,
        shuffle: fields.or("shuffle", true, Node::boolean)?,
        route_field: fields.maybe("route_field", Node::text)?,
        long_documents: fields.or("long_documents", LongDocuments::Split, |node| node.choice(LONG_DOCUMENTS))?,
    })
}

fn document_split(node: &Node) -> Result<Split> {
    if node.value.is_object() {
        let fields = node.clone().fields(&["marker"], &[])?;
        return Ok(Split::Marker(fields.need("marker", "the text that parts documents", Node::text)?));
    }
    match node.value.as_str() {
        Some("file") => Ok(Split::File),
        Some("paragraphs") => Ok(Split::Paragraphs),
        _ => node.complaint().expected("file, paragraphs or {marker: TEXT}").found(node.value).err(),
    }
}

fn holdout(node: &Node, seed: u64) -> Result<Holdout> {
    let fields = node.clone().fields(&["fraction", "sequences", "documents"], &["seed"])?;
    let fraction = fields.maybe("fraction", Node::number)?.map(Holdout::LastFraction);
    let sequences = fields.maybe("sequences", Node::count)?.map(Holdout::LastSequences);
    let documents = fields.maybe("documents", Node::number)?.map(|fraction| Holdout::Documents { fraction, seed });
    match [fraction, sequences, documents].into_iter().flatten().collect::<Vec<_>>()[..] {
        [one] => Ok(one),
        ref several => {
            let found = if several.is_empty() { "none" } else { "several" };
            node.complaint().expected("exactly one of fraction, sequences, documents").found(found).err()
        }
    }
}
