//! One measurement in a process of its own: a ceiling, the kernels, training steps, or a capture.

use crate::{ceiling, kernels};
use potstill::device::{Choice, Device, Precision};
use potstill::distill::capture::Progress;
use potstill::distill::corpus::{CorpusOptions, read_corpus};
use potstill::distill::setup::Setup;
use potstill::distill::{CaptureOptions, Recipe, capture};
use potstill::formats::ModelFolder;
use potstill::models::FrozenWeights;
use potstill::platform::process::{peak_resident, processor_time};
use potstill::shards::{Reader, VALID};
use potstill::tuning::tuned;
use potstill::{Error, Result};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Tokens of a step: one sequence.
const CONTEXT: usize = 512;
/// Sequences that a capture takes at a time.
const BATCH: usize = 2;
/// The teacher's layers that make a student of 50M parameters.
const LAYERS: [usize; 6] = [0, 1, 10, 20, 28, 29];
/// Characters of text: some 10,000 tokens.
const CHARACTERS: usize = 50_000;
/// Tokens a capture records on a software rasteriser, and elsewhere.
const CAPTURED: [usize; 2] = [2 * BATCH * CONTEXT, 8 * BATCH * CONTEXT];

/// What is measured on a device, apart from its ceiling and its kernels.
pub fn plan(device: &str, steps: usize) -> Vec<Value> {
    let opened = device.parse::<Choice>().and_then(|choice| pollster::block_on(choice.open()));
    let offers = |precision: &Precision| opened.as_ref().is_ok_and(|d| d.check_precision(*precision, "").is_ok());
    let mut tasks = Vec::new();
    for precision in [Precision::F32, Precision::Bf16, Precision::F16].into_iter().filter(offers) {
        for losses in ["sft", "top-k", "dense"] {
            let task =
                json!({ "task": "step", "device": device, "losses": losses, "precision": precision, "steps": steps });
            tasks.push(task);
        }
        tasks.push(json!({ "task": "capture", "device": device, "precision": precision }));
        if device != "cpu" {
            tasks.push(json!({ "task": "product", "device": device, "precision": precision }));
        }
    }
    tasks
}

/// A task in words.
pub fn name(task: &Value) -> String {
    let text = |key: &str| task[key].as_str().unwrap_or_default().to_owned();
    match text("task").as_str() {
        "step" => format!("step {} {}", text("losses"), text("precision")),
        "product" => format!("product 4096 {}", text("precision")),
        other => format!("{other} {}", text("precision")),
    }
}

/// Does what `task` says and gives the numbers. With `"weights": "f32"` a teacher's matrices are decoded when they are
/// loaded.
pub fn run(task: &Value, cache: &Path, start: Instant) -> Result<Value> {
    let text = |key: &str| task[key].as_str().unwrap_or_default();
    let device = tuned(pollster::block_on(text("device").parse::<Choice>()?.open())?);
    let precision = serde_json::from_value(task["precision"].clone()).unwrap_or_default();
    let weights = if text("weights") == "f32" { FrozenWeights::F32 } else { FrozenWeights::Stored };
    let kind = (precision, weights);
    match text("task") {
        "ceiling" => ceiling::measure(&device),
        "kernels" => kernels::measure(&device),
        "product" => ceiling::product(&device, precision),
        "capture" => record(&device, kind, cache),
        _ => step(device, text("losses"), kind, task["steps"].as_u64().unwrap_or(6) as usize, cache, start),
    }
}

fn teacher(cache: &Path) -> PathBuf {
    cache.join("models/SmolLM2-135M-Instruct.Q4_1.gguf")
}

fn text(cache: &Path) -> PathBuf {
    cache.join("speed/text.jsonl")
}

fn shards(cache: &Path) -> PathBuf {
    cache.join("speed/shards")
}

