//! DistillKit's files into a shard set.

use super::cells::{fault, floats, integers, raw, sniff};
use super::record::{TopK, Values};
use super::source::{Source, Tokens};
use super::{CONFIG_FILE, Progress, TOKENS_FILE, at_position};
use crate::data::tokens::CorpusDigest;
use crate::device::Precision;
use crate::distill::codec_settings::{self, Codec};
use crate::formats::tables::List;
use crate::formats::{Tokenizer, write_atomically};
use crate::shards::foreign::{Fault, Form, check_position};
use crate::shards::spec::{DEFAULT_ROWS_PER_SHARD, UNKNOWN_DIGEST};
use crate::shards::{
    CONTEXT_START, DOCUMENT_START, LogProbType, Manifest, Record, Records, RowBatch, SetSpec, TailMass, Teacher, VALID,
    Writer,
};
use crate::{Error, Result};
use rayon::prelude::*;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// What the files do not say themselves.
#[derive(Default)]
pub struct ImportOptions {
    /// The codec's settings; without, those that lie beside the data under [`CONFIG_FILE`]. The raw form has none.
    pub config: Option<PathBuf>,
    /// A name for the teacher; without, the data's.
    pub teacher: Option<String>,
    /// T, the recipe's `sequence_length`; without, the longest row's.
    pub sequence_length: Option<usize>,
    /// What the raw form's values are; without, what they look like.
    pub values: Option<Values>,
}

/// What came of it.
#[derive(Debug)]
pub struct Imported {
    /// The shard set.
    pub manifest: Manifest,
    /// The tokens, for the recipe's `dataset.train`.
    pub tokens: PathBuf,
    /// How the data was stored.
    pub form: Form,
    /// What its values are.
    pub values: Values,
    /// How that was decided.
    pub why: String,
    /// Documents that the trainer's packing cuts, so that the student sees less context there than the teacher did.
    pub cut_documents: u64,
    /// Rows converted by this process whose record holds the next token, and all that count.
    pub hits: (u64, u64),
    /// Entries that named ids of no token.
    pub padding: u64,
}

/// Reads `input`, a file or folder as [`files`](crate::formats::tables::files) takes it, and writes the shard set `out` with [`TOKENS_FILE`] in it, or
/// goes on with one that a stopped process left there. `progress` may stop it, which is [`Error::Cancelled`].
///
/// Errors name the file, the row and the position: ids that the vocabulary does not have or that stand twice, numbers
/// that are not finite or no log-probabilities, byte strings and lists of another length than the settings say.
pub fn import(
    input: &Path,
    out: &Path,
    tokenizer: &Tokenizer,
    options: &ImportOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Imported> {
    let source = Source::open(input)?;
    let decoder = Decoder::open(&source, input, tokenizer, options)?;
    let survey = Survey::of(&source, options.sequence_length, decoder.tokens)?;
    let name = input.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let spec = SetSpec {
        teacher: Teacher { name: options.teacher.clone().unwrap_or(name), digest: UNKNOWN_DIGEST.into() },
        tokenizer_digest: tokenizer.digest(),
        vocab_size: decoder.vocabulary.max(tokenizer.vocab_size() as u32),
        real_vocab_size: tokenizer.vocab_size() as u32,
        record: Record::TopK { k: decoder.k as u32, log_probs: LogProbType::DEFAULT },
        temperatures: vec![1.0],
        corpus_digest: survey.digest,
        context_length: survey.context as u32,
        rows: survey.tokens,
        rows_per_shard: DEFAULT_ROWS_PER_SHARD,
        entropy: false,
        source: None,
        precision: Precision::F32,
        tail_mass: match decoder.values {
            Values::LogProbs => TailMass::Derived,
            Values::Logits => TailMass::Unknown,
        },
    };
    let (mut writer, done) = Writer::resume_or_create(out, spec)?;
    let tokens = out.join(TOKENS_FILE);
    write_tokens(&source, &tokens)?;
    let mut tally = Tally { skip: done, ..Tally::default() };
    if done < survey.tokens {
        source.records(&mut |row, cells| {
            decoder.row(&row, &cells, &mut writer, &mut tally)?;
            match progress(Progress { rows: writer.next_row(), total: survey.tokens }) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(Error::Cancelled),
            }
        })?;
    }
    Ok(Imported {
        manifest: writer.finish()?,
        tokens,
        form: source.form,
        values: decoder.values,
        why: decoder.why,
        cut_documents: survey.cut,
        hits: (tally.hits, tally.valid),
        padding: tally.padding,
    })
}

/// What must be known before the first record: a look at the tokens alone.
struct Survey {
    tokens: u64,
    digest: String,
    context: usize,
    cut: u64,
}

