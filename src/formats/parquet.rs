//! Parquet tables of number lists, one row in memory at a time.
//!
//! Rows are read page by page from each column in step, so that memory does not grow with the file or with its row
//! groups, which can be gigabytes. Columns are found by name; only lists of numbers (and lists of lists) can be read,
//! whatever a writer calls the groups inside.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, Repetition};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{DataType, FixedLenByteArray, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::Type;

use crate::{Error, Result};

/// An open file.
pub struct Table {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    columns: Vec<Column>,
}

/// A column that can be read.
struct Column {
    name: String,
    /// Among the file's leaves.
    leaf: usize,
    /// For each list from the outermost, the definition level from which it has an item.
    items: Vec<i16>,
    /// The definition level of a number that is there.
    defined: i16,
}

/// Numbers as they are stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    /// 32-bit integers, which smaller ones are stored as.
    I32(Vec<i32>),
    /// 64-bit integers; unsigned ones by their bits.
    I64(Vec<i64>),
    /// Floating-point numbers, half and single precision widened.
    Float(Vec<f64>),
}

/// One cell: a list of numbers, or of such lists.
#[derive(Clone, Debug, PartialEq)]
pub struct List {
    /// All numbers.
    pub numbers: Numbers,
    /// Where each inner list ends among them; in a plain list, the one end.
    pub ends: Vec<usize>,
}

impl List {
    /// The numbers of inner list `index`, empty beyond the last.
    pub fn range(&self, index: usize) -> Range<usize> {
        let start = index.checked_sub(1).and_then(|i| self.ends.get(i)).copied().unwrap_or(0);
        self.ends.get(index).map_or(0..0, |&end| start..end)
    }
}

impl Numbers {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Numbers::I32(v) => v.len(),
            Numbers::I64(v) => v.len(),
            Numbers::Float(v) => v.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Integers of a range inside; `None` if these are no integers.
    pub fn integers(&self, range: Range<usize>) -> Option<Vec<i64>> {
        match self {
            Numbers::I32(v) => Some(v[range].iter().map(|&x| i64::from(x)).collect()),
            Numbers::I64(v) => Some(v[range].to_vec()),
            Numbers::Float(_) => None,
        }
    }

    /// Numbers of a range inside; `None` if these are integers.
    pub fn floats(&self, range: Range<usize>) -> Option<&[f64]> {
        match self {
            Numbers::Float(v) => Some(&v[range]),
            _ => None,
        }
    }
}

/// `.parquet` files: the one at `path`, or those in the folder and below it, in the byte order of their paths.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    collect(path, &mut found)?;
    if found.is_empty() {
        let complaint = Error::file(path).expected("a .parquet file, or a folder with some").found("none");
        return complaint.help("export the data set as Parquet (`Dataset.to_parquet`), or check the path").err();
    }
    Ok(found)
}

fn collect(path: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    if !std::fs::metadata(path).map_err(Error::io("read", path))?.is_dir() {
        found.push(path.to_path_buf());
        return Ok(());
    }
    let entries = std::fs::read_dir(path).map_err(Error::io("list", path))?;
    let mut entries: Vec<PathBuf> =
        entries.map(|entry| Ok(entry.map_err(Error::io("list", path))?.path())).collect::<Result<_>>()?;
    entries.sort();
    for entry in entries {
        let hidden = entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        // A linked folder may lead back up to this one.
        let folder = std::fs::symlink_metadata(&entry).map_err(Error::io("read", &entry))?.is_dir();
        let table = entry.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet")) && entry.is_file();
        if !hidden && (folder || table) {
            collect(&entry, found)?;
        }
    }
    Ok(())
}

impl Table {
    /// Opens the file at `path` and reads its schema.
    pub fn open(path: &Path) -> Result<Table> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let reader = SerializedFileReader::new(file).map_err(|e| damaged(path, &e))?;
        let mut columns = Vec::new();
        let mut leaf = 0;
        for field in reader.metadata().file_metadata().schema().get_fields() {
            columns.extend(column(field, leaf));
            leaf += leaves(field);
        }
        Ok(Table { path: path.to_path_buf(), reader, columns })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all columns, also of those that cannot be read.
    pub fn columns(&self) -> Vec<&str> {
        let schema = self.reader.metadata().file_metadata().schema();
        schema.get_fields().iter().map(|field| field.name()).collect()
    }

    /// Rows of the file.
    pub fn rows(&self) -> u64 {
        self.reader.metadata().row_groups().iter().map(|group| group.num_rows().max(0) as u64).sum()
    }

    /// The rows of the named columns, each a list (`depth` 1) or a list of lists (2).
    pub fn read(&self, columns: &[(&str, usize)]) -> Result<Rows<'_>> {
        let find = |&(name, depth): &(&str, usize)| {
            let column = self.columns.iter().find(|column| column.name == name);
            column.filter(|column| column.items.len() == depth).ok_or_else(|| {
                let expected = if depth == 1 { "a list of numbers" } else { "a list of lists of numbers" };
                let found = match (column, self.columns().contains(&name)) {
                    (Some(_), _) => "lists of another depth",
                    (None, true) => "another type",
                    (None, false) => "no such column",
                };
                Error::file(&self.path).field(format!("column `{name}`")).expected(expected).found(found).error()
            })
        };
        let columns = columns.iter().map(find).collect::<Result<Vec<_>>>()?;
        Ok(Rows { table: self, columns, readers: Vec::new(), group: 0, left: 0, row: 0 })
    }
}

/// What reading a damaged file, or one with an unknown codec, says.
fn damaged(path: &Path, error: &ParquetError) -> Error {
    Error::file(path).expected("a readable Parquet file").found(error).help("copy or export it again").error()
}

