//! What leaves for the visitor's disk: a folder of the tree as one file.

use super::failure::{Failure, Kind, Outcome};
use crate::platform::fs;
use crate::{Error, Result};
use js_sys::{Array, Uint8Array};
use std::path::Path;
use wasm_bindgen::JsValue;
use web_sys::{Blob, BlobPropertyBag};

/// How a model leaves.
#[derive(Clone, Copy)]
pub enum Format {
    /// The whole folder.
    Zip,
    /// The weights alone.
    Safetensors,
}

impl Format {
    /// From its name; a zip without one.
    pub fn parse(name: Option<&str>) -> Outcome<Format> {
        match name {
            None | Some("zip") => Ok(Format::Zip),
            Some("safetensors") => Ok(Format::Safetensors),
            Some(other) => {
                let complaint = Error::at("format").expected("`zip` or `safetensors`").found(format!("`{other}`"));
                Err(Failure::new(Kind::Input, complaint))
            }
        }
    }
}

/// A model's folder.
pub fn folder(folder: &Path, format: Format) -> Outcome<Blob> {
    match format {
        Format::Zip => blob(&zip(folder)?, "application/zip"),
        Format::Safetensors => {
            let path = folder.join("model.safetensors");
            let bytes = fs::contents(&path).map_err(Error::io("read", &path))?;
            blob(&Array::of1(&Uint8Array::from(bytes.as_ref())), "application/octet-stream")
        }
    }
}

/// A blob of these bytes, one part after the other.
fn blob(parts: &Array, kind: &str) -> Outcome<Blob> {
    let options = BlobPropertyBag::new();
    options.set_type(kind);
    Blob::new_with_u8_array_sequence_and_options(parts, &options)
        .map_err(|error: JsValue| Failure::thrown("making a blob", error))
}

/// All files of a folder as a zip (PKWARE's APPNOTE 6.3), stored: weights do not compress. Written here, because the
/// tables with which a library would do it are a fiftieth of the module. In parts, so that weights are not copied within
/// the module's memory.
fn zip(folder: &Path) -> Outcome<Array> {
    let table = crc_table();
    let files = fs::files_in(folder);
    let count = u16::try_from(files.len()).map_err(|_| Error::internal("a zip of more than 65,535 files"))?;
    let (parts, mut length, mut directory) = (Array::new(), 0, Vec::new());
    let mut put = |part: &[u8]| {
        parts.push(&Uint8Array::from(part));
        length += part.len();
        size(length)
    };
    let mut offset = 0u32;
    for path in files {
        let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
        let contents = fs::contents(&path).map_err(Error::io("read", &path))?;
        let contents: &[u8] = contents.as_ref();
        let mut entry = Vec::new();
        // Version 2.0; names in UTF-8; stored; midnight of 1 January 1980.
        for number in [20u16, 1 << 11, 0, 0, 0x21] {
            entry.extend(number.to_le_bytes());
        }
        // The name's length has two bytes, and nothing comes after the name.
        for number in [crc32(&table, contents), size(contents.len())?, size(contents.len())?, size(name.len())?] {
            entry.extend(number.to_le_bytes());
        }
        put(&[b"PK\x03\x04", &entry[..], name.as_bytes()].concat())?;
        let next = put(contents)?;
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&entry);
        // No comment, the first disk, no attributes.
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
        offset = next;
    }
    let length = size(directory.len())?;
    directory.extend(b"PK\x05\x06\0\0\0\0");
    directory.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    directory.extend([length.to_le_bytes(), offset.to_le_bytes()].concat());
    directory.extend([0; 2]);
    put(&directory)?;
    Ok(parts)
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
