//! The files of an operating system.

use crate::{Error, Result};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

pub use std::fs::{File, create_dir, create_dir_all, read, read_to_string, remove_dir_all, remove_file, rename};

/// What a file is written into.
pub type Sink = File;

/// Whether something of this name is there.
pub fn exists(path: &Path) -> bool {
    path.exists()
}

/// Whether it is a file.
pub fn is_file(path: &Path) -> bool {
    path.is_file()
}

/// Whether it is a folder.
pub fn is_dir(path: &Path) -> bool {
    path.is_dir()
}

/// Whether it is a folder; an error if it cannot be told, or nothing of this name is there.
pub fn try_is_dir(path: &Path) -> io::Result<bool> {
    Ok(std::fs::metadata(path)?.is_dir())
}

/// Opens a file to read.
pub fn open(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// Opens a text to be read once, from any thread.
pub fn open_text(path: &Path) -> io::Result<BufReader<File>> {
    Ok(BufReader::new(open(path)?))
}

/// What lies in a folder, in no order.
pub fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

/// Whether `path` itself is a folder, and not a link to one.
pub fn is_own_dir(path: &Path) -> io::Result<bool> {
    Ok(std::fs::symlink_metadata(path)?.is_dir())
}

/// A file that replaces the one at its path once it is whole: written as a temporary neighbour, synced, then renamed,
/// so that a killed process leaves the old file or the new one. Dropped before [`AtomicFile::finish`], it leaves `path`
/// untouched and nothing else.
pub struct AtomicFile {
    path: PathBuf,
    temporary: PathBuf,
    /// Where its bytes go.
    pub writer: BufWriter<Sink>,
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
        std::fs::rename(&self.temporary, &self.path).map_err(Error::io("rename into place", &self.path))?;
        self.finished = true;
        sync_directory(self.path.parent().unwrap_or(Path::new("")))
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.finished {
            let _ = remove_file(&self.temporary);
        }
    }
}

/// A rename lasts through a power cut only once its directory is synced. Elsewhere than on Unix the system does it.
pub fn sync_directory(directory: &Path) -> Result<()> {
    if cfg!(unix) {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        File::open(directory).and_then(|d| d.sync_all()).map_err(Error::io("sync", directory))?;
    }
    Ok(())
}