fn leaves(field: &Type) -> usize {
    if field.is_primitive() { 1 } else { field.get_fields().iter().map(|field| leaves(field)).sum() }
}

/// `field` as a list column, if it is one: groups of one child each down to a number, one or two of them repeated.
fn column(field: &Arc<Type>, leaf: usize) -> Option<Column> {
    let (mut items, mut defined, mut at) = (Vec::new(), 0, field);
    loop {
        match at.get_basic_info().repetition() {
            Repetition::REQUIRED => {}
            Repetition::OPTIONAL => defined += 1,
            Repetition::REPEATED => {
                defined += 1;
                items.push(defined);
            }
        }
        if at.is_primitive() {
            break;
        }
        let [child] = at.get_fields() else { return None };
        at = child;
    }
    (!items.is_empty()).then(|| Column { name: field.name().to_string(), leaf, items, defined })
}

/// Rows one after another.
pub struct Rows<'a> {
    table: &'a Table,
    columns: Vec<&'a Column>,
    readers: Vec<ColumnReader>,
    /// The next row group.
    group: usize,
    /// Rows left in the present one.
    left: u64,
    row: u64,
}

impl Rows<'_> {
    /// The next row's cells in the order asked for, or `None` after the last. Errors name the file, row and column.
    #[expect(clippy::should_implement_trait, reason = "the name says it; an iterator of results it is not")]
    pub fn next(&mut self) -> Result<Option<Vec<List>>> {
        let reader = &self.table.reader;
        while self.left == 0 {
            if self.group == reader.num_row_groups() {
                return Ok(None);
            }
            let open = || -> Result<_, ParquetError> {
                let group = reader.get_row_group(self.group)?;
                let readers = self.columns.iter().map(|column| group.get_column_reader(column.leaf));
                Ok((group.metadata().num_rows().max(0) as u64, readers.collect::<Result<Vec<_>, _>>()?))
            };
            (self.left, self.readers) = open().map_err(|e| damaged(&self.table.path, &e))?;
            self.group += 1;
        }
        let row = self.row;
        let cells = self.readers.iter_mut().zip(&self.columns).map(|(reader, column)| {
            cell(reader, column).map_err(|found| {
                let field = format!("row {row}: column `{}`", column.name);
                Error::file(&self.table.path).field(field).expected("lists of numbers").found(found).error()
            })
        });
        let cells = cells.collect::<Result<Vec<_>>>()?;
        self.left -= 1;
        self.row += 1;
        Ok(Some(cells))
    }
}

/// Reads one record of a column.
fn cell(reader: &mut ColumnReader, column: &Column) -> Result<List, String> {
    let mut levels = Levels::default();
    let half = |value: &FixedLenByteArray| match *value.data() {
        [low, high] => Ok(f64::from(half::f16::from_le_bytes([low, high]))),
        _ => Err("bytes".to_string()),
    };
    let numbers = match reader {
        ColumnReader::Int32ColumnReader(r) => Numbers::I32(record(r, &mut levels)?),
        ColumnReader::Int64ColumnReader(r) => Numbers::I64(record(r, &mut levels)?),
        ColumnReader::FloatColumnReader(r) => {
            Numbers::Float(record(r, &mut levels)?.into_iter().map(f64::from).collect())
        }
        ColumnReader::DoubleColumnReader(r) => Numbers::Float(record(r, &mut levels)?),
        ColumnReader::FixedLenByteArrayColumnReader(r) => {
            Numbers::Float(record(r, &mut levels)?.iter().map(half).collect::<Result<_, _>>()?)
        }
        _ => return Err("another type".to_string()),
    };
    let ends = levels.ends(column)?;
    match ends.last().copied().unwrap_or(0) == numbers.len() {
        true => Ok(List { numbers, ends }),
        false => Err("levels that do not fit the values: the file is damaged".to_string()),
    }
}

/// Where the numbers of one record stand in its lists (the levels of the Dremel encoding).
#[derive(Default)]
struct Levels {
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

fn record<T: DataType>(reader: &mut ColumnReaderImpl<T>, levels: &mut Levels) -> Result<Vec<T::T>, String> {
    let mut values = Vec::new();
    let read = reader.read_records(1, Some(&mut levels.definition), Some(&mut levels.repetition), &mut values);
    match read.map_err(|e| e.to_string())? {
        (1, ..) => Ok(values),
        _ => Err("the end of the column".to_string()),
    }
}

impl Levels {
    fn ends(&self, column: &Column) -> Result<Vec<usize>, String> {
        let innermost = column.items.last().copied().unwrap_or(0);
        let (mut ends, mut count) = (Vec::new(), 0);
        for (&definition, &repetition) in self.definition.iter().zip(&self.repetition) {
            if (repetition as usize) < column.items.len() && definition >= column.items[0] && column.items.len() == 2 {
                ends.push(count);
            }
            if definition == column.defined {
                count += 1;
                ends.last_mut().into_iter().for_each(|end| *end = count);
            } else if definition >= innermost {
                return Err(format!("null as number {count}"));
            }
        }
        if column.items.len() == 1 {
            ends.push(count);
        }
        Ok(ends)
    }
}

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
        let schema = columns.iter().map(|(name, kind)| match kind {
            Kind::Ids => format!(
                "optional group {name} (LIST) {{ repeated group list {{ optional int64 element (INTEGER(64,false)); }} }}"
            ),
            Kind::Bytes => format!(
                "optional group {name} (LIST) {{ repeated group list {{ optional group element (LIST) {{ repeated group \
                 list {{ optional int32 element (INTEGER(8,false)); }} }} }} }}"
            ),
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
