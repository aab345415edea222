//! `potstill capture`.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// How `.txt` files become documents.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitArg {
    /// One document a file
    File,
    /// One document a paragraph
    Paragraphs,
}

/// What a shard set records of each distribution.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum KindArg {
    /// The likeliest tokens and the mass of the rest
    TopK,
    /// Random draws: unbiased, smaller
    Sampled,
    /// The teacher's hidden states: with its head the whole distribution, at 2 bytes a channel
    Hidden,
}

/// How numbers of hidden states are stored, two bytes each.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateArg {
    /// Half precision: 11 significant bits, up to 65504
    F16,
    /// Brain float: 8 significant bits, any magnitude
    Bf16,
}

/// How the teacher's matrix products treat their factors; sums are f32.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrecisionArg {
    /// As they are
    F32,
    /// Rounded to bfloat16: about twice as fast on CPUs with AVX512-BF16, refused elsewhere
    Bf16,
    /// Rounded to 16-bit floats: for GPUs whose shaders have them, refused elsewhere
    F16,
}

/// How the teacher's matrices lie in memory.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightsArg {
    /// As the file stores them, decoded inside the products
    Stored,
    /// Decoded once, four bytes each
    F32,
}

/// Record a teacher's output distributions over a text
///
/// Runs MODEL over the text once and writes a shard set: one record for each token. A stopped capture goes on where it
/// stopped when the same command is run again.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  potstill capture teacher/ text/ -o shards/
  potstill capture model.gguf chats.jsonl -o shards/ --kind sampled --draws 50
  potstill capture model.gguf a.txt -o shards/ --temperatures 1,2 --sequence-length 512
  potstill capture teacher/ a.txt -o shards/ --kind hidden --layers 3,7
  potstill capture text/ -o shards/ --endpoint http://localhost:8000 --model NAME --tokenizer FOLDER")]
pub struct CaptureArgs {
    /// The teacher: model folder, .gguf file, or hub id; with --endpoint the first TEXT
    #[arg(value_name = "MODEL")]
    pub model: String,

    /// .txt and .jsonl files, and folders of them
    #[cfg_attr(feature = "endpoint", arg(value_name = "TEXT", required_unless_present = "endpoint"))]
    #[cfg_attr(not(feature = "endpoint"), arg(value_name = "TEXT", required = true))]
    pub text: Vec<PathBuf>,

    /// The folder that receives the shard set
    #[arg(short, long, value_name = "FOLDER")]
    pub output: PathBuf,

    /// What to record of each distribution
    #[arg(long, value_enum, default_value = "top-k")]
    pub kind: KindArg,

    /// Tokens a top-k record keeps, at most those of the tokenizer
    #[arg(long, value_name = "K", default_value_t = 64)]
    pub top_k: u32,

    /// Draws a sampled record makes
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub draws: u32,

    /// Hidden states to store besides the final one
    ///
    /// Numbered as the recipe's `layer_mapping` does: 0 is the embeddings, i what block i puts out, from 1.
    #[arg(long, value_name = "I,..", value_delimiter = ',')]
    pub layers: Vec<u32>,

    /// How hidden states are stored
    #[arg(long, value_enum, default_value = "f16")]
    pub state_type: StateArg,

    /// Temperatures that records can be used at
    ///
    /// Top-k records can serve several; the first must be 1. Sampled records serve the one they are drawn at.
    #[arg(long, value_name = "T,..", value_delimiter = ',', default_value = "1")]
    pub temperatures: Vec<f32>,

    /// Tokens of context; the recipe's `sequence_length` must be the same
    #[arg(long, value_name = "T", default_value_t = 512)]
    pub sequence_length: usize,

    /// Sequences at a time
    #[arg(long, value_name = "B", default_value_t = 2)]
    pub batch_size: usize,

    /// How the teacher computes
    #[arg(long, value_enum, default_value = "f32")]
    pub precision: PrecisionArg,

    /// How the teacher's matrices lie in memory; what is recorded is the same
    #[arg(long, value_enum, default_value = "stored")]
    pub weights: WeightsArg,

    /// Read only this many tokens of the text
    #[arg(long, value_name = "N")]
    pub limit_tokens: Option<usize>,

    /// How .txt files become documents
    #[arg(long, value_enum, default_value = "file")]
    pub split: SplitArg,

    /// Seed of the draws
    #[arg(long, default_value_t = 42)]
    pub seed: u64,

    /// Whom to ask where the teacher is served.
    #[cfg(feature = "endpoint")]
    #[command(flatten)]
    pub server: crate::cli::endpoint::EndpointArgs,
}
