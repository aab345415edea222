//! The recipe of a distillation run: one YAML file, read strictly.
//!
//! Keys keep the names of DistillKit and of transformers' `TrainingArguments` where those have one. An unknown or
//! misspelt key, a value of another type or out of range is an error that names the file, the key's path and what was
//! expected: nothing is ignored. `null` means absent. Relative paths are relative to the working directory.
//!
//! One difference to DistillKit to know about: **weights are not normalised.** The loss is the plain weighted sum
//! `sum_i weight_i * loss_i`, where DistillKit divides it by `sum_i weight_i`. Doubling all weights doubles the
//! gradient here (AdamW hardly notices, clipping by `max_grad_norm` does); weights that sum to 1 mean the same in both.

mod canonical;
mod check;
mod hidden;
mod loss_checks;
mod loss_keys;
mod losses;
mod optimiser;
mod read;
mod scheduled;
mod students;
mod taid;
mod teachers;
mod training;

pub use hidden::{Hidden, HiddenKind};
pub use losses::{Divergence, Function, LossFunction, MissingProbability, loss_names, record_temperatures};
pub use optimiser::Optim;
pub use scheduled::{Ramp, Scheduled};
pub use students::{LoraArgs, Masks, Targets, Unfrozen};
pub use taid::{Adaptive, Share};
pub use teachers::{Teacher, TeacherSource};

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::layer_map::LayerMapping;
use crate::data::documents::Split;
use crate::data::split::Holdout;
use crate::device::Precision;
use crate::platform::fs;
use crate::yaml::Names;

/// A whole run. Defaults are those of a key that is left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// A name for titles; default none.
    pub project_name: Option<String>,
    /// The folder that receives checkpoints, metrics, the report and the student.
    pub output_path: PathBuf,
    /// Of everything random but the student's first weights; default 42.
    pub seed: u64,
    /// `auto`, `cpu`, `gpu`, or `gpu:NAME` with a part of an adapter's name; default `auto`.
    pub device: String,
    /// T, the number of tokens in a packed sequence.
    pub sequence_length: usize,
    /// The student.
    pub model: Student,
    /// `teacher`: one, or a list of several that share the text; none means plain training on text.
    pub teachers: Vec<Teacher>,
    /// The text.
    pub dataset: Dataset,
    /// Summed by weight. Default: with a teacher `kl` of weight 1 and `cross_entropy` of weight 0.1 (which keeps the
    /// inside of a sparse teacher's tail in shape), else `cross_entropy` of weight 1.
    pub loss_functions: Vec<LossFunction>,
    /// Which hidden states the losses on them compare, unless a loss says otherwise; default, with `model.layers_of`,
    /// each kept layer's with its own, else none.
    pub layer_mapping: Option<LayerMapping>,
    /// Learn a projection between states of equal width too; default false.
    pub force_hidden_state_projection: bool,
    /// Which of the student's parameters keep their values.
    pub masks: Masks,
    /// Adapters to train instead of the student's own parameters; default none.
    pub lora: Option<LoraArgs>,
    /// The optimisation.
    pub training_args: TrainingArgs,
}

/// Where the student comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Student {
    /// `model: PATH`: a folder, a GGUF file or a hub id, weights and all.
    Pretrained(String),
    /// `model: {path, adapter}`: the same with a PEFT adapter merged into the weights.
    Adapted {
        /// The folder, GGUF file or hub id.
        path: String,
        /// The adapter's folder.
        adapter: PathBuf,
    },
    /// `model: {config, init_seed, tokenizer}`: random weights.
    Random {
        /// The architecture.
        config: Config,
        /// Of the weights; default the recipe's `seed`.
        init_seed: u64,
        /// Whose tokenizer it gets, a folder, GGUF file or hub id; default: the one beside the configuration file,
        /// else the live teacher's.
        tokenizer: Option<String>,
    },
    /// `model: {layers_of, layers}`: embeddings, final norm, head and some of the layers of another model.
    Layers {
        /// That model, a folder, GGUF file or hub id; usually the teacher.
        layers_of: String,
        /// Which of its layers, from 0, ascending.
        layers: Vec<usize>,
    },
}

/// An architecture.
#[derive(Clone, Debug, PartialEq)]
pub enum Config {
    /// A `config.json`, or the folder that holds it.
    Path(PathBuf),
    /// What would stand in a `config.json`.
    Inline(Map<String, Value>),
}

/// The text to train and to measure on; see [`crate::data`].
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// `.txt` and `.jsonl` files and folders of them; one path may stand without brackets.
    pub train: Vec<PathBuf>,
    /// The same, to measure on; not with `holdout`.
    pub eval: Vec<PathBuf>,
    /// What parts documents in a `.txt` file: `file` (default), `paragraphs` or `{marker: TEXT}`.
    pub split: Split,
    /// What of `train` is measured on and not learned: `{fraction: F}` or `{sequences: N}` from the end, or
    /// `{documents: F}` drawn by a hash of the seed and their content; default nothing.
    pub holdout: Holdout,
    /// Learn prompts and user turns too; default false.
    pub train_on_inputs: bool,
    /// End plain text and completions with the end-of-text token; default true.
    pub append_eos: bool,
    /// Visit sequences in another order each epoch; default true.
    pub shuffle: bool,
    /// The field of a JSON line that says which teachers its document is for ([`Teacher::routes`]); default none.
    pub route_field: Option<String>,
    /// What becomes of documents longer than `sequence_length`: cut into consecutive pieces, or an error.
    pub long_documents: LongDocuments,
}

