//! `potstill capture --endpoint`: a served teacher's distributions into a shard set.

use super::args::{CaptureArgs, KindArg};
use super::capture::{announce, corpus_options, follow, show};
use super::interrupt;
use super::progress::Meter;
use crate::distill::corpus::read_corpus;
use crate::distill::endpoint::{ApiKey, Dialect, EndpointOptions, capture_endpoint};
use crate::distill::setup::open_tokenizer;
use crate::{Error, Result};
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Whom to ask.
#[derive(Args, Debug)]
#[command(next_help_heading = "A teacher that is served elsewhere")]
pub struct EndpointArgs {
    /// Ask the server at URL instead of running a model; there is no MODEL then, only TEXT
    ///
    /// A server of vLLM, SGLang or llama.cpp. It is sent token ids and shows its K likeliest tokens; vLLM and SGLang
    /// answer for a whole context at once, llama.cpp takes a request for every token.
    #[arg(
        long,
        value_name = "URL",
        requires_all = ["served_model", "tokenizer"],
        conflicts_with_all = ["draws", "seed", "batch_size"]
    )]
    pub endpoint: Option<String>,

    /// The model, by the server's name for it
    #[arg(long = "model", id = "served_model", value_name = "NAME", requires = "endpoint")]
    pub served_model: Option<String>,

    /// The served model's tokenizer: a model folder, .gguf file or hub id
    #[arg(long, value_name = "FOLDER", requires = "endpoint")]
    pub tokenizer: Option<String>,

    /// The server's API: auto, vllm, sglang or llama-cpp; auto asks it
    #[arg(long, value_name = "API", default_value = "auto", value_parser = dialect, requires = "endpoint")]
    pub dialect: AutoDialect,

    /// The environment variable that holds the server's key
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    pub api_key_env: Option<String>,

    /// Contexts to ask for at once
    #[arg(long, value_name = "N", default_value_t = 8, requires = "endpoint")]
    pub concurrency: usize,

    /// Seconds that a request may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0, requires = "endpoint")]
    pub timeout: f64,

    /// How often a request that failed is sent again
    #[arg(long, value_name = "N", default_value_t = 6, requires = "endpoint")]
    pub retries: u32,
}

/// A dialect, or none: ask the server.
#[derive(Clone, Copy, Debug)]
pub struct AutoDialect(Option<Dialect>);

fn dialect(name: &str) -> Result<AutoDialect, String> {
    match name {
        "auto" => Ok(AutoDialect(None)),
        _ => name.parse().map(|dialect| AutoDialect(Some(dialect))),
    }
}

/// Records the teacher that `url` serves.
pub(super) fn run(args: &CaptureArgs, url: &str) -> Result<()> {
    let options = options(args, url)?;
    let tokenizer = open_tokenizer(Path::new(args.server.tokenizer.as_deref().unwrap_or_default()))?;
    let text = std::iter::once(PathBuf::from(&args.model)).chain(args.text.iter().cloned()).collect();
    let corpus = Arc::new(read_corpus(&tokenizer, &corpus_options(args, text))?);
    announce(&corpus);
    interrupt::listen();
    let mut meter: Option<Meter> = None;
    let manifest =
        capture_endpoint(&tokenizer, &corpus, &args.output, &options, &mut |progress| follow(&mut meter, progress))?;
    if let Some(meter) = meter {
        meter.finish();
    }
    show(&manifest, &args.output);
    Ok(())
}

fn options(args: &CaptureArgs, url: &str) -> Result<EndpointOptions> {
    let server = &args.server;
    let refuse = |what: &str, expected: &str, found: &dyn std::fmt::Display| {
        let help = "a server shows a part of each distribution: for more, run the model here";
        Error::at(what).expected(expected).found(found).help(help).err()
    };
    if args.kind != KindArg::TopK {
        return refuse("--kind", "top-k with --endpoint", &"another");
    }
    if args.temperatures != [1.0] {
        return refuse("--temperatures", "1 alone with --endpoint", &format!("{:?}", args.temperatures));
    }
    let timeout = Duration::try_from_secs_f64(server.timeout);
    let timeout = timeout.map_err(|error| Error::at("--timeout").expected("seconds").found(error).error())?;
    let mut options = EndpointOptions::new(url, server.served_model.clone().unwrap_or_default());
    options.dialect = server.dialect.0;
    options.api_key = server.api_key_env.as_deref().map(api_key).transpose()?;
    options.top_k = args.top_k;
    options.sequence_length = args.sequence_length;
    options.concurrency = server.concurrency;
    options.timeout = timeout;
    options.retries = server.retries;
    Ok(options)
}

fn api_key(name: &str) -> Result<ApiKey> {
    match std::env::var(name) {
        Ok(key) if !key.is_empty() => Ok(ApiKey::new(key)),
        // What it holds is not shown, not even where it is no text.
        _ => Error::at("--api-key-env")
            .expected(format!("a key in the environment variable {name}"))
            .found("none")
            .help("set it, and give its name here rather than the key")
            .err(),
    }
}
