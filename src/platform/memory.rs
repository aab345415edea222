//! Files where there are none: a tree in the memory of this thread. A folder is there while something lies in it.

use crate::{Error, Result};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Cursor};
use std::path::{Path, PathBuf};
use std::sync::Arc;

thread_local!(static FILES: RefCell<BTreeMap<PathBuf, Contents>> = const { RefCell::new(BTreeMap::new()) });

/// The bytes of a file, shared by all who have it open.
#[derive(Clone, Debug)]
pub struct Contents(Arc<Vec<u8>>);

impl AsRef<[u8]> for Contents {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A file open for reading.
pub type File = Cursor<Contents>;

/// What a file is written into.
pub type Sink = Vec<u8>;

/// Puts a file at `path`, in place of any that is there; those who have the old one open keep it.
pub fn write(path: impl AsRef<Path>, bytes: Vec<u8>) {
    FILES.with_borrow_mut(|files| files.insert(path.as_ref().to_owned(), Contents(Arc::new(bytes))));
}

/// Takes a file, or a folder with all in it, away.
pub fn remove(path: impl AsRef<Path>) {
    FILES.with_borrow_mut(|files| files.retain(|file, _| !file.starts_with(path.as_ref())));
}

/// The files of a folder and of the folders in it, in the order of their paths.
pub fn files_in(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    FILES.with_borrow(|files| files.keys().filter(|file| file.starts_with(folder.as_ref())).cloned().collect())
}

/// The bytes of a file.
pub fn contents(path: &Path) -> io::Result<Contents> {
    let found = FILES.with_borrow(|files| files.get(path).cloned());
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such file in memory"))
}

/// A copy of a file's bytes.
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    Ok(contents(path.as_ref())?.as_ref().to_vec())
}

/// A copy of a file's text.
pub fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Folders need not be made.
pub fn create_dir_all(_: impl AsRef<Path>) -> io::Result<()> {
    Ok(())
}

/// Takes a file away.
pub fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    contents(path.as_ref())?;
    remove(path);
    Ok(())
}

/// Whether something of this name is there.
pub fn exists(path: &Path) -> bool {
    FILES.with_borrow(|files| files.keys().any(|file| file.starts_with(path)))
}

/// Whether it is a file.
pub fn is_file(path: &Path) -> bool {
    FILES.with_borrow(|files| files.contains_key(path))
}

/// Whether it is a folder.
pub fn is_dir(path: &Path) -> bool {
    exists(path) && !is_file(path)
}

/// Whether it is a folder; an error if nothing of this name is there.
pub fn try_is_dir(path: &Path) -> io::Result<bool> {
    if is_dir(path) { Ok(true) } else { contents(path).map(|_| false) }
}

/// Opens a file to read.
pub fn open(path: &Path) -> io::Result<File> {
    Ok(Cursor::new(contents(path)?))
}

/// What lies in a folder, in order.
pub fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut inside: Vec<PathBuf> = Vec::new();
    for file in files_in(folder) {
        let first = file.strip_prefix(folder).ok().and_then(|rest| rest.components().next());
        let entry = first.map(|name| folder.join(name));
        inside.extend(entry.filter(|entry| inside.last() != Some(entry)));
    }
    Ok(inside)
}

/// Whether `path` is a folder: there are no links.
pub fn is_own_dir(path: &Path) -> io::Result<bool> {
    Ok(is_dir(path))
}

/// A file that takes its place once it is whole.
pub struct AtomicFile {
    path: PathBuf,
    /// Where its bytes go.
    pub writer: BufWriter<Sink>,
}

impl AtomicFile {
    /// Begins a file for `path`.
    pub fn create(path: &Path) -> Result<AtomicFile> {
        path.file_name().ok_or_else(|| Error::file(path).expected("a file name").error())?;
        Ok(AtomicFile { path: path.to_owned(), writer: BufWriter::new(Vec::new()) })
    }

    /// Puts the file in its place.
    pub fn finish(self) -> Result<()> {
        let bytes = self.writer.into_inner().map_err(|error| Error::io("write", &self.path)(error.into_error()))?;
        write(&self.path, bytes);
        Ok(())
    }
}
