//! What the page of `web/` shows: a small teacher, its text, and its distributions as shards.
//!
//!     cargo run --release --example page_assets -- TEXT WORK OUTPUT
//!
//! TEXT is a folder of .txt files, WORK receives what the making needs, OUTPUT `teacher/`, `shards/` and `text.jsonl`.
//! Run again, it goes on where it was stopped. `web/demo.sh` calls it with public-domain text.

#[path = "../benches/study/text.rs"]
mod text;

use potstill::device::{Choice, Device};
use potstill::distill::capture::Progress;
use potstill::distill::corpus::{CorpusOptions, read_corpus};
use potstill::distill::{CaptureOptions, Event, Recipe, capture, distill};
use potstill::formats::ModelFolder;
use potstill::shards::{LogProbType, Record};
use potstill::{Error, Result};
use serde_json::json;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Tokens of context, in the recipes of `web/recipes/` too.
const CONTEXT: usize = 128;
/// Enough text for the teacher's likeliest tokens to be words; students see a fiftieth of it, so that shards stay small.
const SIZES: text::Sizes = text::Sizes { vocabulary: 1024, students_bytes: 225_000 };
/// Of a top-k record: 104 bytes a token with the 12 bits below, three quarters of the teacher's mass.
const RECORD: Record = Record::TopK { k: 32, log_probs: LogProbType::Unorm(12) };
/// What a model folder needs to be loaded.
const MODEL_FILES: [&str; 4] = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [texts, work, output] = &arguments[..] else {
        return Error::at("arguments").expected("TEXT WORK OUTPUT").found(arguments.len()).err();
    };
    let text = text::prepare(texts, work, &SIZES)?;
    let trained = work.join("teacher");
    if !trained.join("model.safetensors").is_file() {
        train(&text, &trained)?;
    }
    let teacher = output.join("teacher");
    std::fs::create_dir_all(&teacher).map_err(Error::io("create", &teacher))?;
    for name in MODEL_FILES {
        copy(&trained.join(name), &teacher.join(name))?;
    }
    copy(&text.students, &output.join("text.jsonl"))?;
    record(&teacher, &output.join("text.jsonl"), &output.join("shards"))
}

/// The teacher: 1.2 million parameters, a few minutes on two CPU cores.
fn train(text: &text::Text, folder: &Path) -> Result<()> {
    let recipe = json!({
        "output_path": folder,
        "sequence_length": CONTEXT,
        "model": {
            "config": {
                "model_type": "llama", "hidden_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4,
                "num_key_value_heads": 2, "intermediate_size": 384, "vocab_size": SIZES.vocabulary,
                "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
                "tie_word_embeddings": true, "hidden_act": "silu", "initializer_range": 0.04,
            },
            "tokenizer": text.tokenizer,
        },
        // The last of it, which students learn from too, is not the teacher's to know by heart.
        "dataset": { "train": [text.all], "holdout": { "sequences": 600 } },
        "training_args": {
            "per_device_train_batch_size": 8, "learning_rate": 4e-3, "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.05, "max_steps": 1600, "logging_steps": 50, "eval_steps": 400, "eval_samples": 64,
            "save_dtype": "bfloat16",
        },
    });
    let recipe = Recipe::parse(&recipe.to_string(), Path::new("the teacher's recipe"))?;
    distill(&recipe, false, &mut |event| {
        match event {
            Event::Planned { device, memory, .. } => println!("teacher: on {device}, {memory}"),
            Event::Evaluated { step, evaluation } => {
                println!("teacher: step {step}, held-out NLL {:.4}", evaluation.nll);
            }
            Event::Started { .. } | Event::Step { .. } | Event::Saved { .. } => {}
        }
        ControlFlow::Continue(())
    })?;
    Ok(())
}

/// The teacher's distributions over what students learn from.
fn record(teacher: &Path, text: &Path, shards: &Path) -> Result<()> {
    let device: Device = pollster::block_on("auto".parse::<Choice>()?.open())?;
    let teacher = ModelFolder::open(teacher)?;
    let corpus = Arc::new(read_corpus(&teacher.tokenizer()?, &CorpusOptions::new(vec![text.to_path_buf()]))?);
    let options = CaptureOptions {
        record: RECORD,
        sequence_length: CONTEXT,
        batch_size: 8,
        // Several files, as a large set has.
        rows_per_shard: 8192,
        ..CaptureOptions::default()
    };
    let mut go_on = |_: Progress| ControlFlow::Continue(());
    let manifest = capture(&device, &teacher, &corpus, shards, &options, &mut |_| (), &mut go_on)?;
    println!("shards: {} rows in {} files", manifest.statistics.rows, manifest.shards.len());
    Ok(())
}

/// Under its final name only when whole.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let temporary = to.with_extension("tmp");
    std::fs::copy(from, &temporary).map_err(Error::io("copy", from))?;
    std::fs::rename(&temporary, to).map_err(Error::io("write", to))
}
