//! `potstill inspect` and `potstill doctor`.

use clap::Args;
use std::path::PathBuf;

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
