//! Whole files: mapped into memory to read, replaced atomically to write.

use crate::{Error, Result};
use memmap2::Mmap;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// The bytes of a file: mapped where the platform can, owned where they came from elsewhere (a browser's fetch, a
/// test).
#[derive(Debug)]
pub enum Bytes {
    /// A read-only memory map.
    Mapped(Mmap),
    /// Bytes in memory.
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps the file at `path`. As with every memory map, another program that shortens the file while it is open
    /// ends this process; files this crate writes are replaced by renaming, which leaves open maps alone.
    pub fn map(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let metadata = file.metadata().map_err(Error::io("read", path))?;
        if !metadata.is_file() {
            return Error::file(path).expected("a file").found("a directory or device").err();
        }
        if metadata.len() == 0 {
            return Ok(Bytes::Owned(Vec::new()));
        }
        // SAFETY: the map is read-only and its bytes are only ever read as plain integers.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        Ok(Bytes::Mapped(map))
    }

    /// Lets go of the pages that reading has brought into memory, where the system takes such advice.
    pub(super) fn release(&self) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = self {
            // SAFETY: the map is of a file and read-only: dropped pages come back from the file unchanged.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

/// Reads a JSON file; the error names the file, line and column.
pub fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&text).map_err(|e| Error::file(path).expected("JSON").found(e).error())
}

/// Reads a JSON file if it is there.
pub fn read_json_if_present(path: &Path) -> Result<Option<Value>> {
    match path.exists() {
        true => read_json(path).map(Some),
        false => Ok(None),
    }
}

/// Writes `value` as indented JSON, atomically.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::internal(e.to_string()))?;
    text.push(b'\n');
    write_atomically(path, |file| file.write_all(&text).map_err(Error::io("write", path)))
}

/// Writes `text`, atomically.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    write_atomically(path, |file| file.write_all(text.as_bytes()).map_err(Error::io("write", path)))
}

/// Replaces the file at `path` by what `fill` writes; see [`AtomicFile`].
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    fill(&mut file.writer)?;
    file.finish()
}

/// A file that replaces the one at its path once it is whole: written as a temporary neighbour, synced, then renamed,
/// so that a killed process leaves the old file or the new one. Dropped before [`AtomicFile::finish`], it leaves `path`
/// untouched and nothing else.
pub struct AtomicFile {
    path: PathBuf,
    temporary: PathBuf,
    /// Where its bytes go.
    pub writer: BufWriter<File>,
    finished: bool,
}

impl AtomicFile {
    /// Begins a file for `path`.
    pub fn create(path: &Path) -> Result<AtomicFile> {
        let name = path.file_name().ok_or_else(|| Error::file(path).expected("a file name").error())?;
        let mut temporary = name.to_os_string();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(temporary);
        let file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
        let writer = BufWriter::with_capacity(1 << 20, file);
        Ok(AtomicFile { path: path.to_owned(), temporary, writer, finished: false })
    }

    /// Where it will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Another handle to write to it.
    pub fn reopen(&self) -> Result<File> {
        File::options().write(true).open(&self.temporary).map_err(Error::io("open", &self.temporary))
    }

    /// Puts the file in its place.
    pub fn finish(mut self) -> Result<()> {
        self.writer.flush().map_err(Error::io("write", &self.temporary))?;
        self.writer.get_ref().sync_all().map_err(Error::io("sync", &self.temporary))?;
        fs::rename(&self.temporary, &self.path).map_err(Error::io("rename into place", &self.path))?;
        self.finished = true;
        sync_directory(self.path.parent().unwrap_or(Path::new("")))
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// A rename lasts through a power cut only once its directory is synced. Elsewhere than on Unix the system does it.
fn sync_directory(directory: &Path) -> Result<()> {
    if cfg!(unix) {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        File::open(directory).and_then(|d| d.sync_all()).map_err(Error::io("sync", directory))?;
    }
    Ok(())
}

/// Makes `path` a directory this run may write into: creates it, accepts it empty, and refuses one that holds
/// anything unless `overwrite`, which keeps what is there until a file of the same name replaces it.
pub fn claim_output_dir(path: &Path, overwrite: bool) -> Result<()> {
    if path.exists() && !path.is_dir() {
        return Error::file(path).expected("a directory to write into").found("a file").err();
    }
    fs::create_dir_all(path).map_err(Error::io("create", path))?;
    let first = fs::read_dir(path).map_err(Error::io("read", path))?.next();
    match first {
        Some(entry) if !overwrite => {
            let entry = entry.map_err(Error::io("read", path))?.file_name();
            Error::file(path)
                .expected("a new or empty directory to write into")
                .found(format!("{} in it", entry.to_string_lossy()))
                .help("name another directory, or ask for it to be overwritten (`--overwrite`)")
                .err()
        }
        _ => Ok(()),
    }
}

/// The one file in `directory` whose name ends in `.extension`, if there is exactly one.
pub(super) fn only_file_with_extension(directory: &Path, extension: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?.flatten().map(|e| e.path());
    let mut found = entries.filter(|p| p.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension)));
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_json(&path, &serde_json::json!({"a": 1})).unwrap();
        let failed = write_atomically(&path, |file| {
            file.write_all(b"half").unwrap();
            Err(Error::Cancelled)
        });
        assert!(matches!(failed, Err(Error::Cancelled)));
        assert_eq!(fs::read(&path).unwrap(), b"{\n  \"a\": 1\n}\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_holds_something_is_claimed_only_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("x/y");
        claim_output_dir(&out, false).unwrap();
        claim_output_dir(&out, false).unwrap();
        fs::write(out.join("thesis.txt"), "mine").unwrap();
        assert!(claim_output_dir(&out, false).unwrap_err().to_string().contains("thesis.txt"));
        claim_output_dir(&out, true).unwrap();
        assert_eq!(fs::read(out.join("thesis.txt")).unwrap(), b"mine");
        assert!(claim_output_dir(&out.join("thesis.txt"), true).is_err());
    }
}
