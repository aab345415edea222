//! Whole files: mapped into memory to read, replaced atomically to write.

use crate::platform::fs::{self, AtomicFile};
use crate::{Error, Result};
#[cfg(not(target_family = "wasm"))]
use memmap2::Mmap;
use serde_json::Value;
use std::io::{BufWriter, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// The bytes of a file: mapped where there are files, owned where they came from elsewhere (a test).
#[derive(Debug)]
pub enum Bytes {
    /// A read-only memory map.
    #[cfg(not(target_family = "wasm"))]
    Mapped(Mmap),
    /// A file in memory.
    #[cfg(target_family = "wasm")]
    Shared(fs::Contents),
    /// Bytes in memory.
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps the file at `path`. As with every memory map, another program that shortens the file while it is open
    /// ends this process; files this crate writes are replaced by renaming, which leaves open maps alone.
    #[cfg(not(target_family = "wasm"))]
    pub fn map(path: &Path) -> Result<Self> {
        let file = fs::open(path).map_err(Error::io("open", path))?;
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

    /// The file at `path`, shared with whoever else has it.
    #[cfg(target_family = "wasm")]
    pub fn map(path: &Path) -> Result<Self> {
        fs::contents(path).map(Bytes::Shared).map_err(Error::io("open", path))
    }

    /// Tells the system that these bytes will be read soon, where it takes such advice.
    pub(super) fn prefetch(&self, range: std::ops::Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = self {
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
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
            #[cfg(not(target_family = "wasm"))]
            Bytes::Mapped(map) => map,
            #[cfg(target_family = "wasm")]
            Bytes::Shared(contents) => contents.as_ref(),
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
    match fs::exists(path) {
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
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    write_atomically(path, |file| file.write_all(text.as_bytes()).map_err(Error::io("write", path)))
}

/// Replaces the file at `path` by what `fill` writes; see [`AtomicFile`].
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut BufWriter<fs::Sink>) -> Result<()>) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    fill(&mut file.writer)?;
    file.finish()
}

/// Makes `path` a directory this run may write into: creates it, accepts it empty, and refuses one that holds
/// anything unless `overwrite`, which keeps what is there until a file of the same name replaces it.
pub fn claim_output_dir(path: &Path, overwrite: bool) -> Result<()> {
    if fs::exists(path) && !fs::is_dir(path) {
        return Error::file(path).expected("a directory to write into").found("a file").err();
    }
    fs::create_dir_all(path).map_err(Error::io("create", path))?;
    let entries = fs::list(path).map_err(Error::io("read", path))?;
    match entries.first().and_then(|entry| entry.file_name()) {
        Some(entry) if !overwrite => Error::file(path)
            .expected("a new or empty directory to write into")
            .found(format!("{} in it", entry.to_string_lossy()))
            .help("name another directory, or ask for it to be overwritten (`--overwrite`)")
            .err(),
        _ => Ok(()),
    }
}

/// The one file in `directory` whose name ends in `.extension`, if there is exactly one.
pub(super) fn only_file_with_extension(directory: &Path, extension: &str) -> Option<PathBuf> {
    let mut found = fs::list(directory)
        .ok()?
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension)));
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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
