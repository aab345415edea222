//! Recording a teacher that runs elsewhere, behind an HTTP API that tells log-probabilities of a prompt's tokens.
//!
//! The text is tokenised here and sent as token ids, cut into the contexts that [`crate::data::packing`] makes of it,
//! so that the set fits training as a local capture's does. A server shows its k likeliest tokens; the rest of the
//! distribution is known by its mass alone, as 1 minus theirs (in f64, at least 0), and the manifest says so: 16-bit
//! logits on the server's side limit it to about 1e-3. There is no entropy, no other temperature and no random draw,
//! for which the whole distribution is needed.
//!
//! In reading order: `pool` asks for many contexts at once and hands them on in order, `dialect` asks for one
//! (`llama_cpp` where that takes a request for every token), `http` sends a request until it is answered.

mod dialect;
mod http;
mod llama_cpp;
mod pool;

pub use dialect::Dialect;

use super::capture::Progress;
use crate::data::tokens::Corpus;
use crate::device::Precision;
use crate::formats::Tokenizer;
use crate::shards::spec::{DEFAULT_K, DEFAULT_ROWS_PER_SHARD, Source, TailMass, UNKNOWN_DIGEST};
use crate::shards::{
    CONTEXT_START, DOCUMENT_START, LogProbType, Manifest, Record, Records, RowBatch, SetSpec, Teacher, VALID, Writer,
};
use crate::{Error, Result};
use dialect::{Position, Server};
use http::Client;
use pool::Pool;
use std::fmt;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A server's secret. It is sent with every request, and shown and stored nowhere.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// Takes the secret.
    pub fn new(secret: impl Into<String>) -> ApiKey {
        ApiKey(secret.into())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey")
    }
}

/// Whom to ask and what to record.
#[derive(Debug, Clone)]
pub struct EndpointOptions {
    /// The server's address: `http://host:8000`, with or without `/v1`.
    pub url: String,
    /// The model, by the server's name for it.
    pub model: String,
    /// The server's API; `None` asks the server what it is.
    pub dialect: Option<Dialect>,
    /// Sent as `Authorization: Bearer`.
    pub api_key: Option<ApiKey>,
    /// Tokens of a record.
    pub top_k: u32,
    /// How log-probabilities are stored.
    pub log_probs: LogProbType,
    /// T: tokens of context at most; the trainer's `sequence_length` must be the same. The server needs room for two
    /// more.
    pub sequence_length: usize,
    /// Rows of a shard: what a kill can cost at most.
    pub rows_per_shard: u32,
    /// Contexts asked for at once.
    pub concurrency: usize,
    /// How long a request may take.
    pub timeout: Duration,
    /// How often a request that failed is sent again.
    pub retries: u32,
    /// About how long to wait before the first repetition; twice as long before each further one, at most a minute.
    pub backoff: Duration,
}

impl EndpointOptions {
    /// The defaults for a model of a server.
    pub fn new(url: impl Into<String>, model: impl Into<String>) -> EndpointOptions {
        EndpointOptions {
            url: url.into(),
            model: model.into(),
            dialect: None,
            api_key: None,
            top_k: DEFAULT_K,
            log_probs: LogProbType::DEFAULT,
            sequence_length: 512,
            rows_per_shard: DEFAULT_ROWS_PER_SHARD,
            concurrency: 8,
            timeout: Duration::from_secs(300),
            retries: 6,
            backoff: Duration::from_millis(500),
        }
    }

    fn check(&self) -> Result<()> {
        let rule = |holds: bool, name: &str, expected: &str, found: &dyn fmt::Display| match holds {
            true => Ok(()),
            false => Error::at("capture").field(format!("`{name}`")).expected(expected).found(found).err(),
        };
        rule((1..1 << 24).contains(&self.sequence_length), "sequence_length", "1 to 16777215", &self.sequence_length)?;
        rule((1..=1024).contains(&self.concurrency), "concurrency", "1 to 1024 requests", &self.concurrency)?;
        rule(!self.timeout.is_zero(), "timeout", "more than 0 seconds", &self.timeout.as_secs_f64())?;
        rule(!self.model.is_empty(), "model", "the server's name of the model", &"nothing")
    }
}

