//! `potstill convert`: teacher records between DistillKit's files and shard sets.

use super::args::{ConvertArgs, ToArg, ValuesArg};
use super::human::count;
use super::interrupt;
use super::output::print;
use super::progress::{Meter, say};
use crate::distill::convert::{ExportOptions, ImportOptions, Progress, Values, export, import};
use crate::distill::setup::open_tokenizer;
use crate::shards::foreign::Term;
use crate::shards::manifest::MANIFEST_FILE;
use crate::{Error, Result};
use std::ops::ControlFlow;

pub(super) fn run(args: &ConvertArgs) -> Result<()> {
    let set = args.input.join(MANIFEST_FILE).is_file();
    let to = args.to.unwrap_or(if set { ToArg::Distillkit } else { ToArg::Shards });
    if (to == ToArg::Distillkit) != set {
        let (expected, found) = match to {
            ToArg::Distillkit => ("a shard set, to convert into DistillKit's files", "no manifest.json in it"),
            ToArg::Shards => ("DistillKit's files, to convert into a shard set", "a shard set"),
        };
        return Error::file(&args.input).expected(expected).found(found).help("check IN, or leave `--to` out").err();
    }
    refuse_others(args, to)?;
    match to {
        ToArg::Shards => to_shards(args),
        ToArg::Distillkit => to_distillkit(args),
    }
}

/// Refuses arguments that only the other direction reads.
fn refuse_others(args: &ConvertArgs, to: ToArg) -> Result<()> {
    let given = match to {
        ToArg::Shards => vec![("--exact-k", args.exact_k.is_some()), ("--terms", args.terms.is_some())],
        ToArg::Distillkit => vec![
            ("--tokenizer", args.tokenizer.is_some()),
            ("--teacher", args.teacher.is_some()),
            ("--sequence-length", args.sequence_length.is_some()),
            ("--values", args.values.is_some()),
        ],
    };
    match given.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((name, _)) => {
            let found = if to == ToArg::Shards { "a conversion to shards" } else { "a conversion to DistillKit" };
            Error::at(name).expected("the other direction").found(found).help("leave it out").err()
        }
    }
}

fn to_shards(args: &ConvertArgs) -> Result<()> {
    let Some(tokenizer) = &args.tokenizer else {
        let complaint = Error::at("--tokenizer").expected("the model whose tokenizer made the token ids");
        return complaint.found("nothing").help("name the student's folder, GGUF file or hub id").err();
    };
    let tokenizer = open_tokenizer(tokenizer)?;
    let values = args.values.map(|values| match values {
        ValuesArg::Logits => Values::Logits,
        ValuesArg::LogProbs => Values::LogProbs,
    });
    let options = ImportOptions {
        config: args.config.clone(),
        teacher: args.teacher.clone(),
        sequence_length: args.sequence_length,
        values,
    };
    let made = metered(|progress| import(&args.input, &args.output, &tokenizer, &options, progress))?;
    let (stats, spec) = (&made.manifest.statistics, &made.manifest.spec);
    let words = match made.values {
        Values::LogProbs => "log-probabilities; tail masses are what they leave out of 1",
        Values::Logits => "logits; what they leave out is unknown, so train with `missing_probability_handling: zero`",
    };
    say(&format!("{} form, {words} ({})", made.form, made.why));
    if made.hits.1 > 0 {
        let share = 100.0 * made.hits.0 as f64 / made.hits.1 as f64;
        say(&format!("the true next token is in {share:.1} % of the records"));
    }
    if made.padding > 0 {
        say(&format!("{} entries named ids that no token has; they count as tail", count(made.padding)));
    }
    if made.cut_documents > 0 {
        say(&format!(
            "warning: at `sequence_length` {} {} of {} documents are cut, where the student sees less context than the \
             teacher did",
            spec.context_length,
            count(made.cut_documents),
            count(stats.documents)
        ));
    }
    print(&format!(
        "{}: {} rows, of which {} count, in {} documents\n\
         recipe: teacher.path {}, dataset.train {}, sequence_length {}\n",
        args.output.display(),
        count(stats.rows),
        count(stats.valid_rows),
        count(stats.documents),
        args.output.display(),
        made.tokens.display(),
        spec.context_length
    ))
}

fn to_distillkit(args: &ConvertArgs) -> Result<()> {
    let term = |name: &String| {
        let complaint = || Error::at("--terms").expected("powers of 0 or more, sqrt or exp").found(name).error();
        Term::parse(name).ok_or_else(complaint)
    };
    let terms = args.terms.as_ref().map(|names| names.iter().map(term).collect::<Result<Vec<_>>>()).transpose()?;
    let options = ExportOptions { config: args.config.clone(), exact_k: args.exact_k, terms };
    let made = metered(|progress| export(&args.input, &args.output, &options, progress))?;
    let bytes = std::fs::metadata(&made.data).map_err(Error::io("read", &made.data))?.len();
    print(&format!(
        "{}: {} rows, {} positions, {:.0} bytes a position\nsettings: {} (DistillKit's `teacher.logprob_compressor`)\n",
        made.data.display(),
        count(made.rows),
        count(made.positions),
        bytes as f64 / made.positions.max(1) as f64,
        made.config_file.display()
    ))
}

/// Runs a conversion with a bar; Ctrl-C stops it.
fn metered<T>(convert: impl FnOnce(&mut dyn FnMut(Progress) -> ControlFlow<()>) -> Result<T>) -> Result<T> {
    interrupt::listen();
    let mut meter: Option<Meter> = None;
    let made = convert(&mut |progress| {
        let meter = meter.get_or_insert_with(|| Meter::new("convert", "tokens", 0, Some(progress.total)));
        meter.set(progress.rows);
        interrupt::flow()
    })?;
    if let Some(meter) = meter {
        meter.finish();
    }
    Ok(made)
}
