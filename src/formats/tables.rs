//! Tables of number lists, one row in memory at a time: Parquet files, and Arrow streams as Hugging Face's
//! `Dataset.save_to_disk` leaves them.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{arrow, parquet, read_json_if_present};
use crate::{Error, Result};

/// Numbers as they are stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    /// 32-bit integers, which smaller ones are read as.
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

/// An open file of either kind.
pub enum Table {
    /// Parquet.
    Parquet(parquet::Table),
    /// An Arrow stream.
    Arrow(arrow::Table),
}

/// Its rows one after another.
pub enum Rows<'a> {
    /// Parquet's.
    Parquet(parquet::Rows<'a>),
    /// An Arrow stream's.
    Arrow(arrow::Rows<'a>),
}

impl Table {
    /// Opens the file at `path`, an Arrow stream if its name ends in `.arrow`, and reads its schema.
    pub fn open(path: &Path) -> Result<Table> {
        match has_extension(path, "arrow") {
            true => arrow::Table::open(path).map(Table::Arrow),
            false => parquet::Table::open(path).map(Table::Parquet),
        }
    }

    /// Names of all columns, also of those that cannot be read.
    pub fn columns(&self) -> Vec<&str> {
        match self {
            Table::Parquet(table) => table.columns(),
            Table::Arrow(table) => table.columns(),
        }
    }

    /// The rows of the named columns, each a list (`depth` 1) or a list of lists (2).
    pub fn read(&self, columns: &[(&str, usize)]) -> Result<Rows<'_>> {
        match self {
            Table::Parquet(table) => table.read(columns).map(Rows::Parquet),
            Table::Arrow(table) => table.read(columns).map(Rows::Arrow),
        }
    }
}

impl Rows<'_> {
    /// The next row's cells in the order asked for, or `None` after the last. Errors name the file, row and column.
    #[expect(clippy::should_implement_trait, reason = "the name says it; an iterator of results it is not")]
    pub fn next(&mut self) -> Result<Option<Vec<List>>> {
        match self {
            Rows::Parquet(rows) => rows.next(),
            Rows::Arrow(rows) => rows.next(),
        }
    }
}

/// The place of the wanted column among the `readable` ones, each a name and how deep its lists go. `all` are the names
/// of those too that cannot be read.
pub(super) fn find<'a>(
    path: &Path,
    (name, depth): (&str, usize),
    mut readable: impl Iterator<Item = (&'a str, usize)>,
    all: &[&str],
) -> Result<usize> {
    let mut other = false;
    let place = readable.position(|(its, deep)| {
        other |= its == name;
        its == name && deep == depth
    });
    place.ok_or_else(|| {
        let expected = if depth == 1 { "a list of numbers" } else { "a list of lists of numbers" };
        let found = match (other, all.contains(&name)) {
            (true, _) => "lists of another depth",
            (false, true) => "another type",
            (false, false) => "no such column",
        };
        Error::file(path).field(format!("column `{name}`")).expected(expected).found(found).error()
    })
}

/// What a row that cannot be read says.
pub(super) fn bad_cell(path: &Path, row: u64, column: &str, found: impl std::fmt::Display) -> Error {
    let field = format!("row {row}: column `{column}`");
    Error::file(path).field(field).expected("lists of numbers").found(found).error()
}

fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(wanted))
}

/// The files of the data set at `path`: the file itself; those of a folder that `save_to_disk` left, in its order; else
/// the `.parquet` files in the folder and below it, in the byte order of their paths.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    collect(path, &mut found)?;
    if found.is_empty() {
        let expected = "a .parquet file, a folder with some, or one that `Dataset.save_to_disk` left";
        let complaint = Error::file(path).expected(expected).found("none");
        return complaint.help("export the data set as Parquet (`Dataset.to_parquet`), or check the path").err();
    }
    Ok(found)
}

fn collect(path: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    if !std::fs::metadata(path).map_err(Error::io("read", path))?.is_dir() {
        found.push(path.to_path_buf());
        return Ok(());
    }
    if let Some(split) = only_split(path)? {
        return collect(&path.join(split), found);
    }
    if let Some(saved) = saved_files(path)? {
        found.extend(saved);
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
        let table = has_extension(&entry, "parquet") && entry.is_file();
        if !hidden && (folder || table) {
            collect(&entry, found)?;
        }
    }
    Ok(())
}

/// The one split of a saved `DatasetDict`. With several it is not for this crate to choose, nor to mix them.
fn only_split(folder: &Path) -> Result<Option<String>> {
    let path = folder.join("dataset_dict.json");
    let Some(dict) = read_json_if_present(&path)? else { return Ok(None) };
    let splits = dict["splits"].as_array().into_iter().flatten();
    let splits: Option<Vec<&str>> = splits.map(|name| name.as_str().filter(|name| is_plain(name))).collect();
    match splits.as_deref() {
        Some([one]) => Ok(Some(one.to_string())),
        other => {
            let found = other.filter(|names| !names.is_empty()).map_or("none".to_string(), |names| names.join(", "));
            Error::file(path).field("`splits`").expected("one").found(found).help("name the folder of one split").err()
        }
    }
}

/// The files of one saved `Dataset`. Others that lie beside them are leftovers of `Dataset.map`.
fn saved_files(folder: &Path) -> Result<Option<Vec<PathBuf>>> {
    let path = folder.join("state.json");
    let Some(state) = read_json_if_present(&path)? else { return Ok(None) };
    let listed = |key: &str| state[key].as_array().is_some_and(|files| !files.is_empty());
    if listed("_indices_data_files") || listed("_indices_files") {
        let complaint =
            Error::file(path).field("`_indices_data_files`").expected("none").found("rows picked by indices");
        return complaint.help("load the data set with a present version of `datasets` and save it again").err();
    }
    let files = state["_data_files"].as_array().into_iter().flatten();
    let name = |file: &serde_json::Value| {
        let name = file["filename"].as_str().filter(|name| is_plain(name) && has_extension(Path::new(name), "arrow"));
        name.map(|name| folder.join(name)).ok_or_else(|| {
            let complaint = Error::file(&path).field("`_data_files`").expected("names of .arrow files in this folder");
            complaint.found(file).error()
        })
    };
    files.map(name).collect::<Result<_>>().map(Some)
}

/// Whether `name` stays inside its folder.
fn is_plain(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|file| file == name)
}
