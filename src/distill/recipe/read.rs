//! From YAML to a [`Recipe`].

use std::path::{Path, PathBuf};

use super::loss_keys::{default_losses, loss_function};
use super::*;
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
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        Self::parse(&text, path)
    }

    /// Reads a recipe from `text`; `file` stands for it in messages. One of DistillKit's is translated first.
    pub fn parse(text: &str, file: &Path) -> Result<Recipe> {
        let mut value = read_yaml(text, file)?;
        if distillkit::is_distillkit(&value) {
            value = distillkit::translate(&value, file)?;
        }
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
    let teacher = keep(&mut wrong, fields.maybe("teacher", teacher));
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
            teacher: teacher?,
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

fn path(node: &Node) -> Result<PathBuf> {
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

fn teacher(node: &Node) -> Result<Teacher> {
    let fields = node.clone().fields(&["kind", "path", "head"], &["top_k", "kwargs", "logprob_compressor"])?;
    let kind = fields.need("kind", "`shards` or `live`", Node::text)?;
    match kind.as_str() {
        "shards" => Ok(Teacher::Shards {
            path: fields.need("path", "the shard set's folder", path)?,
            head: fields.maybe("head", Node::text)?,
        }),
        "live" | "hf" if fields.node("head").is_some() => {
            let complaint = fields.complaint("head").expected("no such key for a live teacher").found("one");
            complaint.help("a live teacher has its own head: remove the key").err()
        }
        "live" | "hf" => Ok(Teacher::Live { path: fields.need("path", "the teacher's folder or hub id", Node::text)? }),
        _ => {
            let complaint = fields.complaint("kind").expected("shards or live").found(format!("the text {kind:?}"));
            complaint.help("record a teacher with `potstill capture` and name the shards here").err()
        }
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

const TRAINING_ARGS: &[&str] = &[
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "min_lr_ratio",
    "weight_decay",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "momentum",
    "layerwise_lr_decay",
    "lr_multipliers",
    "ema_decay",
    "max_grad_norm",
    "max_steps",
    "num_train_epochs",
    "eval_steps",
    "eval_samples",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "gradient_checkpointing",
    "save_dtype",
];

fn training_args(node: &Node) -> Result<TrainingArgs> {
    let fields = node.clone().fields(TRAINING_ARGS, &[])?;
    let optimiser = optimiser::read(&fields)?;
    Ok(TrainingArgs {
        per_device_train_batch_size: fields.or("per_device_train_batch_size", 8, Node::count)?,
        gradient_accumulation_steps: fields.or("gradient_accumulation_steps", 1, Node::count)?,
        learning_rate: fields.or("learning_rate", 5e-5, Node::number)?,
        lr_scheduler_type: fields.or("lr_scheduler_type", SchedulerType::Linear, |n| n.choice(SCHEDULERS))?,
        warmup: warmup(&fields)?,
        min_lr_ratio: fields.or("min_lr_ratio", 0.0, Node::number)?,
        weight_decay: fields.or("weight_decay", 0.0, Node::number)?,
        optim: optimiser.optim,
        adam_beta1: optimiser.adam_beta1,
        adam_beta2: optimiser.adam_beta2,
        adam_epsilon: optimiser.adam_epsilon,
        momentum: optimiser.momentum,
        layerwise_lr_decay: optimiser.layerwise_lr_decay,
        lr_multipliers: optimiser.lr_multipliers,
        ema_decay: optimiser.ema_decay,
        max_grad_norm: fields.or("max_grad_norm", 1.0, Node::number)?,
        length: length(&fields)?,
        eval_steps: fields.maybe("eval_steps", Node::integer)?,
        eval_samples: fields.maybe("eval_samples", Node::count)?,
        logging_steps: fields.or("logging_steps", 10, Node::integer)?,
        save_steps: fields.or("save_steps", 500, Node::integer)?,
        save_total_limit: fields.or("save_total_limit", 2, Node::count)?,
        gradient_checkpointing: fields.or("gradient_checkpointing", false, Node::boolean)?,
        save_dtype: fields.or("save_dtype", SaveDtype::Float32, |n| n.choice(SAVE_DTYPES))?,
    })
}

fn warmup(fields: &Fields) -> Result<Warmup> {
    let steps = fields.maybe("warmup_steps", Node::integer)?;
    let ratio = fields.maybe("warmup_ratio", Node::number)?;
    match (steps, ratio) {
        (Some(_), Some(_)) => {
            fields.complaint("warmup_ratio").expected("this or `warmup_steps`").found("both").help("remove one").err()
        }
        (None, Some(ratio)) => Ok(Warmup::Ratio(ratio)),
        (steps, None) => Ok(Warmup::Steps(steps.unwrap_or(0))),
    }
}

fn length(fields: &Fields) -> Result<Length> {
    let steps = fields.maybe("max_steps", Node::integer)?;
    let epochs = fields.maybe("num_train_epochs", Node::number)?;
    match (steps, epochs) {
        (Some(steps), None) => Ok(Length::Steps(steps)),
        (None, Some(epochs)) => Ok(Length::Epochs(epochs)),
        (steps, _) => {
            let found = if steps.is_some() { "both" } else { "neither" };
            let complaint = fields.complaint("max_steps").expected("this or `num_train_epochs`").found(found);
            complaint.help("say how long to train by one of them").err()
        }
    }
}
