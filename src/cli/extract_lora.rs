//! `potstill extract-lora`: what a fine-tune changed, as an adapter.

use super::output::print;
use super::progress::Meter;
use super::{interrupt, open_model};
use crate::merge::{ExtractOptions, extract_lora};
use crate::{Error, Result};
use clap::Args;
use fancy_regex::Regex;
use std::path::PathBuf;

/// Turn a fine-tune into a LoRA adapter on its base
///
/// The change of every weight of the layers becomes the nearest matrix of the given rank; embeddings, norms and biases
/// that changed are stored whole. OUT becomes a PEFT folder, in float32. Base and adapter together give the fine-tune
/// again, but for what is beyond the rank; how much that is, is printed.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  potstill extract-lora tuned/ base/ adapter/
  potstill extract-lora tuned/ base/ adapter/ --rank 16 --include 'self_attn'
  potstill merge merge.yaml merged/        with `model: base/+adapter/` in it: the way back")]
pub struct ExtractLoraArgs {
    /// The fine-tune: model folder, .gguf file or hub id
    #[arg(value_name = "MODEL")]
    pub model: String,

    /// What it was made from
    #[arg(value_name = "BASE")]
    pub base: String,

    /// The folder for the adapter
    #[arg(value_name = "OUT")]
    pub output: PathBuf,

    /// The highest rank
    #[arg(long, value_name = "R", default_value_t = 128)]
    pub rank: usize,

    /// Only tensors whose name matches this regular expression
    #[arg(long, value_name = "REGEX")]
    pub include: Option<String>,

    /// No tensors whose name matches this regular expression
    #[arg(long, value_name = "REGEX")]
    pub exclude: Option<String>,

    /// Write into a folder that holds something already
    #[arg(long)]
    pub overwrite: bool,
}

pub(super) fn run(args: &ExtractLoraArgs) -> Result<()> {
    interrupt::listen();
    let pattern = |option: &str, text: &Option<String>| {
        let read = text.as_ref().map(|text| Regex::new(text)).transpose();
        read.map_err(|error| Error::at(option.to_string()).expected("a regular expression").found(error).error())
    };
    let (include, exclude) = (pattern("--include", &args.include)?, pattern("--exclude", &args.exclude)?);
    let options = ExtractOptions { rank: args.rank, include, exclude, overwrite: args.overwrite };
    let (model, base) = (open_model(&args.model)?, open_model(&args.base)?);
    let mut meter: Option<Meter> = None;
    let extracted = pollster::block_on(extract_lora(&model, &base, &args.output, &options, &mut |done, total| {
        meter.get_or_insert_with(|| Meter::new("extract", "tensors", 0, Some(total as u64))).set(done as u64);
        interrupt::flow()
    }))?;
    if let Some(meter) = meter {
        meter.finish();
    }
    let worst = extracted.worst.map(|(name, share)| format!(", least of {name} ({:.1}%)", 100.0 * share));
    print(&format!(
        "{}: rank {}, {} weights, {} tensors whole; {:.1}% of the squared change kept{}\n",
        args.output.display(),
        extracted.rank,
        extracted.adapted,
        extracted.whole,
        100.0 * extracted.kept,
        worst.unwrap_or_default()
    ))
}
