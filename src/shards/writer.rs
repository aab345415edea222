//! Writing a shard set, and continuing one after a kill.
//!
//! A shard is gathered in memory and written in one piece when it has its rows, so a kill costs at most the rows since
//! the last finished shard: they are captured again. Boundaries and sums depend on rows alone, so that the finished
//! set of an interrupted capture is bit-identical to that of an unbroken one.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::disk;
use super::journal::{JOURNAL_FILE, Journal};
use super::layout::RowLayout;
use super::manifest::{MANIFEST_FILE, Manifest, ShardEntry, Sums, shard_file, shard_header, shard_rows};
use super::rows::{self, DOCUMENT_START, RowBatch, VALID};
use super::spec::SetSpec;
use crate::digest::{hex, sha256};
use crate::{Error, Result};

/// Takes rows in order and leaves a shard set. Dropping it early is as a kill: the next
/// [`Writer::resume_or_create`] continues.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    spec: SetSpec,
    layout: RowLayout,
    /// None once the set is complete.
    journal: Option<Journal>,
    shards: Vec<ShardEntry>,
    /// Rows of the shard that is being gathered.
    buffer: Vec<u8>,
    sums: Sums,
    next_row: u64,
    previous_valid: bool,
    failed: bool,
}

impl Writer {
    /// Begins a set in `dir`, or continues the one that is there: the writer, and the row that it wants next (the
    /// number of rows when the set is complete). Refuses a set made with another spec, naming the first field that
    /// differs, and a folder that holds something else.
    pub fn resume_or_create(dir: &Path, spec: SetSpec) -> Result<(Writer, u64)> {
        spec.validate(dir)?;
        let mut writer = Writer {
            dir: dir.to_path_buf(),
            layout: spec.layout(),
            spec,
            journal: None,
            shards: Vec::new(),
            buffer: Vec::new(),
            sums: Sums::default(),
            next_row: 0,
            previous_valid: false,
            failed: false,
        };
        let manifest = dir.join(MANIFEST_FILE);
        if manifest.is_file() {
            let bytes = fs::read(&manifest).map_err(Error::io("read", &manifest))?;
            let found = Manifest::parse(&bytes, &manifest)?;
            found.spec.refuse_difference(&writer.spec, &manifest)?;
            writer.shards = found.shards;
        } else if dir.join(JOURNAL_FILE).is_file() {
            let (journal, shards) = Journal::resume(dir, &writer.spec)?;
            (writer.journal, writer.shards) = (Some(journal), shards);
            writer.remove_leftovers()?;
        } else {
            refuse_other_contents(dir)?;
            fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
            writer.journal = Some(Journal::create(dir, &writer.spec)?);
        }
        writer.next_row = writer.shards.iter().map(|s| u64::from(s.rows)).sum();
        writer.previous_valid = writer.last_row_was_valid()?;
        let next_row = writer.next_row;
        Ok((writer, next_row))
    }

    /// The set's spec.
    pub fn spec(&self) -> &SetSpec {
        &self.spec
    }

    /// The row that the next batch has to begin with.
    pub fn next_row(&self) -> u64 {
        self.next_row
    }