impl Survey {
    fn of(source: &Source, context: Option<usize>, vocabulary: u32) -> Result<Survey> {
        let (mut digest, mut tokens, mut longest) = (CorpusDigest::default(), 0u64, 0);
        source.tokens(&mut |row| {
            longest = longest.max(row.ids.len());
            if let Some(at) = row.ids.iter().position(|id| *id >= vocabulary) {
                let (expected, found) = (format!("ids below {vocabulary}, the tokenizer's"), row.ids[at].to_string());
                return Err(at_position(Fault { field: "input_ids", expected, found }, &row.file, row.row, at));
            }
            for range in &row.documents {
                tokens += range.len() as u64;
                digest.push(&row.ids[range.clone()], &row.flags(range.clone()));
            }
            Ok(())
        })?;
        if tokens == 0 {
            return Error::at("the data set").expected("at least one token").found("none").err();
        }
        let context = context.unwrap_or(longest);
        if context == 0 || context > 1 << 24 {
            let complaint = Error::at("`--sequence-length`").expected("1 to 16777216 tokens");
            return complaint.found(context).err();
        }
        let (mut at, mut cut) = (0u64, 0);
        source.tokens(&mut |row| {
            for range in &row.documents {
                let end = at + range.len() as u64;
                cut += u64::from(at / context as u64 != (end - 1) / context as u64);
                at = end;
            }
            Ok(())
        })?;
        Ok(Survey { tokens, digest: digest.finish(), context, cut })
    }
}

impl Tokens {
    fn flags(&self, range: std::ops::Range<usize>) -> Vec<bool> {
        match &self.learned {
            None => vec![true; range.len()],
            Some(learned) => learned[range].to_vec(),
        }
    }
}

/// A document a line, as [`crate::data::rows`] reads it.
fn write_tokens(source: &Source, path: &Path) -> Result<()> {
    write_atomically(path, |file| {
        source.tokens(&mut |row| {
            for range in &row.documents {
                let ids = &row.ids[range.clone()];
                let line = match row.learned {
                    None => serde_json::json!({ "input_ids": ids }),
                    Some(_) => serde_json::json!({ "input_ids": ids, "loss_mask": row.flags(range.clone()) }),
                };
                writeln!(file, "{line}").map_err(Error::io("write", path))?;
            }
            Ok(())
        })
    })
}

#[derive(Default)]
struct Tally {
    /// Rows of the set that are on disk already.
    skip: u64,
    hits: u64,
    valid: u64,
    padding: u64,
}

/// Decodes the records of one data set.
struct Decoder {
    /// None for the raw form.
    codec: Option<Codec>,
    values: Values,
    why: String,
    /// Entries of a position.
    k: usize,
    /// Ids are below this.
    vocabulary: u32,
    /// Ids that the tokenizer has.
    tokens: u32,
}

impl Decoder {
    fn open(source: &Source, input: &Path, tokenizer: &Tokenizer, options: &ImportOptions) -> Result<Decoder> {
        let tokens = tokenizer.vocab_size() as u32;
        if options.values.is_some() && source.form != Form::Raw {
            let complaint = Error::at("`--values`").expected("no such choice, which only the raw form leaves");
            return complaint.found(format!("the {} form", source.form)).help("leave it out").err();
        }
        if source.form == Form::Raw {
            let codec = None;
            let (values, why, k) = sniff(source, options.values)?;
            return Ok(Decoder { codec, values, why, k, vocabulary: tokens, tokens });
        }
        let path = options.config.clone().unwrap_or_else(|| beside(input));
        if !path.is_file() {
            return Error::file(input)
                .expected(format!("the settings that its {} form was written with", source.form))
                .found(format!("no {}", path.display()))
                .help(format!("give `--config`: a {CONFIG_FILE}, or the DistillKit recipe that holds them"))
                .err();
        }
        let codec = codec_settings::load(&path)?;
        if codec.form() != source.form {
            let complaint = Error::file(&path).expected(format!("settings of the {} form", source.form));
            return complaint.found(format!("those of the {} form", codec.form())).help("give the data's own").err();
        }
        let (values, why, k, vocabulary) = match &codec {
            Codec::New(codec) => {
                let why = "the new form holds log-probabilities";
                (Values::LogProbs, why, codec.config().k, codec.config().d)
            }
            Codec::Legacy(codec) => {
                let why = "the legacy form holds logits less their mean";
                (Values::Logits, why, codec.config().k, codec.config().vocab_size)
            }
        };
        let (codec, why, k) = (Some(codec), why.to_string(), k as usize);
        Ok(Decoder { codec, values, why, k, vocabulary, tokens })
    }

