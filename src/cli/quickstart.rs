//! `potstill quickstart`: a distillation from beginning to end, with its plain twin for comparison.

use super::args::{Cli, QuickstartArgs};
use super::distill::{cells, scores, train};
use super::output::{print, print_json};
use super::progress::say;
use super::{assets, capture, human};
use crate::data::split::{Holdout, split};
use crate::data::tokens::Corpus;
use crate::device::Device;
use crate::distill::compare::Comparison;
use crate::distill::corpus::{CorpusOptions, read_corpus};
use crate::distill::metrics::Evaluation;
use crate::distill::{CaptureOptions, Outcome, Recipe};
use crate::formats::{ModelFolder, Tokenizer, read_json_if_present, write_atomically, write_json};
use crate::platform::process::peak_resident;
use crate::tuning::tuned;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Tokens of a sequence.
const CONTEXT: usize = 256;
/// Sequences of a step.
const BATCH: usize = 2;
/// Sequences held out.
const HELD_OUT: usize = 24;
/// The teacher's layers that become the student: the first and last two matter most.
const LAYERS: [usize; 9] = [0, 1, 5, 10, 15, 20, 25, 28, 29];

pub(super) fn run(cli: &Cli, args: &QuickstartArgs) -> Result<()> {
    let start = std::time::Instant::now();
    if args.tokens < CONTEXT * BATCH {
        let expected = format!("at least {}, the tokens of a step", CONTEXT * BATCH);
        return Error::at("--tokens").expected(expected).found(args.tokens).help("40960 is the default").err();
    }
    let (teacher, text) = (assets::teacher(&args.cache)?, assets::text(&args.cache)?);
    say(&format!("teacher: {}; text: {}", teacher.name, text.name));
    let folder = args.cache.join("quickstart");
    let device = tuned(pollster::block_on(cli.device.open())?);
    let model = ModelFolder::open(&teacher.path)?;
    let tokenizer = model.tokenizer()?;
    let dataset = folder.join(format!("text-{}.jsonl", args.tokens));
    write_dataset(&tokenizer, &text.path, &dataset, args.tokens.saturating_add(HELD_OUT * CONTEXT))?;
    let corpus = Arc::new(read_corpus(&tokenizer, &CorpusOptions::new(vec![dataset.clone()]))?);

    let shards = folder.join(format!("shards-{}", args.tokens));
    let options = CaptureOptions { sequence_length: CONTEXT, batch_size: BATCH, ..CaptureOptions::default() };
    capture::record(&device, &model, &corpus, &shards, &options)?;

    let run = Plan { args, cli, teacher: &teacher.path, dataset: &dataset, shards: &shards, folder: &folder };
    let sft = train(&run.recipe(false)?, false, "plain SFT")?;
    let distilled = train(&run.recipe(true)?, false, "distilled")?;
    let results = compare(&device, &model, &corpus, &[&sft, &distilled], &folder)?;
    let report =
        Results { results, distilled: &distilled, speeds: [sft.tokens_per_second, distilled.tokens_per_second] };
    if args.json {
        return print_json(&report.json(&folder)?);
    }
    let seconds = start.elapsed().as_secs_f64();
    print(&format!("{}\n", report.table(&teacher.name, seconds, &folder)?))
}

/// What both recipes share.
struct Plan<'a> {
    args: &'a QuickstartArgs,
    cli: &'a Cli,
    teacher: &'a Path,
    dataset: &'a Path,
    shards: &'a Path,
    folder: &'a Path,
}

impl Plan<'_> {
    /// The recipe of the distilled student or of its plain twin, written beside their folders for the user to read.
    fn recipe(&self, distilled: bool) -> Result<Recipe> {
        let name = if distilled { "distilled" } else { "sft" };
        let seed = self.args.seed;
        let output = self.folder.join(format!("{name}-{}-seed{seed}", self.args.tokens));
        let mut recipe = json!({
            "project_name": format!("quickstart: {name}"),
            "output_path": output,
            "seed": seed,
            "device": self.cli.device.to_string(),
            "sequence_length": CONTEXT,
            "model": { "layers_of": self.teacher, "layers": LAYERS },
            "dataset": { "train": [self.dataset], "holdout": { "sequences": HELD_OUT } },
            "loss_functions": [{ "function": "cross_entropy", "weight": 1.0 }],
            "training_args": {
                "per_device_train_batch_size": BATCH,
                "learning_rate": 5e-4,
                "lr_scheduler_type": "cosine",
                "warmup_ratio": 0.1,
                "max_steps": self.args.tokens / (CONTEXT * BATCH),
                "logging_steps": 10,
                "save_steps": 1_000_000,
                "save_total_limit": 1,
            },
        });
        if distilled {
            recipe["teacher"] = json!({ "kind": "shards", "path": self.shards });
            recipe["loss_functions"] = json!([
                { "function": "kl", "weight": 1.0, "missing_probability_handling": "symmetric_uniform" },
                { "function": "cross_entropy", "weight": 0.1 },
            ]);
        }
        let file = self.folder.join(format!("{name}.yaml"));
        let recipe = Recipe::parse(&recipe.to_string(), &file)?;
        let text = recipe.to_yaml()?;
        write_atomically(&file, |out| out.write_all(text.as_bytes()).map_err(Error::io("write", &file)))?;
        Ok(recipe)
    }
}

