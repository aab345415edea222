//! Reading a shard set from a folder: any range of rows, as words for a device or as numbers.
//!
//! A shard is verified whole (length, SHA-256, header, every number of every row, sums) before its first row is handed
//! out, so that words uploaded as they are hold no id outside the vocabulary. Reading then seeks to the row.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::journal::JOURNAL_FILE;
use super::layout::RowLayout;
use super::manifest::{HEADER_BYTES, MANIFEST_FILE, Manifest, ShardEntry, Span, Sums, shard_header, words_from_bytes};
use super::rows::{self, RowBatch};
use super::spec::SetSpec;
use crate::digest::{hex, sha256};
use crate::platform::fs;
use crate::{Error, Result};

/// Rows decoded at a time while verifying, to bound memory.
const CHUNK_ROWS: usize = 1024;

/// A finished shard set in a folder.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    manifest: Manifest,
    verified: Vec<OnceLock<()>>,
}

impl Reader {
    /// Opens the set in `dir` and checks its manifest.
    pub fn open(dir: &Path) -> Result<Reader> {
        let path = dir.join(MANIFEST_FILE);
        if !fs::is_file(&path) && fs::is_file(&dir.join(JOURNAL_FILE)) {
            return Error::file(dir)
                .expected("a finished shard set")
                .found("an unfinished capture")
                .help("run the same capture again: it resumes")
                .err();
        }
        if !fs::is_file(&path) {
            let found = if fs::exists(dir) { "no manifest.json in it" } else { "nothing of this name" };
            let help = "record one with `potstill capture`, or check the path";
            return Error::file(dir).expected("a shard set").found(found).help(help).err();
        }
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let manifest = Manifest::parse(&bytes, &path)?;
        let verified = manifest.shards.iter().map(|_| OnceLock::new()).collect();
        Ok(Reader { dir: dir.to_path_buf(), manifest, verified })
    }

    /// The set's description.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What the set holds.
    pub fn spec(&self) -> &SetSpec {
        &self.manifest.spec
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where each number of a row lies.
    pub fn layout(&self) -> &RowLayout {
        &self.manifest.layout
    }

    /// Rows of the set.
    pub fn rows(&self) -> u64 {
        self.manifest.spec.rows
    }

    /// `rows` rows from `first_row` as words, `[rows, stride_words]`, as a device takes them.
    pub fn read_words(&self, first_row: u64, rows: u64) -> Result<Vec<u32>> {
        let mut words = Vec::new();
        for span in self.manifest.locate(first_row, rows)? {
            self.verify_shard(span.shard)?;
            words.extend(self.read_span(&span)?);
        }
        Ok(words)
    }

    /// The files that `rows` rows from `first_row` lie in.
    pub fn files(&self, first_row: u64, rows: u64) -> Result<Vec<PathBuf>> {
        let spans = self.manifest.locate(first_row, rows)?;
        Ok(spans.iter().map(|span| self.dir.join(&self.manifest.shards[span.shard].file)).collect())
    }

    /// `rows` rows from `first_row` as numbers.
    pub fn read_rows(&self, first_row: u64, rows: u64) -> Result<RowBatch> {
        rows::decode(self.spec(), &self.read_words(first_row, rows)?, first_row, &self.dir)
    }

    /// Verifies every shard that has not been yet.
    pub fn verify(&self) -> Result<()> {
        (0..self.verified.len()).try_for_each(|shard| self.verify_shard(shard))
    }

    /// Refuses `tokens` that are not those of the rows from `first_row`, naming the first that differs.
    pub fn check_tokens(&self, first_row: u64, tokens: &[u32]) -> Result<()> {
        let words = self.read_words(first_row, tokens.len() as u64)?;
        let stored = words.chunks_exact(self.layout().stride_words as usize).map(rows::token);
        match stored.zip(tokens).enumerate().find(|(_, (stored, token))| stored != *token) {
            None => Ok(()),
            Some((r, (stored, token))) => Error::file(&self.dir)
                .field(format!("token of row {}", first_row.saturating_add(r as u64)))
                .expected(format!("{token} (the training data's)"))
                .found(format!("{stored} (the shards')"))
                .help("train on the text that was captured, tokenised and packed the same way")
                .err(),
        }
    }

    fn verify_shard(&self, index: usize) -> Result<()> {
        if self.verified[index].get().is_none() {
            let entry = &self.manifest.shards[index];
            let path = self.dir.join(&entry.file);
            let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
            verify_shard(&self.manifest.spec, entry, index as u64, &bytes, &path)?;
            self.verified[index].get_or_init(|| ());
        }
        Ok(())
    }

    fn read_span(&self, span: &Span) -> Result<Vec<u32>> {
        let path = self.dir.join(&self.manifest.shards[span.shard].file);
        let mut file = fs::open(&path).map_err(Error::io("open", &path))?;
        file.seek(SeekFrom::Start(span.offset)).map_err(Error::io("seek", &path))?;
        let mut bytes = vec![0; (span.rows * self.layout().stride_bytes()) as usize];
        file.read_exact(&mut bytes).map_err(Error::io("read", &path))?;
        Ok(words_from_bytes(&bytes))
    }
}

/// Checks the bytes of shard number `index` against its manifest entry: length, SHA-256, header, every number of every
/// row, and the sums. `place` heads the message.
pub fn verify_shard(spec: &SetSpec, entry: &ShardEntry, index: u64, bytes: &[u8], place: &Path) -> Result<()> {
    let refuse = |field: &str, expected: &str, found: &str| {
        Error::file(place)
            .field(field)
            .expected(format!("{expected} (manifest)"))
            .found(found)
            .help("copy the file again, or capture again")
            .err()
    };
    if bytes.len() as u64 != entry.bytes {
        return refuse("length", &entry.bytes.to_string(), &bytes.len().to_string());
    }
    let digest = sha256(bytes);
    if digest != entry.sha256 {
        return refuse("SHA-256", &entry.sha256, &digest);
    }
    let header = shard_header(spec, index);
    let Some(body) = bytes.strip_prefix(&header) else {
        return refuse("header", &hex(&header), &hex(&bytes[..bytes.len().min(HEADER_BYTES as usize)]));
    };
    let layout = spec.layout();
    let mut sums = Sums { entropy: entry.sums.entropy, ..Sums::default() };
    let mut row = entry.first_row;
    for chunk in body.chunks(layout.stride_bytes() as usize * CHUNK_ROWS) {
        let words = words_from_bytes(chunk);
        row += rows::decode(spec, &words, row, place)?.len() as u64;
        words.chunks_exact(layout.stride_words as usize).for_each(|row| sums.add(&layout, row, None));
    }
    if sums != entry.sums {
        return refuse("sums", &format!("{:?}", entry.sums), &format!("{sums:?}"));
    }
    Ok(())
}
