//! A shard set into DistillKit's new form.

use super::{CONFIG_FILE, Progress};
use crate::distill::codec_settings::{self, Codec};
use crate::formats::parquet::{Cell, Kind, TableWriter};
use crate::formats::write_atomically;
use crate::shards::foreign::{Compressor, CompressorConfig, FloatType, Term};
use crate::shards::{CONTEXT_START, Reader, Record, Records, RowBatch, TailMass, VALID};
use crate::{Error, Result};
use rayon::prelude::*;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// How to store.
#[derive(Default)]
pub struct ExportOptions {
    /// Settings to take; without, defaults.
    pub config: Option<PathBuf>,
    /// Entries stored as they are; the default is 16.
    pub exact_k: Option<u32>,
    /// The polynomial's terms; the default is 1, t, t^2, t^3, t^4 and the square root of t.
    pub terms: Option<Vec<Term>>,
}

/// What came of it.
#[derive(Debug)]
pub struct Exported {
    /// The Parquet file.
    pub data: PathBuf,
    /// The settings it was written with.
    pub config_file: PathBuf,
    /// The same.
    pub config: CompressorConfig,
    /// Rows of the table.
    pub rows: u64,
    /// Positions with a record.
    pub positions: u64,
}

/// Rows read at a time.
const CHUNK: u64 = 1024;
/// What is less probable than this is stored as this: e^-100 is nothing, and a polynomial through -1e30 would be
/// nothing else.
const LEAST: f32 = -100.0;