/// Text, and shards of the teacher over it, if they are not there.
pub fn prepare(cache: &Path) -> Result<()> {
    let novel = cache.join("text/moby-dick.txt");
    if !teacher(cache).is_file() || !novel.is_file() {
        let complaint = Error::file(cache).expected("the quickstart's teacher and text").found("none");
        return complaint.help("run `cargo run --release -- quickstart` first").err();
    }
    let folder = cache.join("speed");
    std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    let all = std::fs::read_to_string(&novel).map_err(Error::io("read", &novel))?;
    let some: String = all.chars().skip(CHARACTERS).take(CHARACTERS).collect();
    let path = text(cache);
    let mut file = std::fs::File::create(&path).map_err(Error::io("create", &path))?;
    writeln!(file, "{}", json!({ "text": some })).map_err(Error::io("write", &path))?;
    let device = pollster::block_on(Choice::Auto.open())?;
    captured(&device, (Precision::F32, FrozenWeights::F32), cache, &shards(cache), None, &mut |_| ()).map(drop)
}

/// Captures the text, or its first tokens, into a folder.
fn captured(
    device: &Device,
    (precision, weights): (Precision, FrozenWeights),
    cache: &Path,
    folder: &Path,
    limit: Option<usize>,
    progress: &mut dyn FnMut(Progress),
) -> Result<u64> {
    let model = ModelFolder::open(teacher(cache))?;
    let options = CorpusOptions { limit, ..CorpusOptions::new(vec![text(cache)]) };
    let corpus = Arc::new(read_corpus(&model.tokenizer()?, &options)?);
    let options =
        CaptureOptions { sequence_length: CONTEXT, batch_size: BATCH, precision, weights, ..CaptureOptions::default() };
    let manifest = capture(device, &model, &corpus, folder, &options, &mut |_| (), &mut |now| {
        progress(now);
        ControlFlow::Continue(())
    })?;
    Ok(manifest.statistics.rows)
}

/// Tokens a second of a capture after its first batch, and the process's largest size.
fn record(device: &Device, kind: (Precision, FrozenWeights), cache: &Path) -> Result<Value> {
    let folder = cache.join("speed/captured");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
    }
    let mut seen: Vec<(f64, u64)> = Vec::new();
    let start = Instant::now();
    let limit = CAPTURED[usize::from(!device.caps().software)];
    captured(device, kind, cache, &folder, Some(limit), &mut |now| {
        seen.push((start.elapsed().as_secs_f64(), now.rows));
    })?;
    let (Some(first), Some(last)) = (seen.first(), seen.last()) else {
        return Err(Error::internal("a capture without batches"));
    };
    let speed = (last.1 - first.1) as f64 / (last.0 - first.0);
    let [exact, found] = [Reader::open(&shards(cache))?, Reader::open(&folder)?];
    Ok(json!({
        "tokens_per_second": speed, "peak_memory": peak_resident(), "device_memory": device.usage().peak,
        "kl_to_f32": divergence(&exact, &found)?,
    }))
}

/// The mean KL from what one set recorded to what another did of the same tokens, nats: over the tokens that both
/// recorded, with one bucket for the rest.
fn divergence(exact: &Reader, found: &Reader) -> Result<f64> {
    let rows = exact.rows().min(found.rows());
    let [p, q] = [exact.read_rows(0, rows)?, found.read_rows(0, rows)?];
    let (mut sum, mut count) = (0.0, 0usize);
    for row in (0..rows as usize).filter(|&row| p.flags[row] & VALID != 0) {
        let (Some(p), Some(q)) = (p.top_k_at(exact.spec(), row, 0), q.top_k_at(found.spec(), row, 0)) else { continue };
        let of_q: HashMap<u32, f32> = q.0.iter().copied().zip(q.1).collect();
        let (mut rest_p, mut rest_q) = (1.0, 1.0);
        for (id, log_p) in p.0.iter().zip(p.1) {
            if let Some(&log_q) = of_q.get(id) {
                let (mass_p, mass_q) = (f64::from(log_p).exp(), f64::from(log_q).exp());
                sum += mass_p * f64::from(log_p - log_q);
                rest_p -= mass_p;
                rest_q -= mass_q;
            }
        }
        // Rounding may leave nothing, or a little less.
        if rest_p > 1e-6 && rest_q > 1e-6 {
            sum += rest_p * (rest_p / rest_q).ln();
        }
        count += 1;
    }
    Ok(sum / count.max(1) as f64)
}

