//! `potstill spectrum`: the layers to train, by the signal in their weights.

use super::human::{brief, bytes, count};
use super::interrupt;
use super::output::{print, print_json};
use super::progress::{Meter, say};
use crate::formats::hub;
use crate::formats::{ModelFolder, Tensors};
use crate::platform::process::peak_resident;
use crate::spectrum::{
    By, Choice, Chosen, Files, Layers, ReportData, Results, Rounding, bars, base_name, choose, modules, scan, unscored,
    wanted, write,
};
use crate::{Error, Result};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Types that are drawn in the terminal; the report has them all.
const DRAWN: usize = 24;

/// Which score chooses.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreArg {
    /// Spectrum's: the threshold is the spread of the singular values
    Snr,
    /// The same ratio, above and below the noise edge of Marchenko and Pastur
    Mp,
}

/// Choose the layers to train by the signal in their weights
///
/// Reads one weight matrix after the other, scores each by its singular values as Spectrum does (arXiv 2406.06623), and
/// chooses the best of each type of layer. Writes the scores, the list `unfrozen_parameters` for a recipe or axolotl, and
/// a report. The scores can be given in place of the model to choose again.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  potstill spectrum student/ --top-percent 25 -o scan/
  potstill spectrum model.gguf --layers mlp,q_proj
  potstill spectrum scan/snr_results_student.json --top-percent 50

In a recipe: `unfrozen_parameters: scan/snr_results_student_unfrozenparameters_25percent.yaml`.
docs/spectrum.md says what the scores are.")]
pub struct SpectrumArgs {
    /// Model folder, .gguf or .safetensors file, or hub id; or the scores in Spectrum's .json file
    #[arg(value_name = "MODEL")]
    pub model: String,

    /// The share of each type of layer to choose
    #[arg(long, value_name = "N", default_value_t = 50.0)]
    pub top_percent: f64,

    /// The folder that receives the files
    #[arg(short, long, value_name = "FOLDER", default_value = ".")]
    pub output: PathBuf,

    /// Types of layers, whole (`mlp.down_proj`) or in part (`mlp`), or `all`
    ///
    /// By default every linear layer of the blocks. `all` adds embeddings, head and norms.
    #[arg(long, value_name = "TYPE,..", value_delimiter = ',')]
    pub layers: Vec<String>,

    /// The score that chooses
    #[arg(long, value_enum, default_value = "snr")]
    pub score: ScoreArg,

    /// Round shares down, to none if need be, as Spectrum does
    #[arg(long)]
    pub floor: bool,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: &SpectrumArgs) -> Result<()> {
    interrupt::listen();
    let started = Instant::now();
    let by = if args.score == ScoreArg::Mp { By::Mp } else { By::Snr };
    let rounding = if args.floor { Rounding::Down } else { Rounding::Up };
    let choice = Choice { top_percent: args.top_percent, by, rounding };
    choice.check()?;
    if args.output.exists() && !args.output.is_dir() {
        return Error::file(&args.output).expected("a folder to write into").found("a file").err();
    }
    let given = Some(Path::new(&args.model)).filter(|path| path.is_file() && has_extension(path, "json"));
    let (results, base) = match given {
        Some(path) => {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            (Results::read(path)?.only(&layers(args))?, stem)
        }
        None => (scanned(args)?, base_name(&args.model)),
    };
    let chosen = choose(&results, &choice)?;
    let seconds = started.elapsed().as_secs_f64();
    let data = ReportData {
        title: base.trim_start_matches("snr_results_").to_owned(),
        subtitle: headline(&chosen, &choice),
        facts: facts(args, given.is_none(), seconds),
    };
    let new = given.is_none().then_some(&results);
    let files = write(&args.output, &base, new, &choice, &chosen, &data)?;
    if args.json {
        return print_json(&summary(args, &chosen, &files, seconds));
    }
    let charts = bars(&chosen);
    let mut text: String = charts.iter().take(DRAWN).map(|bars| bars.text() + "\n").collect();
    if charts.len() > DRAWN {
        text.push_str(&format!("  and {} more types: see the report\n\n", charts.len() - DRAWN));
    }
    text.push_str(&format!("{}\n", headline(&chosen, &choice)));
    if let Some([scores, sorted]) = &files.scores {
        text.push_str(&format!("scores: {}\n        {}\n", scores.display(), sorted.display()));
    }
    let (list, report) = (files.list.display(), files.report.display());
    print(&format!("{text}list:   {list}\nreport: {report}\n"))
}

/// The model's scores, with a bar.
fn scanned(args: &SpectrumArgs) -> Result<Results> {
    let path = hub::resolve_with(&args.model, &mut super::fetching())?;
    let (tensors, config) = match path.is_file() && has_extension(&path, "safetensors") {
        true => (Tensors::open_safetensors(&[path])?, None),
        false => {
            let model = ModelFolder::open(path)?;
            (model.tensors, Some(model.config))
        }
    };
    let modules = wanted(modules(&tensors, config.as_ref())?, &layers(args))?;
    if let [first, others @ ..] = &unscored(&tensors)?[..] {
        let more = if others.is_empty() { String::new() } else { format!(" and {} more", count(others.len() as u64)) };
        say(&format!("warning: no score for what is no module's matrix: `{first}`{more}"));
    }
    let mut meter = Meter::new("spectrum", "matrices", 0, Some(modules.len() as u64));
    let results = scan(&tensors, &modules, &mut |progress| {
        meter.set(progress.done);
        interrupt::flow()
    })?;
    meter.finish();
    Ok(results)
}

fn layers(args: &SpectrumArgs) -> Layers {
    match &args.layers[..] {
        [] => Layers::Linear,
        names if names.iter().any(|name| name == "all") => Layers::All,
        names => Layers::Named(names.to_vec()),
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// `105 of 210 modules: the top 50 % of each of 7 types by snr`.
fn headline(chosen: &Chosen, choice: &Choice) -> String {
    let all: usize = chosen.kinds.iter().map(|kind| kind.modules.len()).sum();
    let by = if choice.by == By::Mp { "mp_snr" } else { "snr" };
    let (some, kinds) = (chosen.names().count(), chosen.kinds.len());
    let (some, all) = (count(some as u64), count(all as u64));
    format!("{some} of {all} modules: the top {} % of each of {kinds} types by {by}", choice.top_percent)
}

fn facts(args: &SpectrumArgs, scanned: bool, seconds: f64) -> Vec<(String, String)> {
    let mut facts = vec![(if scanned { "model" } else { "scores" }.to_owned(), args.model.clone())];
    if scanned {
        facts.push(("time".to_owned(), brief(seconds)));
        facts.extend(peak_resident().map(|peak| ("peak memory".to_owned(), bytes(peak))));
    }
    facts
}

fn summary(args: &SpectrumArgs, chosen: &Chosen, files: &Files, seconds: f64) -> Value {
    let kind = |kind: &crate::spectrum::Kind| {
        let names: Vec<&String> = kind.modules[..kind.chosen].iter().map(|(name, _)| name).collect();
        json!({ "type": kind.name, "modules": kind.modules.len(), "chosen": names })
    };
    json!({
        "model": args.model,
        "score": if args.score == ScoreArg::Mp { "mp_snr" } else { "snr" },
        "top_percent": args.top_percent,
        "types": chosen.kinds.iter().map(kind).collect::<Vec<_>>(),
        "files": {
            "scores": files.scores.as_ref().map(|paths| &paths[0]),
            "sorted": files.scores.as_ref().map(|paths| &paths[1]),
            "list": files.list,
            "report": files.report,
        },
        "seconds": seconds,
    })
}
