//! Files where there are none: a tree in the memory of this thread, in which files of the browser's private storage
//! can be mounted, so that they are read where they lie. A folder is there while something lies in it.

use super::stored::Stored;
use crate::{Error, Result};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

thread_local!(static FILES: RefCell<BTreeMap<PathBuf, Entry>> = const { RefCell::new(BTreeMap::new()) });

#[derive(Clone)]
enum Entry {
    Memory(Contents),
    Stored(Rc<Stored>),
}

/// The bytes of a file, shared by all who have it open.
#[derive(Clone, Debug)]
pub struct Contents(Arc<Vec<u8>>);

impl AsRef<[u8]> for Contents {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A file open for reading.
pub enum File {
    /// One in memory.
    Memory(Cursor<Contents>),
    /// One in private storage, and the place in it.
    Stored(Rc<Stored>, u64),
}

impl Read for File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            File::Memory(cursor) => cursor.read(buffer),
            File::Stored(stored, at) => {
                let count = stored.read_at(*at, buffer)?;
                *at += count as u64;
                Ok(count)
            }
        }
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (stored, at) = match self {
            File::Memory(cursor) => return cursor.seek(to),
            File::Stored(stored, at) => (stored, at),
        };
        let target = match to {
            SeekFrom::Start(target) => Some(target),
            SeekFrom::End(offset) => stored.bytes().checked_add_signed(offset),
            SeekFrom::Current(offset) => at.checked_add_signed(offset),
        };
        *at = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(*at)
    }
}

/// What a file is written into.
pub type Sink = Vec<u8>;

/// Puts a file at `path`, in place of any that is there; those who have the old one open keep it.
pub fn write(path: impl AsRef<Path>, bytes: Vec<u8>) {
    let entry = Entry::Memory(Contents(Arc::new(bytes)));
    FILES.with_borrow_mut(|files| files.insert(path.as_ref().to_owned(), entry));
}

/// Puts a file of private storage at `path`; it is closed when it is removed and no one has it open.
pub fn mount(path: impl AsRef<Path>, stored: Stored) {
    FILES.with_borrow_mut(|files| files.insert(path.as_ref().to_owned(), Entry::Stored(Rc::new(stored))));
}

/// Takes a file, or a folder with all in it, away.
pub fn remove(path: impl AsRef<Path>) {
    FILES.with_borrow_mut(|files| files.retain(|file, _| !file.starts_with(path.as_ref())));
}

/// The files of a folder and of the folders in it, in the order of their paths.
pub fn files_in(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    FILES.with_borrow(|files| files.keys().filter(|file| file.starts_with(folder.as_ref())).cloned().collect())
}

fn find(path: &Path) -> io::Result<Entry> {
    let found = FILES.with_borrow(|files| files.get(path).cloned());
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such file in memory"))
}

/// The bytes of a file: shared where it is in memory, read where it is in storage.
pub fn contents(path: &Path) -> io::Result<Contents> {
    match find(path)? {
        Entry::Memory(contents) => Ok(contents),
        Entry::Stored(stored) => {
            let mut bytes = Vec::new();
            File::Stored(stored, 0).read_to_end(&mut bytes)?;
            Ok(Contents(Arc::new(bytes)))
        }
    }
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

/// Makes a folder, which need not be made.
pub fn create_dir(_: impl AsRef<Path>) -> io::Result<()> {
    Ok(())
}

/// Takes a file away.
pub fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    find(path.as_ref())?;
    remove(path);
    Ok(())
}

/// Takes a folder away.
pub fn remove_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    remove(path);
    Ok(())
}

/// Gives a file or folder another name.
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    if !exists(from) {
        return Err(io::ErrorKind::NotFound.into());
    }
    remove(to);
    FILES.with_borrow_mut(|files| {
        let moved: Vec<PathBuf> = files.keys().filter(|file| file.starts_with(from)).cloned().collect();
        for file in moved {
            let rest = file.strip_prefix(from).unwrap_or(Path::new("")).to_owned();
            let name = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            if let Some(entry) = files.remove(&file) {
                files.insert(name, entry);
            }
        }
    });
    Ok(())
}

/// Nothing here outlives the thread, so there is nothing to wait for.
pub fn sync_directory(_: &Path) -> Result<()> {
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
    Ok(match find(path)? {
        Entry::Memory(contents) => File::Memory(Cursor::new(contents)),
        Entry::Stored(stored) => File::Stored(stored, 0),
    })
}

/// Opens a text to be read once, from any thread: in memory.
pub fn open_text(path: &Path) -> io::Result<Cursor<Contents>> {
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
