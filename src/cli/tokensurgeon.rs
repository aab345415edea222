//! `potstill tokensurgeon`: a model under another's tokenizer.

use super::human::count;
use super::output::print;
use super::progress::Meter;
use super::{interrupt, open_model};
use crate::Result;
use crate::merge::{SurgeonOptions, tokensurgeon};
use clap::Args;
use std::path::PathBuf;

/// Give a model another model's tokenizer
///
/// Tokens that both have keep the model's embeddings. The others are combined from them as the donor's are (orthogonal
/// matching pursuit), without training. So a student can learn from a teacher of another tokenizer, or draft for it.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  potstill tokensurgeon student/ teacher/ student-with-teachers-tokens/
  potstill tokensurgeon student/ teacher/ out/ --k 8     coarser and faster")]
pub struct TokensurgeonArgs {
    /// The model: folder, .gguf file or hub id
    #[arg(value_name = "MODEL")]
    pub model: String,

    /// The model whose tokenizer it gets
    #[arg(value_name = "DONOR")]
    pub donor: String,

    /// The folder for the result
    #[arg(value_name = "OUT")]
    pub output: PathBuf,

    /// Most tokens that a new one is combined from
    #[arg(long, default_value_t = 64)]
    pub k: usize,

    /// Write into a folder that holds something already
    #[arg(long)]
    pub overwrite: bool,
}

pub(super) fn run(args: &TokensurgeonArgs) -> Result<()> {
    interrupt::listen();
    let (model, donor) = (open_model(&args.model)?, open_model(&args.donor)?);
    let options = SurgeonOptions { k: args.k, overwrite: args.overwrite };
    let mut meter: Option<Meter> = None;
    let made = pollster::block_on(tokensurgeon(&model, &donor, &args.output, &options, &mut |done, total| {
        meter.get_or_insert_with(|| Meter::new("tokensurgeon", "rows", 0, Some(total as u64))).set(done as u64);
        interrupt::flow()
    }))?;
    if let Some(meter) = meter {
        meter.finish();
    }
    let (tokens, shared) = (made.tokens as u64, made.shared as u64);
    let (total, own, new) = (count(tokens), count(shared), count(tokens - shared));
    print(&format!("{}: {total} tokens, {own} of them the model's own, {new} combined\n", args.output.display()))
}
