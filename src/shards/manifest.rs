//! `manifest.json`: what a finished shard set holds, and the header of its shard files. Bytes only, no file access, so
//! that a page can read a set over HTTP ranges with it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::layout::{RowLayout, ValueType};
use super::rows;
use super::spec::{Record, SetSpec};
use crate::digest::{hex, sha256};
use crate::{Error, Result};

/// Name of the manifest inside the folder.
pub const MANIFEST_FILE: &str = "manifest.json";
/// `format` of the manifest.
pub const FORMAT: &str = "potstill-shards";
/// Newest `version` of manifests and shard headers. A set has the least that can say what it holds
/// ([`Record::version`]).
pub const VERSION: u32 = 2;
/// First bytes of a shard file.
pub const MAGIC: [u8; 8] = *b"potshard";
/// Bytes before the first row of a shard file.
pub const HEADER_BYTES: u64 = 64;

const SEAL: &str = "  \"manifest_sha256\": \"";

/// The description of a finished set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// [`Record::version`].
    pub version: u32,
    /// Hex of [`SetSpec::set_id`]; every shard's header has the same bytes.
    pub set_id: String,
    /// Row t is the distribution for token t + `shift`: always 1.
    pub shift: u32,
    /// What the set holds.
    pub spec: SetSpec,
    /// Where each number of a row lies: follows from the spec.
    pub layout: RowLayout,
    /// Counts and means over the set.
    pub statistics: Statistics,
    /// The files, in row order.
    pub shards: Vec<ShardEntry>,
}

/// Counts and means over a set; means are over valid rows, `None` where unknown or without such rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    /// Rows.
    pub rows: u64,
    /// Rows that count in the loss.
    pub valid_rows: u64,
    /// Documents.
    pub documents: u64,
    /// Teacher's mean negative log-likelihood of the true next token, nats. A shift by one moves it by nats.
    pub mean_nll: Option<f64>,
    /// Mean entropy at T = 1, nats.
    pub mean_entropy: Option<f64>,
    /// Mean mass outside the k ids at T = 1 (top-k).
    pub mean_tail_mass: Option<f64>,
    /// Mean number of distinct ids (sampled).
    pub mean_unique: Option<f64>,
}

/// One file of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// File name inside the folder.
    pub file: String,
    /// Row of the set that the file begins with.
    pub first_row: u64,
    /// Its rows.
    pub rows: u32,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of the whole file, lower-case hex.
    pub sha256: String,
    /// Sums over its rows.
    pub sums: Sums,
}

/// Sums over a shard's rows. Sums of real numbers are integers in units of 1e-9, each row rounded to the nearest, so
/// that they are exact in any order and in any language.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sums {
    /// Rows that count in the loss.
    pub valid_rows: u64,
    /// Rows that begin a document.
    pub documents: u64,
    /// Negative log-likelihood of valid rows, 1e-9 nats.
    pub nll: u64,
    /// Entropy of valid rows, 1e-9 nats; 0 when the spec has none.
    pub entropy: u64,
    /// Tail mass at T = 1 of valid top-k rows, 1e-9.
    pub tail_mass: u64,
    /// Used slots of valid sampled rows.
    pub unique: u64,
}

/// `x`, not negative, in units of 1e-9; far too great numbers saturate.
fn nano(x: f32) -> u64 {
    (f64::from(x) * 1e9).round() as u64
}

impl Sums {
    /// Adds one row of words; `entropy` where it is known.
    pub fn add(&mut self, layout: &RowLayout, row: &[u32], entropy: Option<f32>) {
        let flags = rows::flags(row);
        self.documents += u64::from(flags & rows::DOCUMENT_START != 0);
        if flags & rows::VALID == 0 {
            return;
        }
        self.valid_rows += 1;
        self.nll = self.nll.saturating_add(nano(rows::nll(row)));
        self.entropy = self.entropy.saturating_add(nano(entropy.unwrap_or(0.0)));
        if layout.temperatures > 0 {
            self.tail_mass = self.tail_mass.saturating_add(nano(f32::from_bits(row[layout.tail_at(0) as usize])));
        } else if layout.values == ValueType::Count {
            self.unique += rows::entries(layout, row).filter(|e| e.1 > 0).count() as u64;
        }
    }
}

/// Consecutive bytes of one file that hold consecutive rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Index into [`Manifest::shards`].
    pub shard: usize,
    /// Row of the set that it begins with.
    pub first_row: u64,
    /// Byte of the file.
    pub offset: u64,
    /// Rows.
    pub rows: u64,
}

impl Manifest {
    /// The manifest of a set whose files are all there.
    pub(crate) fn new(spec: SetSpec, shards: Vec<ShardEntry>) -> Manifest {
        Manifest {
            format: FORMAT.to_string(),
            version: spec.record.version(),
            set_id: hex(&spec.set_id()),
            shift: 1,
            layout: spec.layout(),
            statistics: Statistics::new(&spec, &shards),
            spec,
            shards,
        }
    }

