//! The arguments of every command. Their comments are the help that users read.

use crate::device::Choice;
use clap::{ArgAction, Args, Parser, Subcommand};
use std::path::PathBuf;

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
  potstill doctor                what there is to compute on, and whether it computes right
  potstill inspect model.gguf    what a model, or a set of captured distributions, holds

`potstill COMMAND --help` explains a command, with examples.
Exit codes: 0 done, 1 error, 130 interrupted.";

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show what a model or a shard set holds
    Inspect(InspectArgs),
    /// List devices and test whether the chosen one computes right
    Doctor(DoctorArgs),
}

/// Show what a model or a shard set holds
///
/// PATH is a Hugging Face folder, a .gguf or .safetensors file, a set of captured distributions, or a hub id. Only
/// headers are read, so that even a large model shows at once.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  potstill inspect model.gguf              architecture, parameters, storage types, tokenizer
  potstill inspect model.gguf --tensors    every tensor
  potstill inspect shards/ --verify        check every byte, and that records fit their tokens
  potstill inspect student/ --json         the same for a program")]
pub struct InspectArgs {
    /// Model folder, .gguf or .safetensors file, shard set, or hub id
    #[arg(value_name = "PATH")]
    pub path: PathBuf,

    /// Read a whole shard set and check it
    ///
    /// Checks length and SHA-256 of every file and every number of every row, and that the distributions belong to the
    /// tokens beside them. Fails at the first thing wrong.
    #[arg(long)]
    pub verify: bool,

    /// Hash a model's weights and tokenizer
    ///
    /// Shard sets name their teacher by these digests.
    #[arg(long)]
    pub digest: bool,

    /// List every tensor of a model
    #[arg(long)]
    pub tensors: bool,

    /// Print one JSON object
    #[arg(long, conflicts_with = "tensors")]
    pub json: bool,
}

/// List devices and test whether the chosen one computes right
///
/// Names the adapters and which of them `--device auto` takes, what the chosen device can do and which kernels that
/// selects, and then runs a table of small computations with every kernel against double precision. Exits with 1 if one
/// is wrong.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  potstill doctor                          test what `--device auto` takes
  potstill doctor --device gpu:radeon      test one GPU of several
  potstill doctor --device cpu --bench     also how fast each computation is
  potstill doctor -v                       every row, and every kernel with its constants")]
pub struct DoctorArgs {
    /// Time every computation of the table
    #[arg(long)]
    pub bench: bool,
}
