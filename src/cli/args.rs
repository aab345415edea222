//! The arguments of every command. Their comments are the help that users read.

mod capture;
#[cfg(feature = "parquet")]
mod convert;
mod generate;
mod inspect;
mod train;

pub use capture::{CaptureArgs, KindArg, PrecisionArg, SplitArg, StateArg, WeightsArg};
#[cfg(feature = "parquet")]
pub use convert::{ConvertArgs, ToArg, ValuesArg};
pub use generate::{GenerateArgs, ScoreArgs};
pub use inspect::{DoctorArgs, InspectArgs};
pub use train::{DistillArgs, QuickstartArgs};

use crate::device::Choice;
use clap::{ArgAction, Parser, Subcommand};

/// Distil small language models on any GPU, or on a plain CPU.
///
/// A teacher's output distributions are captured once, a student is trained on them, and the result is an ordinary
/// Hugging Face folder. Wherever a command takes a MODEL, it may be a Hugging Face folder, a .gguf file, or a hub id
/// such as `owner/name`.
#[derive(Parser, Debug)]
#[command(name = "potstill", version, max_term_width = 100, after_help = EXAMPLES, subcommand_required = true)]
pub struct Cli {
    /// Where to compute: auto, cpu, gpu, or gpu:NAME
    ///
    /// `auto` takes a discrete GPU, else an integrated one, else the CPU. `gpu` takes any GPU, software drivers
    /// included. `gpu:NAME` takes the GPU whose name, driver or backend contains NAME. `potstill doctor` lists them.
    #[arg(long, global = true, value_name = "DEVICE", default_value = "auto")]
    pub device: Choice,

    /// Say more about what happens; twice says everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  potstill quickstart                           a whole distillation, from teacher to table
  potstill doctor                               what there is to compute on, and whether it is right
  potstill inspect model.gguf                   what a model, or a set of distributions, holds
  potstill capture teacher/ text/ -o shards/    record a teacher
  potstill distill recipe.yaml                  train a student on the record
  potstill merge merge.yaml merged/             merge models into one

`potstill COMMAND --help` explains a command, with examples.
Exit codes: 0 done, 1 error, 130 interrupted.";

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// See a distillation from beginning to end in a few minutes
    Quickstart(QuickstartArgs),
    /// Record a teacher's output distributions over a text
    Capture(CaptureArgs),
    /// Train a student as a recipe says
    Distill(DistillArgs),
    /// Turn DistillKit's teacher logits into a shard set, or a shard set into those
    #[cfg(feature = "parquet")]
    Convert(ConvertArgs),
    /// Merge models of one architecture into one
    Merge(super::merge::MergeArgs),
    /// Turn a fine-tune into a LoRA adapter on its base
    #[cfg(feature = "spectrum")]
    ExtractLora(super::extract_lora::ExtractLoraArgs),
    /// Choose the layers to train by the signal in their weights
    #[cfg(feature = "spectrum")]
    Spectrum(super::spectrum::SpectrumArgs),
    /// Give a model another model's tokenizer
    Tokensurgeon(super::tokensurgeon::TokensurgeonArgs),
    /// Let a model continue a text
    Generate(GenerateArgs),
    /// Log-probabilities of texts under a model
    Score(ScoreArgs),
    /// Show what a model or a shard set holds
    Inspect(InspectArgs),
    /// List devices and test whether the chosen one computes right
    Doctor(DoctorArgs),
}
