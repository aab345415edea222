//! What leaves for the visitor's disk: a folder of the tree as one file.

use super::failure::{Failure, Outcome};
use crate::platform::fs;
use crate::{Error, Result};
use std::path::Path;
use wasm_bindgen::JsValue;
use web_sys::{Blob, BlobPropertyBag};

/// A blob of these bytes.
pub fn blob(bytes: &[u8], kind: &str) -> Outcome<Blob> {
    let options = BlobPropertyBag::new();
    options.set_type(kind);
    let parts = js_sys::Array::of1(&js_sys::Uint8Array::from(bytes));
    Blob::new_with_u8_array_sequence_and_options(&parts, &options)
        .map_err(|error: JsValue| Failure::thrown("making a blob", error))
}

/// All files of a folder as a zip (PKWARE's APPNOTE 6.3), stored: weights do not compress. Written here, because the
/// tables with which a library would do it are a fiftieth of the module.
pub fn zip(folder: &Path) -> Outcome<Vec<u8>> {
    let table = crc_table();
    let files = fs::files_in(folder);
    let count = u16::try_from(files.len()).map_err(|_| Error::internal("a zip of more than 65,535 files"))?;
    let (mut zip, mut directory) = (Vec::new(), Vec::new());
    for path in files {
        let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
        let contents = fs::contents(&path).map_err(Error::io("read", &path))?;
        let contents: &[u8] = contents.as_ref();
        let offset = size(zip.len())?;
        let mut entry = Vec::new();
        // Version 2.0; names in UTF-8; stored; midnight of 1 January 1980.
        for number in [20u16, 1 << 11, 0, 0, 0x21] {
            entry.extend(number.to_le_bytes());
        }
        // The name's length has two bytes, and nothing comes after the name.
        for number in [crc32(&table, contents), size(contents.len())?, size(contents.len())?, size(name.len())?] {
            entry.extend(number.to_le_bytes());
        }
        zip.extend(b"PK\x03\x04");
        zip.extend(&entry);
        zip.extend(name.as_bytes());
        zip.extend(contents);
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&entry);
        // No comment, the first disk, no attributes.
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, length) = (size(zip.len())?, size(directory.len())?);
    zip.extend(directory);
    zip.extend(b"PK\x05\x06\0\0\0\0");
    zip.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    zip.extend([length.to_le_bytes(), start.to_le_bytes()].concat());
    zip.extend([0; 2]);
    Ok(zip)
}

/// A number of bytes. Memory ends before a zip of this kind does.
fn size(bytes: usize) -> Result<u32> {
    u32::try_from(bytes).map_err(|_| Error::internal("a zip of more than 4 GiB"))
}

/// What each byte does to the checksum (ISO 3309, reflected).
fn crc_table() -> [u32; 256] {
    std::array::from_fn(|byte| (0..8).fold(byte as u32, |c, _| if c & 1 == 1 { c >> 1 ^ 0xEDB8_8320 } else { c >> 1 }))
}

fn crc32(table: &[u32; 256], bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| crc >> 8 ^ table[(crc as u8 ^ byte) as usize])
}