/// What becomes of documents longer than `sequence_length`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LongDocuments {
    /// `split`: consecutive pieces, each a context of its own; no token is lost.
    #[default]
    Split,
    /// `refuse`: an error that names the document.
    Refuse,
}

/// The optimisation, under the names of transformers' `TrainingArguments`.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingArgs {
    /// B, sequences in a micro-batch; default 8.
    pub per_device_train_batch_size: usize,
    /// Micro-batches in an optimiser step; default 1. Losses are averaged over the valid tokens of all of them.
    pub gradient_accumulation_steps: usize,
    /// The peak; default 5e-5.
    pub learning_rate: f64,
    /// After warm-up: `constant`, `linear` (default) or `cosine`.
    pub lr_scheduler_type: SchedulerType,
    /// `warmup_steps` or `warmup_ratio`; default none.
    pub warmup: Warmup,
    /// `min_lr_ratio`: what linear and cosine end at, as a share of the peak; default 0.
    pub min_lr_ratio: f64,
    /// `optim`: `adamw_torch` (default), `adamw_8bit`, `lion` or `sgd`.
    pub optim: Optim,
    /// Decay of matrices, decoupled (of `sgd` a part of the gradient); default 0.
    pub weight_decay: f64,
    /// AdamW's and Lion's first decay; default 0.9.
    pub adam_beta1: f64,
    /// AdamW's and Lion's second decay; default 0.999, of Lion 0.99.
    pub adam_beta2: f64,
    /// AdamW's epsilon; default 1e-8.
    pub adam_epsilon: f64,
    /// The decay of SGD's momentum; default 0, none.
    pub momentum: f64,
    /// Each block's rate is that of the one above times this, the embeddings' the lowest; default 1.
    pub layerwise_lr_decay: f64,
    /// Factors of the rate by regular expressions on parameters' names, of which the first that matches counts.
    pub lr_multipliers: Vec<(String, f64)>,
    /// The decay of a moving average of the weights, which is then what is measured and saved; default 0, none.
    pub ema_decay: f64,
    /// Gradients are scaled down to this global norm; 0 leaves them alone. Default 1.
    pub max_grad_norm: f64,
    /// `max_steps` or `num_train_epochs`: one of them has to be given.
    pub length: Length,
    /// Measure on held-out text every so many steps; default only before the first and after the last.
    pub eval_steps: Option<u64>,
    /// Measure on this many of the first held-out sequences; default all.
    pub eval_samples: Option<usize>,
    /// A line of metrics every so many steps; default 10.
    pub logging_steps: u64,
    /// A checkpoint every so many steps; default 500.
    pub save_steps: u64,
    /// How many checkpoints stay; default 2.
    pub save_total_limit: usize,
    /// Recompute activations in the backward pass instead of keeping them: less memory, about a third more work.
    /// Default false.
    pub gradient_checkpointing: bool,
    /// What the factors of the training step's matrix products are rounded to, as in transformers' mixed precision (`bf16` or
    /// `fp16`); sums, weights, gradients and moments stay f32. Default f32.
    pub precision: Precision,
    /// How the student's weights are stored at the end; default `float32`.
    pub save_dtype: SaveDtype,
}

/// The shape of the learning rate over the run; all start with a linear warm-up from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SchedulerType {
    /// `constant` (transformers' `constant_with_warmup`).
    Constant,
    /// `linear`.
    #[default]
    Linear,
    /// `cosine`, half a period.
    Cosine,
}

/// How long the learning rate rises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    /// `warmup_steps`.
    Steps(u64),
    /// `warmup_ratio` of all steps, rounded up.
    Ratio(f64),
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// `max_steps` optimiser steps.
    Steps(u64),
    /// `num_train_epochs` passes over the text; a fraction is fine.
    Epochs(f64),
}

/// A type weights are stored in, by its name in torch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SaveDtype {
    /// `float32`.
    #[default]
    Float32,
    /// `bfloat16`.
    Bfloat16,
    /// `float16`.
    Float16,
}

impl Recipe {
    /// Whose tokenizer the run uses: a model folder, GGUF file, hub id, or the folder of `model.config`'s file.
    pub fn tokenizer_source(&self) -> Option<PathBuf> {
        let live = self.teachers.iter().find_map(|teacher| match &teacher.source {
            TeacherSource::Live { path, .. } => Some(PathBuf::from(path)),
            TeacherSource::Shards { .. } => None,
        });
        match &self.model {
            Student::Pretrained(path) | Student::Adapted { path, .. } | Student::Layers { layers_of: path, .. } => {
                Some(path.into())
            }
            Student::Random { tokenizer: Some(path), .. } => Some(path.into()),
            Student::Random { config: Config::Inline(_), .. } => live,
            Student::Random { config: Config::Path(path), .. } => {
                let folder = if path.extension().is_some_and(|e| e == "json") { path.parent()? } else { path };
                let beside = ["tokenizer.json", "tokenizer.model"].iter().any(|name| fs::exists(&folder.join(name)));
                if beside { Some(folder.to_path_buf()) } else { live }
            }
        }
    }
}

const SCHEDULERS: Names<SchedulerType> = &[
    ("constant", SchedulerType::Constant),
    ("linear", SchedulerType::Linear),
    ("cosine", SchedulerType::Cosine),
    ("constant_with_warmup", SchedulerType::Constant),
];
const SAVE_DTYPES: Names<SaveDtype> =
    &[("float32", SaveDtype::Float32), ("bfloat16", SaveDtype::Bfloat16), ("float16", SaveDtype::Float16)];
const LONG_DOCUMENTS: Names<LongDocuments> = &[("split", LongDocuments::Split), ("refuse", LongDocuments::Refuse)];