/// Writes the most recent texts of a folder, oldest of them first, until they have `tokens` tokens. Reuses the file.
fn write_dataset(tokenizer: &Tokenizer, texts: &Path, file: &Path, tokens: usize) -> Result<()> {
    if file.is_file() {
        return Ok(());
    }
    let entries = std::fs::read_dir(texts).map_err(Error::io("read", texts))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "txt"));
    paths.sort();
    let (mut rows, mut total) = (Vec::new(), 0);
    while let Some(path) = paths.pop().filter(|_| total < tokens) {
        let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        total += tokenizer.encode(&text, false)?.len() + 1;
        rows.push(json!({ "text": text }).to_string());
    }
    rows.reverse();
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    write_atomically(file, |out| {
        rows.iter().try_for_each(|row| writeln!(out, "{row}")).map_err(Error::io("write", file))
    })
}

/// Measures the teacher and both students on the held-out text, exactly; reuses what was measured of these weights.
fn compare(
    device: &Device,
    teacher: &ModelFolder,
    corpus: &Arc<Corpus>,
    students: &[&Outcome; 2],
    folder: &Path,
) -> Result<[Evaluation; 3]> {
    let students = [ModelFolder::open(&students[0].folder)?, ModelFolder::open(&students[1].folder)?];
    let key = json!([teacher.digest(), students[0].digest(), students[1].digest(), corpus.digest()]);
    let cache = folder.join("comparison.json");
    if let Some(known) = read_json_if_present(&cache)?
        && known["key"] == key
        && let Ok(results) = serde_json::from_value(known["results"].clone())
    {
        return Ok(results);
    }
    let ranges = split(corpus, CONTEXT, Holdout::LastSequences(HELD_OUT))?.held_out;
    let comparison = Comparison { corpus: corpus.clone(), ranges, context: CONTEXT, batch: BATCH };
    let mut results = Vec::new();
    for (name, model) in [("the teacher", None), ("plain SFT", Some(&students[0])), ("distilled", Some(&students[1]))] {
        say(&format!("measuring {name} on {} held-out tokens", human::count((HELD_OUT * CONTEXT) as u64)));
        results.push(comparison.measure(device, teacher, model)?);
    }
    write_json(&cache, &json!({ "key": key, "results": results }))?;
    results.try_into().map_err(|_| Error::internal("three models"))
}

struct Results<'a> {
    results: [Evaluation; 3],
    distilled: &'a Outcome,
    /// Rows a second of both trainings; 0 where nothing was left to do.
    speeds: [f64; 2],
}

impl Results<'_> {
    /// Speed and peak memory of the training; of an earlier run where this one had nothing to train.
    fn effort(&self, folder: &Path) -> Result<(f64, u64)> {
        let file = folder.join("effort.json");
        let known = read_json_if_present(&file)?.unwrap_or(Value::Null);
        let speed = self.speeds.into_iter().rfind(|speed| *speed > 0.0).or(known["tokens_per_second"].as_f64());
        let fresh = self.speeds.iter().any(|speed| *speed > 0.0);
        let peak = if fresh { peak_resident() } else { known["peak_memory_bytes"].as_u64().or(peak_resident()) };
        let effort = (speed.unwrap_or(0.0), peak.unwrap_or(self.distilled.memory.total()));
        write_json(&file, &json!({ "tokens_per_second": effort.0, "peak_memory_bytes": effort.1 }))?;
        Ok(effort)
    }

    fn json(&self, folder: &Path) -> Result<Value> {
        let [teacher, sft, distilled] = &self.results;
        let (speed, peak) = self.effort(folder)?;
        Ok(json!({
            "teacher": teacher,
            "sft": sft,
            "distilled": distilled,
            "tokens_per_second": speed,
            "peak_memory_bytes": peak,
        }))
    }

    fn table(&self, teacher: &str, seconds: f64, folder: &Path) -> Result<String> {
        let mut table = scores();
        for (name, result) in [teacher, "student, plain SFT", "student, distilled"].iter().zip(&self.results) {
            table.row(cells(name, result));
        }
        let (speed, peak) = self.effort(folder)?;
        let report = self.distilled.folder.join("report.html");
        Ok(format!(
            "{table}\nheld-out text; lower NLL, bits/byte and KLD are better\n\
             training {speed:.0} tokens/s, peak memory {}, {} in all\nreport: {}",
            human::binary(peak),
            human::duration(seconds),
            report.display()
        ))
    }
}
