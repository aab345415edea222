//! Durable file steps: write beside, sync, rename, sync the folder. A process killed between any two of them leaves
//! the old file or the new one; the tests kill it at every one.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The name that a file has until it is complete.
pub fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

/// Writes `parts` one after another as the file `path`.
pub fn write_atomic(path: &Path, parts: &[&[u8]]) -> Result<()> {
    let temporary = temporary(path);
    let written = write_temporary(&temporary, parts);
    if matches!(written, Err(Error::Io { .. })) {
        // On a full disk what was written is in the way of everyone.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    fs::rename(&temporary, path).map_err(Error::io("rename", &temporary))?;
    step()?;
    sync_parent(path)
}

fn write_temporary(temporary: &Path, parts: &[&[u8]]) -> Result<()> {
    step()?;
    let mut file = File::create(temporary).map_err(Error::io("create", temporary))?;
    for part in parts {
        write_all(&mut file, part, temporary)?;
    }
    step()?;
    file.sync_all().map_err(Error::io("sync", temporary))?;
    step()
}

/// Appends `bytes` to an open file and syncs it.
pub fn append(file: &mut File, bytes: &[u8], path: &Path) -> Result<()> {
    write_all(file, bytes, path)?;
    step()?;
    file.sync_data().map_err(Error::io("sync", path))
}

/// Removes a file if it is there.
pub fn remove(path: &Path) -> Result<()> {
    step()?;
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

fn write_all(file: &mut File, bytes: &[u8], path: &Path) -> Result<()> {
    // Two halves, so that a kill can fall between them.
    let (first, second) = bytes.split_at(bytes.len() / 2);
    for half in [first, second] {
        step()?;
        file.write_all(half).map_err(Error::io("write", path))?;
    }
    Ok(())
}

/// Makes a rename in this folder durable. Only Unix opens folders; elsewhere the rename itself has to do.
fn sync_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    if cfg!(unix) {
        File::open(parent).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", parent))?;
    }
    Ok(())
}

#[cfg(not(test))]
fn step() -> Result<()> {
    Ok(())
}

#[cfg(test)]
pub use kill::{kill_after, step};

#[cfg(test)]
mod kill {
    use std::cell::Cell;

    use crate::{Error, Result};

    thread_local!(static STEPS_LEFT: Cell<Option<u32>> = const { Cell::new(None) });

    /// Lets `steps` file steps of this thread succeed and the next one fail, as if the process ended there.
    pub fn kill_after(steps: Option<u32>) {
        STEPS_LEFT.set(steps);
    }

    pub fn step() -> Result<()> {
        match STEPS_LEFT.get() {
            Some(0) => Err(Error::Cancelled),
            left => {
                STEPS_LEFT.set(left.map(|n| n - 1));
                Ok(())
            }
        }
    }
}
