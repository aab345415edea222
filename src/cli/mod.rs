//! The command line. Each command is a file here that reads its arguments, makes a library call and prints what comes
//! back; nothing is computed here.
//!
//! Exit codes: 0 done, 1 error, 130 interrupted.

pub mod args;
pub mod assets;
mod capture;
#[cfg(feature = "parquet")]
mod convert;
mod distill;
mod doctor;
#[cfg(feature = "endpoint")]
pub mod endpoint;
#[cfg(feature = "spectrum")]
mod extract_lora;
mod generate;
pub mod human;
mod inspect;
pub mod interrupt;
mod merge;
pub mod output;
pub mod progress;
mod quickstart;
mod score;
#[cfg(feature = "spectrum")]
pub mod spectrum;
pub mod table;
mod tokensurgeon;

use crate::formats::ModelFolder;
use crate::formats::hub::{self, Fetching};
use crate::{Error, Result};
use args::{Cli, Command};
use clap::Parser;
use progress::Meter;
use std::process::ExitCode;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Asking for help is no error; clap's own code for misuse would be a third kind of failure.
            let code = if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
            let _ = error.print();
            return code;
        }
    };
    output::start_log(cli.verbose);
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Cancelled) => {
            progress::say("interrupted");
            ExitCode::from(130)
        }
        Err(error) => {
            progress::say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    match &cli.command {
        Command::Inspect(args) => inspect::run(args),
        Command::Doctor(args) => doctor::run(cli, args),
        Command::Capture(args) => capture::run(cli, args),
        #[cfg(feature = "parquet")]
        Command::Convert(args) => convert::run(args),
        Command::Distill(args) => distill::run(cli, args),
        #[cfg(feature = "spectrum")]
        Command::ExtractLora(args) => extract_lora::run(args),
        Command::Tokensurgeon(args) => tokensurgeon::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Generate(args) => generate::run(cli, args),
        Command::Quickstart(args) => quickstart::run(cli, args),
        Command::Score(args) => score::run(cli, args),
        #[cfg(feature = "spectrum")]
        Command::Spectrum(args) => spectrum::run(args),
    }
}

/// Opens a model folder, a .gguf file or a hub id, which is downloaded if it is not there.
fn open_model(name: &str) -> Result<ModelFolder> {
    ModelFolder::open(hub::resolve_with(name, &mut fetching())?)
}

/// Shows files on their way from the hub, and stops them on Ctrl-C.
pub fn fetching() -> impl FnMut(&Fetching) -> Result<()> {
    let mut meter: Option<(String, Meter)> = None;
    move |fetching| {
        interrupt::listen();
        if meter.as_ref().is_none_or(|(file, _)| *file != fetching.file) {
            let new = Meter::new(&fetching.file, "bytes", fetching.done, Some(fetching.total));
            if let Some((_, old)) = meter.replace((fetching.file.clone(), new)) {
                old.finish();
            }
        }
        if let Some((_, meter)) = &mut meter {
            meter.set(fetching.done);
        }
        interrupt::check()
    }
}
