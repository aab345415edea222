//! `potstill capture`: a teacher's distributions into a shard set.

use super::args::{CaptureArgs, Cli, KindArg, PrecisionArg, SplitArg, StateArg, WeightsArg};
use super::human::{bytes, count};
use super::progress::{Meter, say};
use super::{interrupt, open_model};
use crate::data::documents::Split;
use crate::data::tokens::Corpus;
use crate::device::Precision;
use crate::distill::CaptureOptions;
use crate::distill::capture::Progress;
use crate::distill::corpus::{CorpusOptions, read_corpus};
use crate::models::FrozenWeights;
use crate::shards::spec::DEFAULT_MAX_UNIQUE;
use crate::shards::{LogProbType, Manifest, Record, StateType};
use crate::tuning::tuned;
use crate::{Error, Result};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) fn run(cli: &Cli, args: &CaptureArgs) -> Result<()> {
    if args.kind != KindArg::Hidden && !args.layers.is_empty() {
        let complaint = Error::at("capture").field("`--layers`").expected("`--kind hidden` beside it");
        return complaint.found("another kind of record").help("leave one of the two out").err();
    }
    #[cfg(feature = "endpoint")]
    if let Some(url) = &args.server.endpoint {
        return super::endpoint::run(args, url);
    }
    let device = tuned(pollster::block_on(cli.device.open())?);
    let teacher = open_model(&args.model)?;
    let tokenizer = teacher.tokenizer()?;
    let corpus = Arc::new(read_corpus(&tokenizer, &corpus_options(args, args.text.clone()))?);
    let options = options(args);
    announce(&corpus);
    let manifest = record(&device, &teacher, &corpus, &args.output, &options)?;
    show(&manifest, &args.output);
    Ok(())
}

/// How the command reads `text`.
pub(super) fn corpus_options(args: &CaptureArgs, text: Vec<PathBuf>) -> CorpusOptions {
    let split = match args.split {
        SplitArg::File => Split::File,
        SplitArg::Paragraphs => Split::Paragraphs,
    };
    CorpusOptions { split, limit: args.limit_tokens, ..CorpusOptions::new(text) }
}

/// Says how much there is to record.
pub(super) fn announce(corpus: &Corpus) {
    say(&format!("{} tokens in {} documents", count(corpus.ids().len() as u64), count(corpus.documents() as u64)));
}

/// Says what was recorded.
pub(super) fn show(manifest: &Manifest, output: &Path) {
    let stats = &manifest.statistics;
    let mean = |x: Option<f64>| x.map_or("unknown".into(), |x| format!("{x:.4}"));
    let tail = stats.mean_tail_mass.map_or(String::new(), |tail| format!(", mean tail mass {tail:.4}"));
    let (rows, nll) = (count(stats.rows), mean(stats.mean_nll));
    say(&format!("{}: {rows} rows, teacher's mean NLL {nll}{tail}", output.display()));
}

/// Moves the bar of a capture, which begins with its first report.
pub(super) fn follow(meter: &mut Option<Meter>, progress: Progress) -> ControlFlow<()> {
    let meter = meter.get_or_insert_with(|| Meter::new("capture", "tokens", progress.rows, Some(progress.total)));
    meter.written(progress.bytes);
    meter.set(progress.rows);
    interrupt::flow()
}

fn options(args: &CaptureArgs) -> CaptureOptions {
    let record = match args.kind {
        KindArg::TopK => Record::TopK { k: args.top_k, log_probs: LogProbType::DEFAULT },
        KindArg::Sampled => {
            let max_unique = DEFAULT_MAX_UNIQUE.min(args.draws);
            Record::Sampled { draws: args.draws, max_unique, seed: args.seed }
        }
        KindArg::Hidden => {
            let states = match args.state_type {
                StateArg::F16 => StateType::F16,
                StateArg::Bf16 => StateType::Bf16,
            };
            Record::Hidden { states, hidden_size: 0, layers: args.layers.clone() }
        }
    };
    CaptureOptions {
        record,
        temperatures: args.temperatures.clone(),
        sequence_length: args.sequence_length,
        batch_size: args.batch_size,
        precision: match args.precision {
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::Bf16 => Precision::Bf16,
            PrecisionArg::F16 => Precision::F16,
        },
        weights: match args.weights {
            WeightsArg::Stored => FrozenWeights::Stored,
            WeightsArg::F32 => FrozenWeights::F32,
        },
        ..CaptureOptions::default()
    }
}

/// [`crate::distill::capture`] with a bar; Ctrl-C stops it.
pub(super) fn record(
    device: &crate::device::Device,
    teacher: &crate::formats::ModelFolder,
    corpus: &Arc<Corpus>,
    output: &Path,
    options: &CaptureOptions,
) -> Result<Manifest> {
    interrupt::listen();
    let mut meter: Option<Meter> = None;
    let manifest = crate::distill::capture(
        device,
        teacher,
        corpus,
        output,
        options,
        &mut |memory| say(&format!("on {}; planned memory {memory}", device.name())),
        &mut |progress| follow(&mut meter, progress),
    )?;
    if let Some(meter) = meter {
        meter.finish();
    }
    let size: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
    say(&format!("{} in {} shards", bytes(size), manifest.shards.len()));
    Ok(manifest)
}