fn recipe(losses: &str, (precision, weights): (Precision, FrozenWeights), cache: &Path) -> Result<Recipe> {
    let weights = if weights == FrozenWeights::F32 { "f32" } else { "stored" };
    let cross_entropy = |weight: f64| json!({ "function": "cross_entropy", "weight": weight });
    let divergence = json!({ "function": "kl", "weight": 0.9 });
    let (from, losses) = match losses {
        "sft" => (Value::Null, json!([cross_entropy(1.0)])),
        "dense" => (
            json!({ "kind": "live", "path": teacher(cache), "weights": weights }),
            json!([divergence, cross_entropy(0.1)]),
        ),
        _ => (json!({ "kind": "shards", "path": shards(cache) }), json!([divergence, cross_entropy(0.1)])),
    };
    let mut recipe = json!({
        "output_path": cache.join("speed/student"),
        "sequence_length": CONTEXT,
        "model": { "layers_of": teacher(cache), "layers": LAYERS },
        "dataset": { "train": [text(cache)] },
        "loss_functions": losses,
        "training_args": {
            "per_device_train_batch_size": 1, "learning_rate": 5e-4, "max_steps": 1000, "max_grad_norm": 1.0,
            "bf16": precision == Precision::Bf16, "fp16": precision == Precision::F16,
        },
    });
    if !from.is_null() {
        recipe["teacher"] = from;
    }
    Recipe::parse(&recipe.to_string(), &cache.join("speed/recipe.yaml"))
}

/// The training step of the 50M student by itself: nothing is measured on held-out text, sampled or saved.
fn step(
    device: Device,
    losses: &str,
    kind: (Precision, FrozenWeights),
    steps: usize,
    cache: &Path,
    start: Instant,
) -> Result<Value> {
    let setup = Setup::open_on(&recipe(losses, kind, cache)?, device.clone())?;
    let planned = setup.memory.total();
    let mut trainer = pollster::block_on(setup.trainer())?;
    let (mut seconds, mut first_step, mut last_losses) = (Vec::new(), 0.0, Vec::new());
    let (mut rows, mut before) = (0, (processor_time(), device.usage()));
    for step in 0..=steps {
        let begin = Instant::now();
        let counts = trainer.advance()?;
        let report = pollster::block_on(trainer.reports(&[counts]))?;
        last_losses.extend(report.iter().map(|report| report.loss));
        if step == 0 {
            first_step = start.elapsed().as_secs_f64();
            before = (processor_time(), device.usage());
        } else {
            seconds.push(begin.elapsed().as_secs_f64());
            rows = counts.1;
        }
    }
    let (wall, each) = (seconds.iter().sum::<f64>(), steps as f64);
    let (time, usage) = (processor_time(), device.usage());
    let processor = before.0.zip(time).map(|(before, now)| (now - before).as_secs_f64() / each);
    let per_step = |now: u64, then: u64| (now - then) as f64 / each;
    seconds.sort_by(f64::total_cmp);
    Ok(json!({
        "tokens_per_second": rows as f64 / seconds[seconds.len() / 2],
        "first_step_seconds": first_step,
        "peak_memory": peak_resident(),
        "planned_memory": planned,
        "device_memory": usage.peak,
        "processor_seconds": processor,
        "dispatches": per_step(usage.dispatches, before.1.dispatches),
        "submissions": per_step(usage.submissions, before.1.submissions),
        "submit_share": per_step(usage.submit_micros, before.1.submit_micros) * 1e-6 * each / wall,
        "uploaded": per_step(usage.uploaded, before.1.uploaded),
        "read_back": per_step(usage.read_back, before.1.read_back),
        "losses": last_losses,
    }))
}
