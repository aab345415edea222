//! `potstill merge`: several models become one.

use super::human;
use super::interrupt;
use super::output::print;
use super::progress::{Meter, say};
use crate::device::Choice;
use crate::merge::{Learned, MergeConfig, MergeOptions, Stage, merge};
use crate::{Error, Result};
use clap::Args;
use std::path::PathBuf;

/// Merge models of one architecture into one
///
/// CONFIG is mergekit's YAML: merge_method, models or slices or modules, parameters, base_model, dtype. It is read
/// strictly: whatever is wrong with it is listed at once, and nothing is ignored. Models may be Hugging Face folders,
/// .gguf files or hub ids, with a LoRA adapter as `MODEL+ADAPTER`. OUT becomes a Hugging Face folder. A merge that was
/// stopped goes on when the same command is given again.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  potstill merge ties.yaml merged/                      what ties.yaml says, into merged/
  potstill merge ties.yaml merged/ --memory 512MiB      in less memory
  potstill merge ties.yaml merged/ --shard-size 2GB     in files of at most 2 GB")]
pub struct MergeArgs {
    /// The configuration
    #[arg(value_name = "CONFIG")]
    pub config: PathBuf,

    /// The folder for the merged model
    #[arg(value_name = "OUT")]
    pub output: PathBuf,

    /// Write into a folder that holds something already
    ///
    /// A model in it is taken away first; other files stay.
    #[arg(long)]
    pub overwrite: bool,

    /// Most bytes of a file of weights: 5GB, 500MB
    #[arg(long, value_name = "BYTES", default_value = "5GB", value_parser = size)]
    pub shard_size: u64,

    /// Memory to keep within, pages of the models included: 2GiB, 512MiB
    #[arg(long, value_name = "BYTES", default_value = "2GiB", value_parser = size)]
    pub memory: u64,

    /// Seed of the random masks of dare_* and della*, and of the order of dam's text
    #[arg(long, default_value_t = 42)]
    pub seed: u64,

    /// Where the arithmetic is done and dam learns: cpu, auto, gpu, gpu:NAME
    ///
    /// Merging by arithmetic is limited by the disk: a GPU is for dam.
    #[arg(long, default_value = "cpu")]
    pub device: Choice,
}

/// `5GB`, `512MiB`, `1000000`.
fn size(text: &str) -> std::result::Result<u64, String> {
    const UNITS: [(&str, u64); 9] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
        ("", 1),
    ];
    let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit));
    let (unit, factor) = unit.copied().unwrap_or(("", 1));
    let number = text.strip_suffix(unit).unwrap_or(text).trim().parse::<f64>();
    match number {
        Ok(number) if number > 0.0 && number * (factor as f64) < 1e18 => Ok((number * factor as f64) as u64),
        _ => Err("expected a size such as 5GB or 512MiB".to_string()),
    }
}

/// Says how far the merged model is from those it was made of.
fn tell(learned: &Learned) {
    for model in &learned.models {
        if let (Some(before), Some(after)) = (model.before, model.after) {
            let from = format!("divergence from {} on its held-out text", model.model);
            say(&format!("{from}: {after:.4} nats a token, of the plain average {before:.4}"));
        }
    }
}

pub(super) fn run(args: &MergeArgs) -> Result<()> {
    interrupt::listen();
    if args.output.exists() && !args.output.is_dir() {
        return Error::file(&args.output).expected("a folder").found("a file").err();
    }
    let documents = MergeConfig::load(&args.config)?;
    let options = MergeOptions {
        overwrite: args.overwrite,
        shard_size: args.shard_size,
        memory: args.memory,
        seed: args.seed,
        device: args.device.clone(),
    };
    let mut meter: Option<((&str, u64), Meter)> = None;
    let merged = merge(&documents, &args.output, &options, &mut |progress| {
        let (what, unit, begun) = match progress.stage {
            Stage::Learning { .. } => ("learn", "steps", progress.done - 1),
            Stage::Writing => ("merge", "bytes", 0),
        };
        // Each stage of each document has its own total, and its own bar.
        if meter.as_ref().is_none_or(|(of, _)| *of != (what, progress.total)) {
            meter.take().into_iter().for_each(|(_, meter)| meter.finish());
            meter = Some(((what, progress.total), Meter::new(what, unit, begun, Some(progress.total))));
        }
        if let Some((_, meter)) = &mut meter {
            if let Stage::Learning { loss } = progress.stage {
                meter.note(format!("divergence {loss:.4}"));
            }
            meter.set(progress.done);
        }
        interrupt::flow()
    })?;
    if let Some((_, meter)) = meter {
        meter.finish();
    }
    merged.learned.iter().for_each(tell);
    let files = if merged.files == 1 { "one file".to_string() } else { format!("{} files", merged.files) };
    print(&format!(
        "{}: {} tensors, {} parameters, {} in {files}\n",
        args.output.display(),
        human::count(merged.tensors as u64),
        human::count(merged.parameters as u64),
        human::bytes(merged.bytes)
    ))
}
