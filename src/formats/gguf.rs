//! The GGUF container, versions 2 and 3, little-endian (format: ggml's `docs/gguf.md`).
//!
//! magic, version, counts; metadata as key, type, value; tensor infos; padding to `general.alignment`; tensor data.
//! This file knows the container only; what the metadata and names mean for a model is in `gguf_decoder`.

use super::dtype::Dtype;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A metadata value. Integers of every width are kept as one kind by sign.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum MetaValue {
    Unsigned(u64),
    Signed(i64),
    /// A 32-bit float.
    Float(f32),
    /// A 64-bit float.
    Double(f64),
    Bool(bool),
    String(String),
    Array(Vec<MetaValue>),
}

/// Where a tensor lies in the file and how it is stored.
#[derive(Clone, Debug)]
pub struct GgufTensor {
    /// The name in the file, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Rows first, as PyTorch writes a shape: the reverse of the order in the file.
    pub shape: Vec<usize>,
    /// Storage type.
    pub dtype: Dtype,
    /// Bytes of the file.
    pub range: Range<usize>,
}

/// A parsed GGUF header: metadata and tensor infos.
#[derive(Clone, Debug)]
pub struct GgufHeader {
    path: PathBuf,
    /// Metadata by key.
    pub metadata: BTreeMap<String, MetaValue>,
    /// The tensors in file order.
    pub tensors: Vec<GgufTensor>,
}

impl GgufHeader {
    /// Reads the header of `bytes`; `path` is for messages. Every tensor's range is inside `bytes` afterwards.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor { path, bytes, at: 0 };
        let magic = cursor.take(4, "the magic bytes")?;
        if magic != b"GGUF" {
            let complaint = Error::file(path).expected("a GGUF file, which begins with \"GGUF\"");
            let found = format!("{:?} at its start", String::from_utf8_lossy(magic));
            return complaint.found(found).help("it is another kind of file, or damaged: fetch it again").err();
        }
        let version = cursor.u32("the version")?;
        if version != 2 && version != 3 {
            return Error::file(path).field("GGUF version").expected("2 or 3").found(version).err();
        }
        let tensor_count = cursor.u64("the tensor count")?;
        let key_count = cursor.u64("the metadata count")?;
        let metadata = read_metadata(&mut cursor, key_count)?;
        let mut header = GgufHeader { path: path.to_path_buf(), metadata, tensors: Vec::new() };
        header.read_tensors(&mut cursor, tensor_count)?;
        Ok(header)
    }

    /// The file this header came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn read_tensors(&mut self, cursor: &mut Cursor, count: u64) -> Result<()> {
        let alignment = self.u64("general.alignment")?.unwrap_or(32);
        if alignment == 0 || alignment > 1 << 20 {
            return self.wrong("general.alignment", "1 to 1048576", alignment);
        }
        for _ in 0..count {
            let tensor = read_tensor_info(cursor)?;
            self.tensors.push(tensor);
        }
        let start = (cursor.at as u64).next_multiple_of(alignment);
        for tensor in &mut self.tensors {
            place(cursor, tensor, start, alignment)?;
        }
        let mut names: Vec<&str> = self.tensors.iter().map(|t| t.name.as_str()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => self.wrong(pair[0], "one tensor of this name", "two"),
            None => Ok(()),
        }
    }

    fn wrong<T>(&self, key: &str, expected: &str, found: impl std::fmt::Display) -> Result<T> {
        Error::file(&self.path).field(format!("`{key}`")).expected(expected).found(found).err()
    }

    /// The non-negative integer under `key`, if the key is there.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(MetaValue::Unsigned(value)) => Ok(Some(*value)),
            Some(MetaValue::Signed(value)) if *value >= 0 => Ok(Some(*value as u64)),
            Some(other) => self.wrong(key, "a non-negative integer", other.kind()),
        }
    }

    /// The number under `key`, if the key is there. A 32-bit float becomes the shortest decimal that rounds to it
    /// (1e-5, not 9.99999974737875e-6), so that values read as their author wrote them.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(MetaValue::Float(value)) => Ok(Some(shortest(*value))),
            Some(MetaValue::Double(value)) => Ok(Some(*value)),
            Some(MetaValue::Unsigned(value)) => Ok(Some(*value as f64)),
            Some(MetaValue::Signed(value)) => Ok(Some(*value as f64)),
            Some(other) => self.wrong(key, "a number", other.kind()),
        }
    }

    /// The boolean under `key`, if the key is there.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(MetaValue::Bool(value)) => Ok(Some(*value)),
            Some(other) => self.wrong(key, "a boolean", other.kind()),
        }
    }

    /// The text under `key`, if the key is there.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(MetaValue::String(value)) => Ok(Some(value)),
            Some(other) => self.wrong(key, "a string", other.kind()),
        }
    }

    /// The array under `key`, if the key is there.
    pub fn array(&self, key: &str) -> Result<Option<&[MetaValue]>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(MetaValue::Array(values)) => Ok(Some(values)),
            Some(other) => self.wrong(key, "an array", other.kind()),
        }
    }

    /// The array of strings under `key`, if the key is there.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(values) = self.array(key)? else { return Ok(None) };
        let mut texts = Vec::with_capacity(values.len());
        for value in values {
            match value {
                MetaValue::String(text) => texts.push(text.as_str()),
                other => return self.wrong(key, "an array of strings", other.kind()),
            }
        }
        Ok(Some(texts))
    }
}

