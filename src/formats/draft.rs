//! A safetensors file that several threads fill, each with tensors of its own. In a browser, where files are in memory
//! and there is one thread, there is none.

use super::TensorSpec;
use super::safetensors_file::{begin, width};
use crate::platform::fs::{AtomicFile, File};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

/// A new safetensors file whose tensors' bytes come in any order, from any thread. Dropped before [`Draft::finish`], it
/// leaves nothing.
pub(crate) struct Draft<'a> {
    file: AtomicFile,
    /// The tensors, with where their bytes begin in the file and how many they are.
    pub places: Vec<(&'a TensorSpec, Range<u64>)>,
}

impl<'a> Draft<'a> {
    /// Begins a file of all `specs`.
    pub fn begin(path: &Path, specs: &'a [TensorSpec], metadata: &BTreeMap<String, String>) -> Result<Draft<'a>> {
        let (mut file, ordered) = begin(path, specs, metadata)?;
        file.writer.flush().map_err(Error::io("write", path))?;
        let mut end = file.writer.get_ref().metadata().map_err(Error::io("read", path))?.len();
        let mut places = Vec::new();
        for spec in ordered {
            let start = end;
            end += (spec.shape.iter().product::<usize>() * width(spec.dtype)) as u64;
            places.push((spec, start..end));
        }
        file.writer.get_ref().set_len(end).map_err(Error::io("extend", path))?;
        Ok(Draft { file, places })
    }

    /// What writes the bytes of the tensor at `place`, one after the other.
    pub fn writer(&self, place: &Range<u64>) -> Result<File> {
        let mut file = self.file.reopen()?;
        file.seek(SeekFrom::Start(place.start)).map_err(Error::io("seek in", self.file.path()))?;
        Ok(file)
    }

    /// Puts the file in its place, once every tensor is written.
    pub fn finish(self) -> Result<()> {
        self.file.finish()
    }
}