    /// The file's bytes: indented JSON whose last member is the SHA-256 of all bytes before that member's line.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let json = serde_json::to_string_pretty(self).map_err(|e| Error::internal(e.to_string()))?;
        let body = format!("{},\n", json.trim_end_matches("\n}"));
        let digest = sha256(&body);
        Ok(format!("{body}{SEAL}{digest}\"\n}}\n").into_bytes())
    }

    /// SHA-256 that stands for the whole set, through its shards' own.
    pub fn digest(&self) -> Result<String> {
        Ok(sha256(self.to_bytes()?))
    }

    /// Reads and checks a manifest; `place` (a path or an address) heads every message.
    pub fn parse(bytes: &[u8], place: &Path) -> Result<Manifest> {
        let bad = |e: serde_json::Error| Error::file(place).expected("a shard set's manifest").found(e).error();
        let text = unseal(bytes, place)?;
        let manifest: Manifest = serde_json::from_str(&text).map_err(bad)?;
        manifest.spec.validate(place)?;
        check_entries(&manifest.spec, &manifest.shards, place)?;
        let rows: u64 = manifest.shards.iter().map(|s| u64::from(s.rows)).sum();
        let checks = [
            ("version", manifest.version == manifest.spec.record.version()),
            ("set_id", manifest.set_id == hex(&manifest.spec.set_id())),
            ("shift", manifest.shift == 1),
            ("layout", manifest.layout == manifest.spec.layout()),
            ("shards", rows == manifest.spec.rows),
            ("statistics", manifest.statistics.agrees(&Statistics::new(&manifest.spec, &manifest.shards))),
        ];
        match checks.iter().find(|c| !c.1) {
            None => Ok(manifest),
            Some((field, _)) => {
                Error::file(place).field(format!("`{field}`")).found("a value that contradicts the rest").err()
            }
        }
    }

    /// The byte ranges that hold rows `first_row .. first_row + rows`, in order.
    pub fn locate(&self, first_row: u64, rows: u64) -> Result<Vec<Span>> {
        let end = first_row.checked_add(rows).filter(|&end| end <= self.spec.rows);
        let Some(end) = end else {
            return Error::at("shard set")
                .field(format!("{rows} rows from row {first_row}"))
                .expected(format!("rows below {}", self.spec.rows))
                .err();
        };
        let per_shard = u64::from(self.spec.rows_per_shard);
        let (mut spans, mut row) = (Vec::new(), first_row);
        while row < end {
            let (shard, inside) = (row / per_shard, row % per_shard);
            let rows = (per_shard - inside).min(end - row);
            let offset = HEADER_BYTES + inside * self.layout.stride_bytes();
            spans.push(Span { shard: shard as usize, first_row: row, offset, rows });
            row += rows;
        }
        Ok(spans)
    }

    /// Refuses a student or corpus that these shards do not belong to. Padded vocabularies of the same tokenizer may
    /// differ; `corpus_digest` is compared where given.
    pub fn check_compatible(
        &self,
        tokenizer_digest: &str,
        real_vocab_size: u32,
        corpus_digest: Option<&str>,
    ) -> Result<()> {
        let spec = &self.spec;
        let refuse = |field: &str, shards: &str, other: &str, help: &str| {
            Error::at("shard set")
                .field(format!("`{field}`"))
                .expected(format!("{other} (the student's)"))
                .found(format!("{shards} (the shards', captured from {})", spec.teacher.name))
                .help(help)
                .err()
        };
        let capture = "capture the teacher with the student's tokenizer";
        if spec.tokenizer_digest != tokenizer_digest {
            return refuse("tokenizer_digest", &spec.tokenizer_digest, tokenizer_digest, capture);
        }
        if spec.real_vocab_size != real_vocab_size {
            let (ours, theirs) = (spec.real_vocab_size.to_string(), real_vocab_size.to_string());
            return refuse("real_vocab_size", &ours, &theirs, capture);
        }
        match corpus_digest {
            Some(theirs) if theirs != spec.corpus_digest => refuse(
                "corpus_digest",
                &spec.corpus_digest,
                theirs,
                "train on the text that was captured, or capture this text",
            ),
            _ => Ok(()),
        }
    }
}

impl Statistics {
    fn new(spec: &SetSpec, shards: &[ShardEntry]) -> Statistics {
        let total = |of: fn(&Sums) -> u64| shards.iter().map(|s| u128::from(of(&s.sums))).sum::<u128>();
        let valid = total(|s| s.valid_rows);
        let mean = |known: bool, sum: u128, unit: f64| (known && valid > 0).then(|| sum as f64 / valid as f64 * unit);
        let (top_k, sampled) = (matches!(spec.record, Record::TopK { .. }), spec.record.kind() == 1);
        Statistics {
            rows: shards.iter().map(|s| u64::from(s.rows)).sum(),
            valid_rows: valid as u64,
            documents: total(|s| s.documents) as u64,
            mean_nll: mean(true, total(|s| s.nll), 1e-9),
            mean_entropy: mean(spec.entropy, total(|s| s.entropy), 1e-9),
            mean_tail_mass: mean(top_k, total(|s| s.tail_mass), 1e-9),
            mean_unique: mean(sampled, total(|s| s.unique), 1.0),
        }
    }