    /// Decodes a row of the files and appends its rows of the set.
    fn row(&self, row: &Tokens, cells: &[List], writer: &mut Writer, tally: &mut Tally) -> Result<()> {
        let positions = self.positions(row, cells)?;
        // Each token of a document: its position, flags, and the next token where there is a record to predict it.
        let mut wanted = Vec::new();
        for range in &row.documents {
            for at in range.clone() {
                let next = (at + 1 < range.end && at < positions).then(|| row.ids[at + 1]);
                let start = if at == range.start { DOCUMENT_START | CONTEXT_START } else { 0 };
                wanted.push((at, start | if next.is_some() { VALID } else { 0 }, next));
            }
        }
        let skip = tally.skip.min(wanted.len() as u64);
        tally.skip -= skip;
        wanted.drain(..skip as usize);
        let made = |&(at, _, next): &(usize, u8, Option<u32>)| {
            if at >= positions {
                return Ok(TopK::nothing(self.k));
            }
            self.record(cells, at, next).map_err(|fault| at_position(fault, &row.file, row.row, at))
        };
        let records: Vec<TopK> = wanted.par_iter().map(made).collect::<Result<_>>()?;
        let mut batch = RowBatch::empty(writer.spec());
        batch.tokens = wanted.iter().map(|(at, ..)| row.ids[*at]).collect();
        batch.flags = wanted.iter().map(|(_, flags, _)| *flags).collect();
        batch.nll = records.iter().map(|record| record.nll).collect();
        batch.records = Records::TopK {
            ids: records.iter().flat_map(|record| record.ids.iter().copied()).collect(),
            log_probs: records.iter().flat_map(|record| record.log_probs.iter().copied()).collect(),
            tails: records.iter().map(|record| record.tail).collect(),
            log_partitions: vec![0.0; records.len()],
        };
        writer.push_rows(&batch)?;
        for ((.., next), record) in wanted.iter().zip(&records) {
            tally.valid += u64::from(next.is_some());
            tally.hits += u64::from(record.hit);
            tally.padding += u64::from(record.padding);
        }
        Ok(())
    }

    /// How many positions a row has records for: as many as tokens, or one less.
    fn positions(&self, row: &Tokens, cells: &[List]) -> Result<usize> {
        let fields = self.form().columns();
        let counts: Vec<usize> = cells.iter().map(|cell| cell.ends.len()).collect();
        let n = row.ids.len();
        for (&count, field) in counts.iter().zip(fields) {
            let expected = match count {
                _ if ![n, n.max(1) - 1].contains(&count) => format!("{n} positions, one for each token, or one less"),
                _ if count != counts[0] => format!("{} positions, as many as `{}` has", counts[0], fields[0]),
                _ => continue,
            };
            let field = format!("row {}: `{field}`", row.row);
            return Error::file(&row.file).field(field).expected(expected).found(count).err();
        }
        Ok(counts.first().copied().unwrap_or(0))
    }

    fn form(&self) -> Form {
        self.codec.as_ref().map_or(Form::Raw, Codec::form)
    }

    fn record(&self, cells: &[List], at: usize, next: Option<u32>) -> Result<TopK, Fault> {
        let position = match &self.codec {
            None => raw(cells, at)?,
            Some(Codec::New(codec)) => {
                let bytes = |column: usize| {
                    let numbers = integers(cells, column, at, self.form())?;
                    let byte = |x: i64| u8::try_from(x).map_err(|_| fault(self.form(), column, "bytes", x));
                    numbers.into_iter().map(byte).collect::<Result<Vec<u8>, Fault>>()
                };
                codec.decode(&bytes(1)?, &bytes(0)?)?
            }
            Some(Codec::Legacy(codec)) => {
                let words: Vec<u64> = integers(cells, 0, at, Form::Legacy)?.into_iter().map(|x| x as u64).collect();
                codec.decode(&words, floats(cells, 1, at, Form::Legacy)?, floats(cells, 2, at, Form::Legacy)?)?
            }
        };
        let fields = self.form().columns();
        if position.ids.len() != self.k {
            return Err(fault(
                self.form(),
                0,
                &format!("{} entries, as the first position has", self.k),
                position.ids.len(),
            ));
        }
        check_position(&position, self.vocabulary, (fields[0], fields[1]))?;
        TopK::new(&position, self.values, self.tokens, next).map_err(|fault| Fault { field: fields[1], ..fault })
    }
}

/// [`CONFIG_FILE`] in the folder `input`, or in the folder of the file `input`.
fn beside(input: &Path) -> PathBuf {
    if input.is_dir() { input.join(CONFIG_FILE) } else { input.with_file_name(CONFIG_FILE) }
}
