//! Writing tables of lists, a row group in memory at a time.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::Levels;
use crate::{Error, Result};

/// A column to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `list<uint64>`.
    Ids,
    /// `list<list<uint8>>`.
    Bytes,
}

/// Writes a table of lists, as pyarrow would lay it out.
pub struct TableWriter<W: Write + Send> {
    path: PathBuf,
    writer: SerializedFileWriter<W>,
    columns: Vec<Buffered>,
}

/// A column's part of the row group that is being gathered.
struct Buffered {
    kind: Kind,
    ids: Vec<i64>,
    bytes: Vec<i32>,
    levels: Levels,
}

/// A cell to write.
#[derive(Clone, Copy, Debug)]
pub enum Cell<'a> {
    /// For [`Kind::Ids`].
    Ids(&'a [u32]),
    /// For [`Kind::Bytes`].
    Bytes(&'a [Vec<u8>]),
}

/// Numbers of a row group, about: 8 bytes each in memory.
const GROUP: usize = 4 << 20;

impl<W: Write + Send> TableWriter<W> {
    /// Begins a file; `path` heads error messages.
    pub fn new(sink: W, path: &Path, columns: &[(&str, Kind)]) -> Result<TableWriter<W>> {
        let list = |name: &str, of: &str| format!("optional group {name} (LIST) {{ repeated group list {{ {of} }} }}");
        let schema = columns.iter().map(|(name, kind)| match kind {
            Kind::Ids => list(name, "optional int64 element (INTEGER(64,false));"),
            Kind::Bytes => list(name, &list("element", "optional int32 element (INTEGER(8,false));")),
        });
        let schema = format!("message schema {{ {} }}", schema.collect::<Vec<_>>().join(" "));
        let schema = parse_message_type(&schema).map_err(|e| Error::internal(e.to_string()))?;
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let writer = SerializedFileWriter::new(sink, Arc::new(schema), Arc::new(properties));
        let buffered = |&(_, kind): &(&str, Kind)| Buffered {
            kind,
            ids: Vec::new(),
            bytes: Vec::new(),
            levels: Levels::default(),
        };
        let columns = columns.iter().map(buffered).collect();
        Ok(TableWriter { writer: writer.map_err(|e| failed(path, &e))?, path: path.to_path_buf(), columns })
    }

    /// Appends a row: a cell for each column, in order.
    pub fn push(&mut self, row: &[Cell<'_>]) -> Result<()> {
        if row.len() != self.columns.len() {
            return Err(Error::internal("a row with another number of cells"));
        }
        for (column, cell) in self.columns.iter_mut().zip(row) {
            match (column.kind, *cell) {
                (Kind::Ids, Cell::Ids(ids)) => {
                    column.ids.extend(ids.iter().map(|&id| i64::from(id)));
                    column.levels.list(ids.len(), 0, [1, 3]);
                }
                (Kind::Bytes, Cell::Bytes(lists)) => {
                    for (i, list) in lists.iter().enumerate() {
                        column.bytes.extend(list.iter().map(|&byte| i32::from(byte)));
                        column.levels.list(list.len(), i16::from(i > 0), [3, 5]);
                    }
                    if lists.is_empty() {
                        column.levels.list(0, 0, [1, 5]);
                    }
                }
                _ => return Err(Error::internal("a cell of another kind than its column")),
            }
        }
        let numbers: usize = self.columns.iter().map(|column| column.levels.definition.len()).sum();
        if numbers >= GROUP { self.flush() } else { Ok(()) }
    }

    /// Writes the footer.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.writer.close().map(drop).map_err(|e| failed(&self.path, &e))
    }

    fn flush(&mut self) -> Result<()> {
        if self.columns.iter().all(|column| column.levels.definition.is_empty()) {
            return Ok(());
        }
        let columns = &mut self.columns;
        let write = |mut group: SerializedRowGroupWriter<'_, W>| -> Result<(), ParquetError> {
            for column in columns {
                let Some(mut writer) = group.next_column()? else { break };
                let Levels { definition, repetition } = std::mem::take(&mut column.levels);
                let (definition, repetition) = (Some(&definition[..]), Some(&repetition[..]));
                match column.kind {
                    Kind::Ids => writer.typed::<Int64Type>().write_batch(&column.ids, definition, repetition)?,
                    Kind::Bytes => writer.typed::<Int32Type>().write_batch(&column.bytes, definition, repetition)?,
                };
                writer.close()?;
                column.ids.clear();
                column.bytes.clear();
            }
            group.close().map(drop)
        };
        let group = self.writer.next_row_group();
        group.and_then(write).map_err(|e| failed(&self.path, &e))
    }
}

fn failed(path: &Path, error: &ParquetError) -> Error {
    Error::io("write", path)(std::io::Error::other(error.to_string()))
}

impl Levels {
    /// A list of `items` whose first item repeats at level `first`, with the definition levels of an empty list and of
    /// a number in it.
    fn list(&mut self, items: usize, first: i16, [empty, full]: [i16; 2]) {
        // Each list around a number adds an optional and a repeated group.
        let inside = full / 2;
        self.definition.extend(std::iter::repeat_n(if items == 0 { empty } else { full }, items.max(1)));
        self.repetition.extend((0..items.max(1)).map(|i| if i == 0 { first } else { inside }));
    }
}
