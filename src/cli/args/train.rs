//! `potstill distill` and `potstill quickstart`.

use clap::Args;
use std::path::PathBuf;

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
