//! The arguments of every command. Their comments are the help that users read.

use crate::device::Choice;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
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
    /// Let a model continue a text
    Generate(GenerateArgs),
    /// Log-probabilities of texts under a model
    Score(ScoreArgs),
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
    pub server: super::endpoint::EndpointArgs,
}

/// What to convert into.
#[cfg(feature = "parquet")]
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToArg {
    /// A shard set
    Shards,
    /// DistillKit's Parquet files
    Distillkit,
}

/// What the values of DistillKit's raw form are.
#[cfg(feature = "parquet")]
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValuesArg {
    /// Logits: what they leave out is unknown
    Logits,
    /// Log-probabilities
    LogProbs,
}

/// Turn DistillKit's teacher logits into a shard set, or a shard set into those
///
/// IN is a Parquet file or a folder of them, in any of DistillKit's three forms, or a shard set. The tokens of an
/// imported set are written beside it as `tokens.jsonl`: the recipe's `dataset.train`. A stopped import goes on where it
/// stopped when the same command is run again.
#[cfg(feature = "parquet")]
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  potstill convert logits/ shards/ --tokenizer student/
  potstill convert logits/ shards/ --tokenizer student/ --config distillkit-recipe.yaml
  potstill convert shards/ logits.parquet --to distillkit --exact-k 16 --terms 0,1,2,sqrt

docs/distillkit.md says what is kept, and how to train on the result.")]
pub struct ConvertArgs {
    /// Parquet file, folder of such files, or shard set
    #[arg(value_name = "IN")]
    pub input: PathBuf,

    /// The folder that receives the shard set; or a .parquet file, or a folder for one
    #[arg(value_name = "OUT")]
    pub output: PathBuf,

    /// What to convert into; by default what IN is not
    #[arg(long, value_enum)]
    pub to: Option<ToArg>,

    /// To shards: whose tokenizer made the token ids (model folder, .gguf file or hub id)
    #[arg(long, value_name = "MODEL")]
    pub tokenizer: Option<PathBuf>,

    /// The codec's settings: a compression_config.yaml, or a DistillKit recipe
    ///
    /// To shards the default is the compression_config.yaml beside the data. To DistillKit the default is 16 exact
    /// entries in half precision and a polynomial of six terms.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// To shards: a name for the teacher; by default the data's
    #[arg(long, value_name = "NAME")]
    pub teacher: Option<String>,

    /// To shards: the recipe's `sequence_length`; by default the longest row's
    #[arg(long, value_name = "T")]
    pub sequence_length: Option<usize>,

    /// To shards: what the values of the raw form are; by default what they look like
    #[arg(long, value_enum)]
    pub values: Option<ValuesArg>,

    /// To DistillKit: entries stored as they are
    #[arg(long, value_name = "N")]
    pub exact_k: Option<u32>,

    /// To DistillKit: terms of the polynomial through the rest: powers, `sqrt`, `exp`
    #[arg(long, value_name = "TERM,..", value_delimiter = ',')]
    pub terms: Option<Vec<String>>,
}

/// Train a student as a recipe says
///
/// Where the recipe's output folder holds checkpoints of the same recipe, training goes on from the latest. Ctrl-C saves
/// a checkpoint first. `--device` takes precedence over the recipe's `device`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  potstill distill recipe.yaml
  potstill distill recipe.yaml --device gpu

docs/recipe.md lists every key.")]
pub struct DistillArgs {
    /// The recipe, a YAML file
    #[arg(value_name = "RECIPE")]
    pub recipe: PathBuf,

    /// Start anew, over what the output folder holds
    #[arg(long)]
    pub overwrite: bool,
}

/// Log-probabilities of texts under a model
///
/// Reads JSON lines with `text` or `input_ids` from FILE or stdin and writes a line each with `input_ids` and
/// `logprobs` (nats; the first is null), as evaluation harnesses want them.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  echo '{\"text\": \"Hello world\"}' | potstill score model.gguf
  potstill score student/ lines.jsonl --top 5 > scores.jsonl")]
pub struct ScoreArgs {
    /// Model folder, .gguf file, or hub id
    #[arg(value_name = "MODEL")]
    pub model: String,

    /// JSON lines; standard input if left out
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Also the N likeliest tokens at each position, as `top_logprobs`
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub top: usize,
}

/// Let a model continue a text
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  potstill generate model.gguf --prompt 'Once upon a time'
  potstill generate model.gguf --chat 'What is the capital of France?'
  potstill generate student/ --prompt 'The' --temperature 0.8 --top-p 0.95 --seed 7")]
pub struct GenerateArgs {
    /// Model folder, .gguf file, or hub id
    #[arg(value_name = "MODEL")]
    pub model: String,

    /// A text to continue
    #[arg(long, value_name = "TEXT", conflicts_with = "chat", required_unless_present = "chat")]
    pub prompt: Option<String>,

    /// A message to answer, through the model's chat template
    #[arg(long, value_name = "TEXT")]
    pub chat: Option<String>,

    /// A system message before --chat
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,

    /// Generate at most this many tokens
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub max_tokens: usize,

    /// 0 takes the likeliest token each time
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f64,

    /// Choose among the K likeliest tokens only; 0 among all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,

    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f64,

    /// Seed of the choices
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// Print the text all at once at the end
    #[arg(long)]
    pub no_stream: bool,
}

/// See a distillation from beginning to end in a few minutes
///
/// Brings a 135M-parameter teacher and public-domain text, records the teacher's distributions, and trains the same
/// small student twice: on the text alone, and on the teacher's distributions. Then it measures all three on text none
/// of them was trained on. What is there already is used again.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  potstill quickstart                      a table at the end
  potstill quickstart --json               the same as one JSON object
  potstill quickstart --seed 43            the text in another order")]
pub struct QuickstartArgs {
    /// Where downloads and results go
    #[arg(long, value_name = "FOLDER", default_value = ".cache")]
    pub cache: PathBuf,

    /// Seed of the order of the text
    #[arg(long, default_value_t = 42)]
    pub seed: u64,

    /// Tokens to train on
    #[arg(long, value_name = "N", default_value_t = 40_960)]
    pub tokens: usize,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
