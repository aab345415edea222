//! `potstill generate` and `potstill score`.

use clap::Args;
use std::path::PathBuf;

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