    /// Equal but for the last bits that reading a decimal number may cost.
    fn agrees(&self, other: &Statistics) -> bool {
        let means = |s: &Statistics| [s.mean_nll, s.mean_entropy, s.mean_tail_mass, s.mean_unique];
        let near = |(a, b): (Option<f64>, Option<f64>)| match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-12 * b.abs(),
            (a, b) => a == b,
        };
        (self.rows, self.valid_rows, self.documents) == (other.rows, other.valid_rows, other.documents)
            && means(self).into_iter().zip(means(other)).all(near)
    }
}

/// Checks version and seal; returns the JSON without the seal.
fn unseal(bytes: &[u8], place: &Path) -> Result<String> {
    #[derive(Deserialize)]
    struct Head {
        format: String,
        version: u32,
    }
    if let Ok(head) = serde_json::from_slice::<Head>(bytes)
        && (head.format != FORMAT || !(1..=VERSION).contains(&head.version))
    {
        return Error::file(place)
            .field("`format`, `version`")
            .expected(format!("{FORMAT}, 1 to {VERSION} (this program)"))
            .found(format!("{}, {}", head.format, head.version))
            .help("use the program version that wrote the set, or capture again")
            .err();
    }
    let damaged = |found: &str| {
        Error::file(place)
            .expected("a shard set's manifest that ends with its own SHA-256")
            .found(found)
            .help("copy the folder again, or capture again")
            .error()
    };
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("bytes that are not UTF-8"))?;
    let at = text.rfind(SEAL).ok_or_else(|| damaged("no such line: the file is cut short or damaged"))?;
    let (body, seal) = text.split_at(at);
    if seal != format!("{SEAL}{}\"\n}}\n", sha256(body)) {
        return Err(damaged("another digest: the file is damaged"));
    }
    let body = body.strip_suffix(",\n").ok_or_else(|| damaged("no comma before the digest"))?;
    Ok(format!("{body}\n}}"))
}

/// Name of shard number `index`.
pub fn shard_file(index: u64) -> String {
    format!("{index:05}.shard")
}

/// Rows of shard number `index`.
pub fn shard_rows(spec: &SetSpec, index: u64) -> u32 {
    let per_shard = u64::from(spec.rows_per_shard);
    spec.rows.saturating_sub(index.saturating_mul(per_shard)).min(per_shard) as u32
}

/// Refuses entries that are not the first shards of a set with this spec, in order.
pub(crate) fn check_entries(spec: &SetSpec, shards: &[ShardEntry], place: &Path) -> Result<()> {
    for (i, shard) in shards.iter().enumerate() {
        let (index, rows) = (i as u64, shard_rows(spec, i as u64));
        let first_row = index.saturating_mul(u64::from(spec.rows_per_shard));
        let bytes = HEADER_BYTES + u64::from(rows) * spec.layout().stride_bytes();
        let expected = (shard_file(index), first_row, rows, bytes);
        let found = (shard.file.clone(), shard.first_row, shard.rows, shard.bytes);
        if rows == 0 || found != expected || shard.sums.valid_rows > u64::from(rows) {
            return Error::file(place)
                .field(format!("shard {i}: file, first row, rows, bytes"))
                .expected(format!("{expected:?}"))
                .found(format!("{found:?}"))
                .err();
        }
    }
    Ok(())
}

/// The 64 bytes before a shard's rows: magic, version, kind (0 top-k, 1 sampled, 2 hidden states), stride in words,
/// rows, first row (u64), set id.
pub fn shard_header(spec: &SetSpec, index: u64) -> [u8; HEADER_BYTES as usize] {
    let (version, kind) = (spec.record.version(), spec.record.kind());
    let first_row = index.saturating_mul(u64::from(spec.rows_per_shard));
    let mut header = [0; HEADER_BYTES as usize];
    header[0..8].copy_from_slice(&MAGIC);
    for (i, word) in [version, kind, spec.layout().stride_words, shard_rows(spec, index)].iter().enumerate() {
        header[8 + 4 * i..12 + 4 * i].copy_from_slice(&word.to_le_bytes());
    }
    header[24..32].copy_from_slice(&first_row.to_le_bytes());
    header[32..64].copy_from_slice(&spec.set_id());
    header
}

/// Little-endian bytes as words; bytes beyond the last whole word are left out.
pub fn words_from_bytes(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect()
}
