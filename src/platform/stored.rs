//! A file in a browser's origin-private file system (OPFS), open for reading and writing at any place, at once: what a
//! dedicated worker may do there and no one else.

use std::io;
use wasm_bindgen::JsValue;
use web_sys::{FileSystemReadWriteOptions, FileSystemSyncAccessHandle};

/// An open file; closed when dropped.
pub struct Stored(FileSystemSyncAccessHandle);

impl Drop for Stored {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn refused(error: JsValue) -> io::Error {
    let error: js_sys::Error = error.into();
    let kind = match error.name().as_string().as_deref() {
        Some("QuotaExceededError") => io::ErrorKind::QuotaExceeded,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, String::from(error.message()))
}

fn place(at: u64) -> FileSystemReadWriteOptions {
    let options = FileSystemReadWriteOptions::new();
    options.set_at(at as f64);
    options
}

impl Stored {
    /// Takes an open handle over.
    pub fn new(handle: FileSystemSyncAccessHandle) -> Stored {
        Stored(handle)
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.0.get_size().unwrap_or(0.0) as u64
    }

    /// Fills `buffer` from `at` on; the value is the number of bytes, fewer at the end.
    pub fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read_with_u8_array_and_options(buffer, &place(at)).map_err(refused)?;
        Ok(count as usize)
    }

    /// Writes all of `bytes` at `at`. [`io::ErrorKind::QuotaExceeded`] if the browser gives no more room.
    pub fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let count = self.0.write_with_u8_array_and_options(bytes, &place(at)).map_err(refused)?;
        // Some browsers write what fits and say nothing.
        if count as usize == bytes.len() { Ok(()) } else { Err(io::ErrorKind::QuotaExceeded.into()) }
    }

    /// Cuts the file, or fills it with zeros, to `bytes`.
    pub fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.0.truncate_with_f64(bytes as f64).map_err(refused)
    }

    /// Waits until what was written outlasts a crash.
    pub fn sync(&self) -> io::Result<()> {
        self.0.flush().map_err(refused)
    }
}
