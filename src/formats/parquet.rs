//! Parquet tables of number lists, one row in memory at a time.
//!
//! Rows are read page by page from each column in step, so that memory does not grow with the file or with its row
//! groups, which can be gigabytes. Columns are found by name; only lists of numbers (and lists of lists) can be read,
//! whatever a writer calls the groups inside.

mod write;

pub use write::{Cell, Kind, TableWriter};

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Repetition;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{DataType, FixedLenByteArray};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::Type;

use super::tables::{List, Numbers, bad_cell, find};
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

    /// Names of all columns, also of those that cannot be read.
    pub fn columns(&self) -> Vec<&str> {
        let schema = self.reader.metadata().file_metadata().schema();
        schema.get_fields().iter().map(|field| field.name()).collect()
    }

    /// The rows of the named columns, each a list (`depth` 1) or a list of lists (2).
    pub fn read(&self, columns: &[(&str, usize)]) -> Result<Rows<'_>> {
        let column = |&wanted: &(&str, usize)| {
            let readable = self.columns.iter().map(|column| (column.name.as_str(), column.items.len()));
            find(&self.path, wanted, readable, &self.columns()).map(|place| &self.columns[place])
        };
        let columns = columns.iter().map(column).collect::<Result<_>>()?;
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
            cell(reader, column).map_err(|found| bad_cell(&self.table.path, row, &column.name, found))
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