/// The shortest decimal that rounds to `value`, as an f64.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

impl MetaValue {
    fn kind(&self) -> &'static str {
        match self {
            MetaValue::Unsigned(_) | MetaValue::Signed(_) => "an integer",
            MetaValue::Float(_) | MetaValue::Double(_) => "a float",
            MetaValue::Bool(_) => "a boolean",
            MetaValue::String(_) => "a string",
            MetaValue::Array(_) => "an array",
        }
    }
}

fn read_metadata(cursor: &mut Cursor, count: u64) -> Result<BTreeMap<String, MetaValue>> {
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.string("a metadata key")?;
        let kind = cursor.u32(&key)?;
        let value = cursor.value(kind, &key, 0)?;
        if metadata.contains_key(&key) {
            return Error::file(cursor.path).field(format!("`{key}`")).expected("one value").found("two").err();
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

/// One tensor info; until [`place`] has run, the range holds its offset into the data as an empty range.
fn read_tensor_info(cursor: &mut Cursor) -> Result<GgufTensor> {
    let name = cursor.string("a tensor name")?;
    let what = format!("tensor `{name}`");
    let rank = cursor.u32(&what)?;
    if rank == 0 || rank > 4 {
        return Error::file(cursor.path).field(what).expected("1 to 4 dimensions").found(rank).err();
    }
    let mut shape = (0..rank).map(|_| cursor.size(&what)).collect::<Result<Vec<_>>>()?;
    shape.reverse();
    let dtype = Dtype::from_ggml(cursor.u32(&what)?).or_else(|name| {
        Error::file(cursor.path)
            .field(&what)
            .expected("F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q6_K")
            .found(name)
            .help("use a file quantised to one of these")
            .err()
    })?;
    let offset = cursor.size(&what)?;
    Ok(GgufTensor { name, shape, dtype, range: offset..offset })
}

/// Turns the offset of `tensor` into its range of the file, checked against the file's length.
fn place(cursor: &Cursor, tensor: &mut GgufTensor, start: u64, alignment: u64) -> Result<()> {
    let complaint = || Error::file(cursor.path).field(format!("tensor `{}`", tensor.name));
    let offset = tensor.range.start as u64;
    if !offset.is_multiple_of(alignment) {
        return complaint().expected(format!("an offset in steps of {alignment}")).found(offset).err();
    }
    let (values, size) = tensor.dtype.block().ok_or_else(|| Error::internal("ggml type without a block"))?;
    let row = tensor.shape.last().copied().unwrap_or(0);
    if !row.is_multiple_of(values) {
        return complaint().expected(format!("rows of a multiple of {values} for {}", tensor.dtype)).found(row).err();
    }
    let count = tensor.shape.iter().try_fold(1usize, |count, n| count.checked_mul(*n));
    let range = count.and_then(|count| {
        let begin = usize::try_from(start.checked_add(offset)?).ok()?;
        Some(begin..begin.checked_add((count / values).checked_mul(size)?)?)
    });
    match range {
        Some(range) if range.end <= cursor.bytes.len() => {
            tensor.range = range;
            Ok(())
        }
        _ => {
            let end = range.map_or("past what can be addressed".to_string(), |range| range.end.to_string());
            let found = format!("{} bytes; the tensor would end at {end}", cursor.bytes.len());
            complaint().expected("its data inside the file").found(found).help(TRUNCATED).err()
        }
    }
}

const TRUNCATED: &str = "the file is truncated or damaged: fetch it again";

struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| {
            let left = format!("{} at byte {}", self.bytes.len() - self.at, self.at);
            Error::file(self.path).field(what).expected(format!("{count} bytes")).found(left).help(TRUNCATED).error()
        })?;
        self.at += count;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut number = [0; N];
        number.copy_from_slice(self.take(N, what)?);
        Ok(number)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.number(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.number(what).map(u64::from_le_bytes)
    }

    fn size(&mut self, what: &str) -> Result<usize> {
        let size = self.u64(what)?;
        usize::try_from(size).map_err(|_| {
            Error::file(self.path).field(what).expected("a size this machine can address").found(size).error()
        })
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let length = self.size(what)?;
        let bytes = self.take(length, what)?;
        let text = std::str::from_utf8(bytes);
        text.map(str::to_string).map_err(|e| Error::file(self.path).field(what).expected("UTF-8").found(e).error())
    }

    /// A value of GGUF's type number `kind`. Arrays may nest; deeper than any writer goes is refused, to bound the
    /// recursion.
    fn value(&mut self, kind: u32, key: &str, depth: u32) -> Result<MetaValue> {
        Ok(match kind {
            0 => MetaValue::Unsigned(self.number::<1>(key)?[0].into()),
            1 => MetaValue::Signed(self.number(key).map(i8::from_le_bytes)?.into()),
            2 => MetaValue::Unsigned(self.number(key).map(u16::from_le_bytes)?.into()),
            3 => MetaValue::Signed(self.number(key).map(i16::from_le_bytes)?.into()),
            4 => MetaValue::Unsigned(self.u32(key)?.into()),
            5 => MetaValue::Signed(self.number(key).map(i32::from_le_bytes)?.into()),
            6 => MetaValue::Float(self.number(key).map(f32::from_le_bytes)?),
            7 => match self.number::<1>(key)? {
                [0] => MetaValue::Bool(false),
                [1] => MetaValue::Bool(true),
                [other] => return Error::file(self.path).field(key).expected("a boolean 0 or 1").found(other).err(),
            },
            8 => MetaValue::String(self.string(key)?),
            9 if depth < 4 => {
                let element = self.u32(key)?;
                let count = self.u64(key)?;
                MetaValue::Array((0..count).map(|_| self.value(element, key, depth + 1)).collect::<Result<_>>()?)
            }
            10 => MetaValue::Unsigned(self.u64(key)?),
            11 => MetaValue::Signed(self.number(key).map(i64::from_le_bytes)?),
            12 => MetaValue::Double(self.number(key).map(f64::from_le_bytes)?),
            _ => return Error::file(self.path).field(key).expected("a GGUF value type").found(kind).err(),
        })
    }
}
