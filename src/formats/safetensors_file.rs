//! One safetensors file: its header read and checked, or a new file written tensor by tensor.
//!
//! Layout (huggingface/safetensors): u64 header length, JSON header `{name: {dtype, shape, data_offsets}}`, then the
//! data.

use super::dtype::Dtype;
use crate::platform::fs::AtomicFile;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// A tensor of a safetensors file.
pub(super) struct Placed {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub range: Range<usize>,
}

/// A safetensors header: the tensors, and the `__metadata__` strings.
pub(super) struct Header {
    pub tensors: Vec<Placed>,
    pub metadata: BTreeMap<String, String>,
}

/// Reads and checks the header of `bytes`: every range lies inside `bytes` and has the length of its shape.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Header> {
    let (length, header) = safetensors::SafeTensors::read_metadata(bytes).map_err(|e| {
        let found = format!("{} bytes; {e}", bytes.len());
        let help = "the file is truncated or damaged: fetch it again";
        Error::file(path).expected("a whole safetensors file").found(found).help(help).error()
    })?;
    let start = length + 8;
    let mut tensors = Vec::new();
    for (name, info) in header.tensors() {
        let (begin, end) = info.data_offsets;
        let range = start + begin..start + end;
        tensors.push(Placed { name, dtype: dtype(info.dtype), shape: info.shape.clone(), range });
    }
    let metadata = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok(Header { tensors, metadata })
}

fn dtype(dtype: safetensors::Dtype) -> Dtype {
    use safetensors::Dtype as S;
    match dtype {
        S::F32 => Dtype::F32,
        S::F16 => Dtype::F16,
        S::BF16 => Dtype::Bf16,
        S::F64 => Dtype::Other("F64"),
        S::BOOL => Dtype::Other("BOOL"),
        S::U8 => Dtype::Other("U8"),
        S::I8 => Dtype::Other("I8"),
        S::I16 => Dtype::Other("I16"),
        S::U16 => Dtype::Other("U16"),
        S::I32 => Dtype::Other("I32"),
        S::U32 => Dtype::Other("U32"),
        S::I64 => Dtype::Other("I64"),
        S::U64 => Dtype::Other("U64"),
        S::F8_E4M3 => Dtype::Other("F8_E4M3"),
        S::F8_E5M2 => Dtype::Other("F8_E5M2"),
        _ => Dtype::Other("a type newer than this reader"),
    }
}

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// [`Dtype::F32`], [`Dtype::F16`] or [`Dtype::Bf16`].
    pub dtype: Dtype,
    /// Rows first.
    pub shape: Vec<usize>,
}

/// Writes a safetensors file atomically, one tensor at a time. The header needs only `specs`; then `fill` is asked
/// for each tensor's values once, in file order (wider types first so that all are aligned, then by name), and the
/// answer is dropped before the next: the whole model is never held twice. `metadata` goes under `__metadata__`;
/// transformers wants `format` = `pt` there.
pub async fn write_safetensors<'a>(
    path: &Path,
    specs: &'a [TensorSpec],
    metadata: &BTreeMap<String, String>,
    mut fill: impl AsyncFnMut(&'a TensorSpec) -> Result<Cow<'a, [f32]>>,
) -> Result<()> {
    let (mut file, ordered) = begin(path, specs, metadata)?;
    let mut encoded = Vec::new();
    for spec in ordered {
        let values = fill(spec).await?;
        let count = spec.shape.iter().product::<usize>();
        if values.len() != count {
            let found = format!("{} values", values.len());
            return Error::file(path).field(&spec.name).expected(format!("{count} values")).found(found).err();
        }
        // In pieces, so that converting costs a megabyte and not another copy of the tensor.
        for piece in values.chunks(1 << 18) {
            encoded.clear();
            spec.dtype.encode(piece, &mut encoded);
            file.writer.write_all(&encoded).map_err(Error::io("write", path))?;
        }
    }
    file.finish()
}

/// A new file with its header, and the tensors in the order of their data.
pub(crate) fn begin<'a>(
    path: &Path,
    specs: &'a [TensorSpec],
    metadata: &BTreeMap<String, String>,
) -> Result<(AtomicFile, Vec<&'a TensorSpec>)> {
    let mut ordered: Vec<&TensorSpec> = specs.iter().collect();
    ordered.sort_by(|a, b| width(b.dtype).cmp(&width(a.dtype)).then_with(|| a.name.cmp(&b.name)));
    let header = header_json(path, &ordered, metadata)?;
    let mut file = AtomicFile::create(path)?;
    let mut put = |bytes: &[u8]| file.writer.write_all(bytes).map_err(Error::io("write", path));
    put(&(header.len() as u64).to_le_bytes())?;
    put(&header)?;
    Ok((file, ordered))
}

pub(super) fn width(dtype: Dtype) -> usize {
    if dtype == Dtype::F32 { 4 } else { 2 }
}

/// The header, padded with spaces so that the data start at a multiple of 8.
fn header_json(path: &Path, specs: &[&TensorSpec], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut offset = 0usize;
    for spec in specs {
        if !matches!(spec.dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16) {
            return Error::file(path).field(&spec.name).expected("F32, F16 or BF16 to write").found(spec.dtype).err();
        }
        let bytes = spec.shape.iter().try_fold(width(spec.dtype), |bytes, n| bytes.checked_mul(*n));
        let end = bytes.and_then(|bytes| offset.checked_add(bytes)).ok_or_else(|| {
            Error::file(path).field(&spec.name).expected("a size that fits").found(format!("{:?}", spec.shape)).error()
        })?;
        let entry = json!({"dtype": spec.dtype.to_string(), "shape": spec.shape, "data_offsets": [offset, end]});
        if header.insert(spec.name.clone(), entry).is_some() {
            return Error::file(path).field(&spec.name).expected("one tensor of this name").found("two").err();
        }
        offset = end;
    }
    let mut text = serde_json::to_vec(&Value::Object(header)).map_err(|e| Error::internal(e.to_string()))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok(text)
}
