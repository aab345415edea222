//! `potstill convert`.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// What to convert into.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToArg {
    /// A shard set
    Shards,
    /// DistillKit's Parquet files
    Distillkit,
}

/// What the values of DistillKit's raw form are.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValuesArg {
    /// Logits: what they leave out is unknown
    Logits,
    /// Log-probabilities
    LogProbs,
}

/// Turn DistillKit's teacher logits into a shard set, or a shard set into those
///
/// IN is a Parquet file, a folder of them, or a data set saved with `save_to_disk`, in any of DistillKit's three forms; or
/// a shard set. The tokens of an imported set are written beside it as `tokens.jsonl`: the recipe's `dataset.train`. A
/// stopped import goes on where it stopped when the same command is run again.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  potstill convert logits/ shards/ --tokenizer student/
  potstill convert logits/ shards/ --tokenizer student/ --config distillkit-recipe.yaml
  potstill convert shards/ logits.parquet --to distillkit --exact-k 16 --terms 0,1,2,sqrt

docs/distillkit.md says what is kept, and how to train on the result.")]
pub struct ConvertArgs {
    /// Parquet file, folder of such files, saved data set, or shard set
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
