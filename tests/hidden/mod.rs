//! Losses on hidden states and attention relations, from a live teacher and from stored states.

mod ops;
mod refusals;
mod stored;
mod train;

use crate::common::{novel, recipe, small_config, small_model};
use potstill::device::Device;
use potstill::distill::corpus::{CorpusOptions, read_corpus};
use potstill::distill::metrics::{self, Record as Line};
use potstill::distill::{CaptureOptions, Outcome, Progress, Recipe, capture, distill};
use potstill::formats::ModelFolder;
use potstill::shards::{Manifest, Record, StateType};
use std::ops::ControlFlow::{self, Continue};
use std::path::Path;
use std::sync::Arc;

const CONTEXT: usize = 32;

/// A folder with a teacher of 4 layers and width 32, and a text.
fn beginning() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    small_model(&dir.path().join("teacher"), 32, 4, 9);
    novel(dir.path(), "text.txt", 30_000..33_000);
    dir
}

/// A student of some of the teacher's layers, or of another width at random.
enum Student {
    Layers(&'static str),
    Random(usize, usize),
    /// A student of another family, at random.
    Config(serde_json::Value),
}

/// A recipe of 6 steps in `dir/name`; `teacher` and `losses` as they stand in YAML, `more` further keys of the root.
fn plan(dir: &Path, name: &str, student: Student, teacher: &str, losses: &str, more: &str) -> Recipe {
    let (start, text) = (dir.join("teacher"), dir.join("text.txt"));
    let model = match student {
        Student::Layers(layers) => format!("{{ layers_of: {}, layers: {layers} }}", start.display()),
        Student::Random(..) | Student::Config(_) => {
            let config = match student {
                Student::Random(width, layers) => small_config(width, layers),
                Student::Config(config) => config,
                Student::Layers(_) => unreachable!(),
            };
            format!("{{ config: {config}, init_seed: 5, tokenizer: {} }}", start.display())
        }
    };
    recipe(&format!(
        "{{ output_path: {}, device: cpu, sequence_length: {CONTEXT}, model: {model}, teacher: {teacher}, \
         dataset: {{ train: {}, holdout: {{ fraction: 0.1 }} }}, loss_functions: [{losses}], {more} \
         training_args: {{ max_steps: 6, per_device_train_batch_size: 2, gradient_accumulation_steps: 2, \
         learning_rate: 2e-3, lr_scheduler_type: constant, logging_steps: 1, save_steps: 3 }} }}",
        dir.join(name).display(),
        text.display(),
    ))
}

fn live(dir: &Path) -> String {
    format!("{{ kind: live, path: {} }}", dir.join("teacher").display())
}

fn run(recipe: &Recipe) -> Outcome {
    distill(recipe, false, &mut |_| Continue(())).unwrap()
}

/// Every step's value of one loss.
fn values(folder: &Path, loss: &str) -> Vec<f64> {
    let lines = metrics::read(&folder.join("metrics.jsonl")).unwrap();
    let value = |line: &Line| match line {
        Line::Train(train) => Some(train.losses[loss]),
        Line::Eval(_) => None,
    };
    lines.iter().filter_map(value).collect()
}

fn tensors(path: &Path) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, t)| (name, t.shape().to_vec(), bytemuck::pod_collect_to_vec(t.data())))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn states(layers: &[u32], states: StateType) -> Record {
    Record::Hidden { states, hidden_size: 0, layers: layers.to_vec() }
}

/// Captures the teacher over the text into `dir/name`.
fn record(
    dir: &Path,
    name: &str,
    record: Record,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> potstill::Result<Manifest> {
    let teacher = ModelFolder::open(dir.join("teacher")).unwrap();
    let reading = CorpusOptions::new(vec![dir.join("text.txt")]);
    let corpus = Arc::new(read_corpus(&teacher.tokenizer().unwrap(), &reading).unwrap());
    let options = CaptureOptions { record, sequence_length: CONTEXT, rows_per_shard: 200, ..CaptureOptions::default() };
    capture(&Device::cpu(), &teacher, &corpus, &dir.join(name), &options, &mut |_| (), progress)
}
