//! Parquet tables of number lists, one row in memory at a time.
//!
//! Rows are read page by page from each column in step, so that memory does not grow with the file or with its row
//! groups, which can be gigabytes. Columns are found by name; only lists of numbers (and lists of lists) can be read,
//! whatever a writer calls the groups inside.

mod write;

pub use write::{Cell, Kind, TableWriter};

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Repetition;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{DataType, FixedLenByteArray};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
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