/// Asks a server for the distributions of `corpus` and writes the shard set `out`, or goes on with one that a stopped
/// process left there. `tokenizer` is the one that made the corpus and has to be the served model's. `progress` hears
/// several times a second and may stop the capture, which is [`Error::Cancelled`] and can be resumed.
///
/// A request that meets a broken connection, a timeout, an answer cut short, status 429 or a server's own error is sent
/// again, after what `Retry-After` asks for or a growing time. Other refusals are errors at once, with the server's
/// words. Every answer is checked against the ids that were sent.
pub fn capture_endpoint(
    tokenizer: &Tokenizer,
    corpus: &Arc<Corpus>,
    out: &Path,
    options: &EndpointOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Manifest> {
    options.check()?;
    let client = Client::new(options)?;
    let dialect = options.dialect.map_or_else(|| dialect::probe(&client, &options.model), Ok)?;
    let spec = set_spec(tokenizer, corpus, options, dialect);
    let (mut writer, done) = Writer::resume_or_create(out, spec.clone())?;
    let pieces = pieces(corpus, options.sequence_length).filter(|piece| piece.rows.end as u64 > done);
    let pieces: Arc<Vec<Piece>> = Arc::new(pieces.collect());
    let server = Server::new(client, dialect, options, tokenizer)?;
    let mut pool = Pool::start(options.concurrency, pieces.len(), server.stop(), {
        let (pieces, corpus) = (pieces.clone(), corpus.clone());
        move |index: usize| server.positions(pieces[index].prompt(&corpus), &pieces[index].place())
    })?;
    let mut waiting = pieces.iter();
    while writer.next_row() < spec.rows {
        if let Some(positions) = pool.next(TICK)? {
            let piece = waiting.next().ok_or_else(|| Error::internal("an answer to no question"))?;
            writer.push_rows(&piece.rows(corpus, &spec, &positions, writer.next_row()))?;
        }
        let (rows, bytes) = (writer.next_row(), writer.bytes_written());
        if progress(Progress { rows, total: spec.rows, bytes }).is_break() {
            return Err(Error::Cancelled);
        }
    }
    writer.finish()
}

/// How long a caller who wants to stop waits for being heard.
const TICK: Duration = Duration::from_millis(100);

fn set_spec(tokenizer: &Tokenizer, corpus: &Corpus, options: &EndpointOptions, dialect: Dialect) -> SetSpec {
    let vocabulary = tokenizer.vocab_size() as u32;
    SetSpec {
        teacher: Teacher { name: options.model.clone(), digest: UNKNOWN_DIGEST.to_string() },
        tokenizer_digest: tokenizer.digest(),
        vocab_size: vocabulary,
        real_vocab_size: vocabulary,
        record: Record::TopK { k: options.top_k, log_probs: options.log_probs },
        temperatures: vec![1.0],
        corpus_digest: corpus.digest(),
        context_length: options.sequence_length as u32,
        rows: corpus.ids().len() as u64,
        rows_per_shard: options.rows_per_shard,
        entropy: false,
        tail_mass: TailMass::Derived,
        source: Some(Source::Endpoint { dialect: dialect.name().to_string() }),
        // The server's own affair.
        precision: Precision::F32,
    }
}

/// One context: consecutive tokens of one document.
struct Piece {
    document: usize,
    rows: Range<usize>,
    document_start: usize,
    document_end: usize,
}

/// The contexts that [`crate::data::packing::Packer`] makes of a whole corpus: documents cut at every multiple of T.
fn pieces(corpus: &Corpus, length: usize) -> impl Iterator<Item = Piece> + '_ {
    (0..corpus.documents()).flat_map(move |document| {
        let Range { start: document_start, end: document_end } = corpus.range(document);
        let mut at = document_start;
        std::iter::from_fn(move || {
            let start = at;
            at = (start - start % length).saturating_add(length).min(document_end);
            (start < document_end).then_some(Piece { document, rows: start..at, document_start, document_end })
        })
    })
}

impl Piece {
    /// What is sent: the context, and the token that its last row predicts.
    fn prompt<'a>(&self, corpus: &'a Corpus) -> &'a [u32] {
        &corpus.ids()[self.rows.start..self.document_end.min(self.rows.end + 1)]
    }

    fn place(&self) -> String {
        format!("document {}, tokens {}..{} of the text", self.document + 1, self.rows.start, self.rows.end)
    }

    /// Records of the rows from corpus position `from` on. A document's last row predicts nothing: it is masked, and
    /// its record says that nothing is known.
    fn rows(&self, corpus: &Corpus, spec: &SetSpec, positions: &[Position], from: u64) -> RowBatch {
        let mut batch = RowBatch::empty(spec);
        let Record::TopK { k, .. } = spec.record else { return batch };
        let (mut ids, mut log_probs, mut tails) = (Vec::new(), Vec::new(), Vec::new());
        for row in self.rows.clone().filter(|&row| row as u64 >= from) {
            let known = positions.get(row - self.rows.start);
            let flag = |holds: bool, flag: u8| if holds { flag } else { 0 };
            batch.tokens.push(corpus.ids()[row]);
            batch.flags.push(
                flag(known.is_some(), VALID)
                    | flag(row == self.document_start, DOCUMENT_START)
                    | flag(row == self.rows.start, CONTEXT_START),
            );
            batch.nll.push(known.map_or(0.0, |known| known.nll));
            tails.push(known.map_or(1.0, |known| known.tail));
            match known {
                Some(known) => {
                    ids.extend(known.entries.iter().map(|entry| entry.0));
                    log_probs.extend(known.entries.iter().map(|entry| entry.1));
                }
                None => {
                    ids.extend(0..k);
                    log_probs.extend((0..k).map(|_| f32::MIN));
                }
            }
        }
        let log_partitions = vec![0.0; tails.len()];
        batch.records = Records::TopK { ids, log_probs, tails, log_partitions };
        batch
    }
}