    /// Bytes of the finished shard files, for progress lines.
    pub fn bytes_written(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes).sum()
    }

    /// Appends a batch of any size. A batch that is refused leaves no trace; after a failed file operation the writer
    /// takes nothing more, and resuming continues from the last finished shard.
    pub fn push_rows(&mut self, batch: &RowBatch) -> Result<()> {
        if self.failed {
            return Error::at(self.dir.display())
                .found("an earlier file error")
                .help("run the same capture again: it resumes")
                .err();
        }
        let left = self.spec.rows - self.next_row;
        if batch.len() as u64 > left {
            return Error::at(self.dir.display())
                .field("rows")
                .expected(format!("{left} more, {} in all", self.spec.rows))
                .found(format!("a batch of {}", batch.len()))
                .err();
        }
        let words = rows::encode(&self.spec, batch, self.next_row, &self.dir)?;
        self.check_borders(batch)?;
        self.failed = true;
        for (r, row) in words.chunks_exact(self.layout.stride_words as usize).enumerate() {
            self.sums.add(&self.layout, row, batch.entropy.get(r).copied());
            self.buffer.extend(row.iter().flat_map(|word| word.to_le_bytes()));
            self.next_row += 1;
            self.previous_valid = rows::flags(row) & VALID != 0;
            if self.next_row.is_multiple_of(u64::from(self.spec.rows_per_shard)) || self.next_row == self.spec.rows {
                self.finish_shard()?;
            }
        }
        self.failed = false;
        Ok(())
    }

    /// Writes the manifest once every row of the spec is there. On a set that was complete before it changes nothing.
    pub fn finish(mut self) -> Result<Manifest> {
        if self.next_row != self.spec.rows || self.failed {
            return Error::at(self.dir.display())
                .field("rows")
                .expected(self.spec.rows)
                .found(self.next_row)
                .help("run the same capture again: it resumes")
                .err();
        }
        let manifest = Manifest::new(self.spec.clone(), std::mem::take(&mut self.shards));
        if self.journal.take().is_some() {
            disk::write_atomic(&self.dir.join(MANIFEST_FILE), &[&manifest.to_bytes()?])?;
        }
        disk::remove(&self.dir.join(JOURNAL_FILE))?;
        Ok(manifest)
    }

    /// A row predicts the next token of its own document, so nothing valid stands before a document's start or at the
    /// end.
    fn check_borders(&self, batch: &RowBatch) -> Result<()> {
        let mut previous_valid = self.previous_valid;
        for (r, &flags) in batch.flags.iter().enumerate() {
            let row = self.next_row + r as u64;
            let at_end = row + 1 == self.spec.rows && flags & VALID != 0;
            if (previous_valid && flags & DOCUMENT_START != 0) || at_end {
                let last = if at_end { row } else { row - 1 };
                return Error::at(self.dir.display())
                    .field(format!("row {last}: flags"))
                    .expected("a document's last row masked: its next token belongs to another document")
                    .found("a valid row")
                    .err();
            }
            previous_valid = flags & VALID != 0;
        }
        Ok(())
    }

    fn finish_shard(&mut self) -> Result<()> {
        let index = self.shards.len() as u64;
        let header = shard_header(&self.spec, index);
        let digest = Sha256::new().chain_update(header).chain_update(&self.buffer).finalize();
        let entry = ShardEntry {
            file: shard_file(index),
            first_row: index * u64::from(self.spec.rows_per_shard),
            rows: shard_rows(&self.spec, index),
            bytes: (header.len() + self.buffer.len()) as u64,
            sha256: hex(&digest),
            sums: std::mem::take(&mut self.sums),
        };
        disk::write_atomic(&self.dir.join(&entry.file), &[&header, &self.buffer])?;
        match &mut self.journal {
            Some(journal) => journal.push(&entry)?,
            None => return Err(Error::internal("a complete shard set took another row")),
        }
        self.shards.push(entry);
        self.buffer.clear();
        Ok(())
    }

    /// Files that a kill left half-written.
    fn remove_leftovers(&self) -> Result<()> {
        let next = self.dir.join(shard_file(self.shards.len() as u64));
        disk::remove(&disk::temporary(&next))?;
        disk::remove(&disk::temporary(&self.dir.join(MANIFEST_FILE)))
    }

    fn last_row_was_valid(&self) -> Result<bool> {
        let Some(shard) = self.shards.last() else { return Ok(false) };
        let path = self.dir.join(&shard.file);
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        if sha256(&bytes) != shard.sha256 {
            return Error::file(&path)
                .expected(format!("SHA-256 {}", shard.sha256))
                .found("other bytes: the file is damaged")
                .help("remove the folder and capture again")
                .err();
        }
        let row = bytes.rchunks_exact(self.layout.stride_bytes() as usize).next().unwrap_or_default();
        Ok(row.get(3).is_some_and(|flags| flags & VALID != 0))
    }
}

/// A new set goes into a folder that is missing or empty (but for the journal that a kill left half-written).
fn refuse_other_contents(dir: &Path) -> Result<()> {
    let own = disk::temporary(Path::new(JOURNAL_FILE));
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            let complaint = Error::file(dir).expected("a folder to write shards into").found("a file");
            return complaint.help("write to another folder").err();
        }
        entries => entries.map_err(Error::io("list", dir))?,
    };
    for entry in entries {
        let name = entry.map_err(Error::io("list", dir))?.file_name();
        if name != own {
            return Error::file(dir)
                .expected("an empty folder or an unfinished shard set")
                .found(name.display())
                .help("write to another folder")
                .err();
        }
    }
    Ok(())
}