/// Writes the top-k shard set `set` as `out`, a `.parquet` file or a new folder for one, with [`CONFIG_FILE`] beside
/// it.
///
/// A table row is one context: documents that the teacher saw in pieces become as many rows, each as long as its
/// piece. Refuses sampled sets, sets without true probabilities, and what is there already.
pub fn export(
    set: &Path,
    out: &Path,
    options: &ExportOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Exported> {
    let reader = Reader::open(set)?;
    let codec = codec(&reader, options)?;
    let (data, config_file) = places(out)?;
    let settings = serde_json::to_value(codec.config()).map_err(|e| Error::internal(e.to_string()))?;
    let settings = crate::yaml::to_yaml(&settings)?;
    if config_file.exists()
        && std::fs::read(&config_file).map_err(Error::io("read", &config_file))? != settings.as_bytes()
    {
        let complaint = Error::file(&config_file).expected("no such file, or these settings").found("others");
        return complaint.help("write to another folder: data beside it needs the settings that are there").err();
    }
    let mut counts = (0, 0);
    write_atomically(&data, |file| {
        let columns =
            [("input_ids", Kind::Ids), ("compressed_logprobs", Kind::Bytes), ("bytepacked_indices", Kind::Bytes)];
        let mut table = TableWriter::new(file, &data, &columns)?;
        counts = write_rows(&reader, &codec, &mut table, progress)?;
        table.finish()
    })?;
    write_atomically(&config_file, |file| {
        file.write_all(settings.as_bytes()).map_err(Error::io("write", &config_file))
    })?;
    let config = codec.config().clone();
    Ok(Exported { data, config_file, config, rows: counts.0, positions: counts.1 })
}

/// The settings for this set.
fn codec(reader: &Reader, options: &ExportOptions) -> Result<Compressor> {
    let spec = reader.spec();
    let refuse = |expected: &str, found: &str| Error::file(reader.dir()).expected(expected).found(found).err();
    let Record::TopK { k: stored, .. } = spec.record else {
        return refuse("top-k records, which DistillKit stores", "random draws");
    };
    if spec.tail_mass == TailMass::Unknown {
        return refuse("probabilities, which DistillKit's new form stores", "logits scaled to sum to 1");
    }
    let mut config = match &options.config {
        None => defaults(spec.vocab_size, stored, options.exact_k),
        Some(path) => match codec_settings::load(path)? {
            Codec::New(codec) => codec.config().clone(),
            Codec::Legacy(_) => {
                return Error::file(path).expected("settings of the new form").found("those of the legacy form").err();
            }
        },
    };
    config.exact_k = options.exact_k.unwrap_or(config.exact_k);
    if let Some(terms) = &options.terms {
        config.polynomial_terms = terms.clone();
    }
    if config.k > stored || config.d < spec.real_vocab_size {
        return Error::at("the compression settings")
            .field("`k`, `d`")
            .expected(format!("at most {stored} and at least {}, what the set has", spec.real_vocab_size))
            .found(format!("{}, {}", config.k, config.d))
            .err();
    }
    Compressor::new(config).map_err(|fault| {
        let field = format!("`{}`", fault.field);
        Error::at("the compression settings").field(field).expected(fault.expected).found(fault.found).error()
    })
}

/// The README's recommendation with its numerical trouble removed (t from 0 to 1), and half precision for the head,
/// which in the range of log-probabilities has eight times bfloat16's resolution in the same bytes.
fn defaults(d: u32, k: u32, exact_k: Option<u32>) -> CompressorConfig {
    let mut config = CompressorConfig {
        d,
        k,
        exact_k: exact_k.unwrap_or(16).min(k),
        exact_dtype: FloatType::Float16,
        polynomial_terms: (0..5).map(Term::Power).chain([Term::Sqrt]).collect(),
        term_dtype: FloatType::Float32,
        residual_bins: Vec::new(),
        delta_encoding: false,
        error_diffusion: false,
        normalize_t: true,
    };
    // Where the numbers themselves are not more than the coefficients would be.
    let coefficients = config.polynomial_terms.len() * config.term_dtype.bytes();
    if exact_k.is_none() && (k - config.exact_k) as usize * config.exact_dtype.bytes() <= coefficients {
        config.exact_k = k;
    }
    if config.exact_k == k {
        config.polynomial_terms.clear();
    }
    config
}

/// The data file, which must be new, and its settings.
fn places(out: &Path) -> Result<(PathBuf, PathBuf)> {
    let named = out.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"));
    let data = if named { out.to_path_buf() } else { out.join("data_0.parquet") };
    if data.exists() {
        let complaint = Error::file(&data).expected("a new file").found("one that is there");
        return complaint.help("name another place, or remove it").err();
    }
    if let Some(folder) = data.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    let settings = data.with_file_name(CONFIG_FILE);
    Ok((data, settings))
}

/// Tokens and records of the context that is being gathered.
#[derive(Default)]
struct Context {
    first_row: u64,
    tokens: Vec<u32>,
    valid: Vec<bool>,
    ids: Vec<u32>,
    log_probs: Vec<f32>,
}

fn write_rows<W: Write + Send>(
    reader: &Reader,
    codec: &Compressor,
    table: &mut TableWriter<W>,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<(u64, u64)> {
    let (total, mut at, mut counts) = (reader.rows(), 0, (0, 0));
    let mut context = Context::default();
    while at < total {
        let batch = reader.read_rows(at, CHUNK.min(total - at))?;
        for row in 0..batch.len() {
            if batch.flags[row] & CONTEXT_START != 0 && !context.tokens.is_empty() {
                context.write(reader, codec, table, &mut counts)?;
            }
            if context.tokens.is_empty() {
                context.first_row = at + row as u64;
            }
            context.take(&batch, row);
        }
        at += batch.len() as u64;
        if progress(Progress { rows: at, total }).is_break() {
            return Err(Error::Cancelled);
        }
    }
    context.write(reader, codec, table, &mut counts)?;
    Ok(counts)
}

impl Context {
    fn take(&mut self, batch: &RowBatch, row: usize) {
        self.tokens.push(batch.tokens[row]);
        self.valid.push(batch.flags[row] & VALID != 0);
        if let Records::TopK { ids, log_probs, .. } = &batch.records {
            let k = ids.len() / batch.len();
            self.ids.extend(&ids[row * k..(row + 1) * k]);
            self.log_probs.extend(log_probs[row * k..(row + 1) * k].iter().map(|l| l.max(LEAST)));
        }
    }

    /// Appends the context as a row and empties it. A last row that predicts nothing of the set has no record, as in
    /// DistillKit's own capture.
    fn write<W: Write + Send>(
        &mut self,
        reader: &Reader,
        codec: &Compressor,
        table: &mut TableWriter<W>,
        counts: &mut (u64, u64),
    ) -> Result<()> {
        let place = |row: usize| Error::file(reader.dir()).field(format!("row {}", self.first_row + row as u64));
        let n = self.tokens.len();
        let positions = if self.valid[n - 1] { n } else { n - 1 };
        if let Some(row) = self.valid[..positions].iter().position(|valid| !valid) {
            let complaint = place(row).expected("a record for every token but a context's last").found("none");
            return complaint.help("DistillKit has no way to leave a position out").err();
        }
        let stored = self.ids.len() / n;
        let encode = |row: usize| {
            let entries = row * stored..row * stored + codec.config().k as usize;
            codec.encode(&self.ids[entries.clone()], &self.log_probs[entries]).map_err(|fault| {
                let complaint = place(row).expected(format!("{} (`{}`)", fault.expected, fault.field));
                complaint.found(fault.found).help("choose other settings").error()
            })
        };
        let encoded: Vec<(Vec<u8>, Vec<u8>)> = (0..positions).into_par_iter().map(encode).collect::<Result<_>>()?;
        let (values, ids): (Vec<Vec<u8>>, Vec<Vec<u8>>) = encoded.into_iter().unzip();
        table.push(&[Cell::Ids(&self.tokens), Cell::Bytes(&values), Cell::Bytes(&ids)])?;
        *counts = (counts.0 + 1, counts.1 + positions as u64);
        *self = Context::default();
        Ok(())
    }
}
