//! What the quickstart's student learns from each kind of teacher record: same start, tokens, order and losses; only
//! the records differ. Run the quickstart first: its teacher, text and held-out split are used.
//!
//!     cargo bench --bench record_kinds -- [CACHE]
//!
//! Prints a Markdown table; each student is measured against the full teacher distribution. About 45 minutes on two
//! cores; what is in CACHE/record-kinds (CACHE is `.cache`) from an earlier run is reused.

use potstill::data::split::{Holdout, split};
use potstill::device::Choice;
use potstill::distill::compare::Comparison;
use potstill::distill::corpus::{CorpusOptions, read_corpus};
use potstill::distill::{CaptureOptions, Recipe, capture, distill};
use potstill::formats::ModelFolder;
use potstill::shards::{LogProbType, Record};
use potstill::{Error, Result};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// As in the quickstart.
const CONTEXT: usize = 256;
const BATCH: usize = 2;
const HELD_OUT: usize = 24;
const TOKENS: usize = 40_960;

/// Where a student's teacher comes from.
enum Source {
    Text,
    Live,
    Stored(Record),
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let cache = PathBuf::from(arguments.first().map_or(".cache", String::as_str));
    let teacher_path = cache.join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let dataset = cache.join(format!("quickstart/text-{TOKENS}.jsonl"));
    if !teacher_path.is_file() || !dataset.is_file() {
        let complaint = Error::file(&cache).expected("the quickstart's teacher and text").found("none");
        return complaint.help("run `cargo run --release -- quickstart` first").err();
    }
    let device = pollster::block_on("auto".parse::<Choice>()?.open())?;
    let teacher = ModelFolder::open(&teacher_path)?;
    let corpus = Arc::new(read_corpus(&teacher.tokenizer()?, &CorpusOptions::new(vec![dataset.clone()]))?);
    let ranges = split(&corpus, CONTEXT, Holdout::LastSequences(HELD_OUT))?.held_out;
    let comparison = Comparison { corpus: corpus.clone(), ranges, context: CONTEXT, batch: BATCH };
    println!("| record | bytes/token | NLL | KLD | top-1 agreement |\n| --- | --- | --- | --- | --- |");
    for (name, source) in sources() {
        let folder = cache.join("record-kinds").join(name.replace([' ', ','], "-"));
        let (shards, student) = (folder.join("shards"), folder.join("student"));
        let mut bytes = "-".to_owned();
        if let Source::Stored(record) = &source {
            let record = record.clone();
            let options =
                CaptureOptions { record, sequence_length: CONTEXT, batch_size: BATCH, ..CaptureOptions::default() };
            let go_on = &mut |_| ControlFlow::Continue(());
            let manifest = capture(&device, &teacher, &corpus, &shards, &options, &mut |_| (), go_on)?;
            let size: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
            bytes = (size / manifest.statistics.rows.max(1)).to_string();
        }
        let recipe = recipe(&source, &teacher_path, &dataset, &shards, &student)?;
        distill(&recipe, false, &mut |_| ControlFlow::Continue(()))?;
        let e = comparison.measure(&device, &teacher, Some(&ModelFolder::open(&student)?))?;
        let number = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.4}"));
        println!("| {name} | {bytes} | {:.4} | {} | {} |", e.nll, number(e.kld), number(e.top1_agreement));
    }
    Ok(())
}

fn sources() -> Vec<(String, Source)> {
    let top_k = |k| (format!("top-k {k}"), Source::Stored(Record::TopK { k, log_probs: LogProbType::DEFAULT }));
    let sampled = |draws, max_unique| {
        let record = Record::Sampled { draws, max_unique, seed: 0 };
        (format!("sampled {draws}, {max_unique} slots"), Source::Stored(record))
    };
    let mut all = vec![("none (plain text)".to_owned(), Source::Text), ("live teacher".to_owned(), Source::Live)];
    all.extend([8, 32, 64, 128, 256].map(top_k));
    all.extend([(22, 22), (50, 24), (150, 64)].map(|(draws, slots)| sampled(draws, slots)));
    all
}

/// The quickstart's recipe with another teacher.
fn recipe(source: &Source, teacher: &Path, dataset: &Path, shards: &Path, output: &Path) -> Result<Recipe> {
    let cross_entropy = |weight: f64| json!({ "function": "cross_entropy", "weight": weight });
    let distilled = json!([{ "function": "kl", "weight": 1.0 }, cross_entropy(0.1)]);
    let (losses, from) = match source {
        Source::Text => (json!([cross_entropy(1.0)]), Value::Null),
        Source::Live => (distilled, json!({ "kind": "live", "path": teacher })),
        Source::Stored(_) => (distilled, json!({ "kind": "shards", "path": shards })),
    };
    let recipe = json!({
        "output_path": output,
        "sequence_length": CONTEXT,
        "model": { "layers_of": teacher, "layers": [0, 1, 5, 10, 15, 20, 25, 28, 29] },
        "teacher": from,
        "dataset": { "train": [dataset], "holdout": { "sequences": HELD_OUT } },
        "loss_functions": losses,
        "training_args": {
            "per_device_train_batch_size": BATCH,
            "learning_rate": 5e-4,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.1,
            "max_steps": TOKENS / (CONTEXT * BATCH),
            "eval_samples": 1,
            "save_steps": 1_000_000,
            "save_total_limit": 1,
        },
    });
    Recipe::parse(&recipe.to_string(), Path::new("record_kinds"))
}
