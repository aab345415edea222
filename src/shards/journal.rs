//! `journal.jsonl`: what is complete of a set that is still being captured. Its first line is the spec, each further
//! line a finished shard. It is created whole, grows by appending, and goes when the manifest is there.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::disk;
use super::manifest::{FORMAT, ShardEntry, check_entries};
use super::spec::SetSpec;
use crate::{Error, Result};

/// Name of the journal inside the folder.
pub const JOURNAL_FILE: &str = "journal.jsonl";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    format: String,
    version: u32,
    spec: SetSpec,
}

/// The open journal of one capture; the file is locked while it is open.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Begins a set in `dir`.
    pub fn create(dir: &Path, spec: &SetSpec) -> Result<Journal> {
        let path = dir.join(JOURNAL_FILE);
        let head = Head { format: FORMAT.to_string(), version: spec.record.version(), spec: spec.clone() };
        disk::write_atomic(&path, &[&line(&head)?])?;
        Journal::open(path)
    }

    /// Continues the set in `dir`, which must have the spec `spec`: the journal and the finished shards. A last line
    /// that a kill cut short is dropped.
    pub fn resume(dir: &Path, spec: &SetSpec) -> Result<(Journal, Vec<ShardEntry>)> {
        let journal = Journal::open(dir.join(JOURNAL_FILE))?;
        let path = &journal.path;
        let bytes = fs::read(path).map_err(Error::io("read", path))?;
        let (head, shards, whole) = parse(&bytes, path)?;
        let version = head.spec.record.version();
        if head.format != FORMAT || head.version != version {
            return Error::file(path)
                .field("`format`, `version`")
                .expected(format!("{FORMAT}, {version} (this program)"))
                .found(format!("{}, {}", head.format, head.version))
                .help("finish the capture with the program that began it, or write to another folder")
                .err();
        }
        head.spec.refuse_difference(spec, path)?;
        check_entries(spec, &shards, path)?;
        for shard in &shards {
            check_length(&dir.join(&shard.file), shard.bytes)?;
        }
        if whole < bytes.len() {
            journal.file.set_len(whole as u64).map_err(Error::io("shorten", path))?;
            journal.file.sync_all().map_err(Error::io("sync", path))?;
        }
        Ok((journal, shards))
    }

    /// Notes a finished shard.
    pub fn push(&mut self, shard: &ShardEntry) -> Result<()> {
        disk::append(&mut self.file, &line(shard)?, &self.path)
    }

    fn open(path: PathBuf) -> Result<Journal> {
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io("open", &path))?;
        // A file system without locks is no reason to refuse.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Error::file(&path)
                .found("another process capturing into this folder")
                .help("wait for it, or write to another folder")
                .err();
        }
        Ok(Journal { file, path })
    }
}

fn line(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value).map_err(|e| Error::internal(e.to_string()))?;
    line.push(b'\n');
    Ok(line)
}

/// Head, shards and the length of the sound part.
fn parse(bytes: &[u8], path: &Path) -> Result<(Head, Vec<ShardEntry>, usize)> {
    let bad = |e: &dyn std::fmt::Display| {
        Error::file(path)
            .expected("the journal of an unfinished capture")
            .found(e)
            .help("remove the folder and capture again")
            .error()
    };
    let mut lines = bytes.split_inclusive(|&b| b == b'\n');
    let first = lines.next().unwrap_or_default();
    let head = serde_json::from_slice(first).map_err(|e| bad(&e))?;
    let (mut shards, mut whole) = (Vec::new(), first.len());
    for line in lines {
        let last = whole + line.len() == bytes.len();
        match serde_json::from_slice(line) {
            Ok(shard) if line.ends_with(b"\n") => shards.push(shard),
            _ if last => break,
            Ok(_) => return Err(bad(&"a line without end")),
            Err(e) => return Err(bad(&e)),
        }
        whole += line.len();
    }
    Ok((head, shards, whole))
}

fn check_length(path: &Path, bytes: u64) -> Result<()> {
    let found = fs::metadata(path).map_err(Error::io("read", path))?.len();
    if found == bytes {
        return Ok(());
    }
    Error::file(path)
        .expected(format!("{bytes} bytes, as the journal says"))
        .found(format!("{found} bytes"))
        .help("remove the folder and capture again")
        .err()
}
