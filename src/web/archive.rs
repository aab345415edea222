//! What leaves for the visitor's disk: a folder of the tree as one file.

use super::failure::{Failure, Outcome};
use crate::Error;
use crate::platform::fs;
use std::io::{Cursor, Write};
use std::path::Path;
use wasm_bindgen::JsValue;
use web_sys::{Blob, BlobPropertyBag};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A blob of these bytes.
pub fn blob(bytes: &[u8], kind: &str) -> Outcome<Blob> {
    let options = BlobPropertyBag::new();
    options.set_type(kind);
    let parts = js_sys::Array::of1(&js_sys::Uint8Array::from(bytes));
    Blob::new_with_u8_array_sequence_and_options(&parts, &options)
        .map_err(|error: JsValue| Failure::thrown("making a blob", error))
}

/// All files of a folder as a zip, stored: weights do not compress.
pub fn zip(folder: &Path) -> Outcome<Vec<u8>> {
    let failed = |error: zip::result::ZipError| Error::internal(format!("zip: {error}"));
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for path in fs::files_in(folder) {
        let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
        let contents = fs::contents(&path).map_err(Error::io("read", &path))?;
        zip.start_file(name, options).map_err(failed)?;
        zip.write_all(contents.as_ref()).map_err(Error::io("zip", &path))?;
    }
    Ok(zip.finish().map_err(failed)?.into_inner())
}
