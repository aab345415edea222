//! Arrow streams of number lists, mapped into memory and read a row at a time.
//!
//! A stream is a schema, record batches and an end mark, each a message: a flatbuffer, and for a batch the columns' buffers
//! behind it ([Arrow columnar format](https://arrow.apache.org/docs/format/Columnar.html), IPC streaming format;
//! `Message.fbs`, `Schema.fbs`). Nothing in a file is trusted: every offset is checked before it is followed.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::Bytes;
use super::flatbuffer::{Flat, array, u32_at};
use super::tables::{List, Numbers, bad_cell, find};
use crate::{Error, Result};

/// An open file.
pub struct Table {
    path: PathBuf,
    bytes: Bytes,
    names: Vec<String>,
    columns: Vec<Column>,
    batches: Vec<Batch>,
}

/// A column that can be read.
struct Column {
    name: String,
    /// From the outermost.
    lists: Vec<Lists>,
    numbers: Kind,
    /// The column's first among the field nodes and among the buffers of a batch.
    node: usize,
    buffer: usize,
}

/// How a list's items are found.
#[derive(Clone, Copy, PartialEq)]
enum Lists {
    /// By offsets of so many bytes.
    Offsets(usize),
    /// Each list has so many.
    Fixed(usize),
}

/// How a number is stored: its bytes, and what they mean.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Signed(usize),
    Unsigned(usize),
    Float(usize),
    /// A column of empty lists only, which nothing tells the type of.
    Null,
}

/// Where a record batch lies in the file.
struct Batch {
    metadata: Range<usize>,
    body: Range<usize>,
    rows: usize,
}

/// Numbers of the unions `MessageHeader` and `Type`.
mod code {
    pub const SCHEMA: u8 = 1;
    pub const RECORD_BATCH: u8 = 3;
    pub const NULL: u8 = 1;
    pub const INT: u8 = 2;
    pub const FLOAT: u8 = 3;
    pub const LIST: u8 = 12;
    pub const FIXED_SIZE_LIST: u8 = 16;
    pub const LARGE_LIST: u8 = 21;
}

/// Most fields and depth of a schema: what is beyond is no data set, but a damaged or hostile file.
const MOST_FIELDS: usize = 1 << 16;
const MOST_DEPTH: usize = 64;
/// Most items of a column of nulls that are looked at; the first of them is refused.
const MOST_NULLS: usize = 1 << 16;

impl Table {
    /// Opens the file at `path`, reads its schema and finds its batches.
    pub fn open(path: &Path) -> Result<Table> {
        Table::of(path, Bytes::map(path)?)
    }

    /// The same of bytes; `path` stands for them in messages.
    pub fn of(path: &Path, bytes: Bytes) -> Result<Table> {
        let damaged = |found: &str| {
            let complaint = Error::file(path).expected("a whole Arrow stream").found(found);
            complaint.help("copy it again, or save the data set again (`Dataset.save_to_disk`)").error()
        };
        let mut table = Table { path: path.into(), bytes, names: Vec::new(), columns: Vec::new(), batches: Vec::new() };
        let (mut at, mut begun) = (0, false);
        while let Some(metadata) = message(&table.bytes, at).map_err(damaged)? {
            let end = metadata.end;
            let message = Flat::root(&table.bytes[metadata.clone()]).ok_or_else(|| damaged("a torn message"))?;
            let length = usize::try_from(message.i64(3).unwrap_or(0)).ok();
            let body = length.and_then(|length| end.checked_add(length)).filter(|end| *end <= table.bytes.len());
            let body = end..body.ok_or_else(|| damaged("an end inside a message"))?;
            at = body.end;
            match (message.u8(1), message.table(2)) {
                (Some(code::SCHEMA), Some(schema)) if !begun => {
                    (table.names, table.columns) = columns(schema).map_err(|found| damaged(&found))?;
                    begun = true;
                }
                (Some(code::RECORD_BATCH), Some(batch)) if begun => {
                    if batch.table(3).is_some() {
                        let complaint = Error::file(path).expected("columns as they are").found("compressed ones");
                        return complaint.help("save the data set with `Dataset.save_to_disk`").err();
                    }
                    let rows = usize::try_from(batch.i64(0).unwrap_or(0)).map_err(|_| damaged("a torn message"))?;
                    table.batches.push(Batch { metadata, body, rows });
                }
                _ if !begun => return Err(damaged("no schema")),
                // Dictionaries, which columns of numbers do not have.
                _ => {}
            }
        }
        if begun { Ok(table) } else { Err(damaged("no schema")) }
    }

    /// Names of all columns, also of those that cannot be read.
    pub fn columns(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    /// The rows of the named columns, each a list (`depth` 1) or a list of lists (2).
    pub fn read(&self, columns: &[(&str, usize)]) -> Result<Rows<'_>> {
        let column = |&wanted: &(&str, usize)| {
            let readable = self.columns.iter().map(|column| (column.name.as_str(), column.lists.len()));
            find(&self.path, wanted, readable, &self.columns()).map(|place| &self.columns[place])
        };
        let columns = columns.iter().map(column).collect::<Result<_>>()?;
        Ok(Rows { table: self, columns, views: Vec::new(), batch: 0, at: 0, left: 0, row: 0 })
    }
}

/// Where the flatbuffer of the message at `at` lies; `None` at the end mark, without which the file is cut short.
fn message(bytes: &[u8], at: usize) -> Result<Option<Range<usize>>, &'static str> {
    const CONTINUES: u32 = u32::MAX;
    let word = |at: usize| u32_at(bytes, at).ok_or("no end mark");
    let (length, start) = match word(at)? {
        // Before Arrow 0.15 the length came first.
        CONTINUES => (word(at + 4)? as usize, at + 8),
        length => (length as usize, at + 4),
    };
    if length == 0 {
        return Ok(None);
    }
    match start.checked_add(length).filter(|end| *end <= bytes.len()) {
        Some(end) => Ok(Some(start..end)),
        None => Err("an end inside a message, or another format"),
    }
}

/// The names of all columns, and those that are lists of numbers.
fn columns(schema: Flat) -> Result<(Vec<String>, Vec<Column>), String> {
    if schema.i16(0).unwrap_or(0) != 0 {
        return Err("big-endian numbers".to_string());
    }
    let (mut names, mut columns, mut counts) = (Vec::new(), Vec::new(), Counts::default());
    for field in schema.tables(1).ok_or("no fields")? {
        let name = field.text(0).unwrap_or_default().to_string();
        let (node, buffer) = (counts.nodes, counts.buffers);
        if let Some((lists, numbers)) = list(field) {
            columns.push(Column { name: name.clone(), lists, numbers, node, buffer });
        }
        counts.add(field, 0).map_err(|found| format!("column `{name}` of {found}"))?;
        names.push(name);
    }
    Ok((names, columns))
}

/// How many field nodes and buffers the fields so far have in a batch.
#[derive(Default)]
struct Counts {
    nodes: usize,
    buffers: usize,
}

impl Counts {
    fn add(&mut self, field: Flat, depth: usize) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > MOST_FIELDS || depth > MOST_DEPTH {
            return Err("too many fields".to_string());
        }
        if field.table(4).is_some() {
            // The indices of a dictionary.
            self.buffers += 2;
            return Ok(());
        }
        self.buffers += match field.u8(2).unwrap_or(0) {
            code::NULL => 0,
            // Structs and lists of fixed size: what is valid.
            13 | code::FIXED_SIZE_LIST => 1,
            // Numbers, times and bytes of fixed size; lists and maps.
            code::INT | code::FLOAT | 6..=11 | 15 | 18 | code::LIST | 17 | code::LARGE_LIST => 2,
            // Bytes and texts.
            4 | 5 | 19 | 20 => 3,
            other => return Err(format!("the type number {other}, which cannot be passed over")),
        };
        field.tables(5).unwrap_or_default().into_iter().try_for_each(|child| self.add(child, depth + 1))
    }
}

/// `field` as lists down to numbers, if it is that.
fn list(mut field: Flat) -> Option<(Vec<Lists>, Kind)> {
    let mut lists = Vec::new();
    loop {
        if field.table(4).is_some() || lists.len() > MOST_DEPTH {
            return None;
        }
        let kind = field.table(3);
        let next = match field.u8(2)? {
            code::LIST => Lists::Offsets(4),
            code::LARGE_LIST => Lists::Offsets(8),
            code::FIXED_SIZE_LIST => Lists::Fixed(usize::try_from(kind?.i32(0)?).ok().filter(|size| *size > 0)?),
            code::NULL => return (!lists.is_empty()).then_some((lists, Kind::Null)),
            code::INT => {
                let bits = kind?.i32(0)?;
                let bytes = [1, 2, 4, 8].into_iter().find(|bytes| 8 * bytes == bits)? as usize;
                let signed = kind?.u8(1).unwrap_or(0) != 0;
                let numbers = if signed { Kind::Signed(bytes) } else { Kind::Unsigned(bytes) };
                return (!lists.is_empty()).then_some((lists, numbers));
            }
            code::FLOAT => {
                let bytes = *[2, 4, 8].get(usize::try_from(kind?.i16(0).unwrap_or(0)).ok()?)?;
                return (!lists.is_empty()).then_some((lists, Kind::Float(bytes)));
            }
            _ => return None,
        };
        lists.push(next);
        field = *field.tables(5)?.first()?;
    }
}

/// Rows one after another.
pub struct Rows<'a> {
    table: &'a Table,
    columns: Vec<&'a Column>,
    /// The columns in the present batch.
    views: Vec<View<'a>>,
    /// The next batch.
    batch: usize,
    /// The next row of the present one, and how many are left.
    at: usize,
    left: usize,
    row: u64,
}

impl Rows<'_> {
    /// The next row's cells in the order asked for, or `None` after the last. Errors name the file, row and column.
    #[expect(clippy::should_implement_trait, reason = "the name says it; an iterator of results it is not")]
    pub fn next(&mut self) -> Result<Option<Vec<List>>> {
        let (table, row) = (self.table, self.row);
        let wrong = |column: &Column, found: String| bad_cell(&table.path, row, &column.name, found);
        while self.left == 0 {
            let Some(batch) = table.batches.get(self.batch) else { return Ok(None) };
            let view = |column: &&Column| {
                let found = "buffers that do not fit the rows: the file is damaged".to_string();
                View::of(table, batch, column).ok_or_else(|| wrong(column, found))
            };
            if batch.rows > 0 {
                self.views = self.columns.iter().map(view).collect::<Result<_>>()?;
            }
            (self.at, self.left) = (0, batch.rows);
            self.batch += 1;
        }
        let cell = |(view, column): (&View, &&Column)| view.cell(self.at).map_err(|found| wrong(column, found));
        let cells = self.views.iter().zip(&self.columns).map(cell).collect::<Result<Vec<_>>>()?;
        self.at += 1;
        self.left -= 1;
        self.row += 1;
        Ok(Some(cells))
    }
}

/// One column of one batch.
struct View<'a> {
    lists: Vec<Level<'a>>,
    kind: Kind,
    numbers: Level<'a>,
}

/// One level of a column: its items, their validity and, for lists, the offsets, else the numbers.
struct Level<'a> {
    length: usize,
    /// A bit each; none if all are there.
    valid: Option<&'a [u8]>,
    data: &'a [u8],
    lists: Option<Lists>,
}

impl<'a> View<'a> {
    fn of(table: &'a Table, batch: &Batch, column: &Column) -> Option<View<'a>> {
        let header = Flat::root(&table.bytes[batch.metadata.clone()])?.table(2)?;
        let (nodes, buffers, body) = (header.pairs(1)?, header.pairs(2)?, &table.bytes[batch.body.clone()]);
        let buffer = |i: usize| -> Option<&'a [u8]> {
            let [start, length] = *buffers.get(i)?;
            body.get(start..start.checked_add(length)?)
        };
        let (mut at, mut levels) = (column.buffer, Vec::new());
        let kinds = column.lists.iter().copied().map(Some).chain([None]);
        for (lists, node) in kinds.zip(nodes.get(column.node..)?) {
            let stored = column.numbers != Kind::Null || lists.is_some();
            let size = match lists {
                Some(Lists::Offsets(size)) => size,
                Some(Lists::Fixed(_)) => 0,
                None => column.numbers.bytes(),
            };
            let valid = if stored { buffer(at)? } else { &[] };
            let data = if size > 0 { buffer(at + 1)? } else { &[] };
            at += usize::from(stored) + usize::from(size > 0);
            levels.push(Level::new(lists, *node, valid, data, size)?);
        }
        let numbers = levels.pop()?;
        let fits = levels.len() == column.lists.len() && levels.first()?.length >= batch.rows;
        fits.then_some(View { lists: levels, kind: column.numbers, numbers })
    }

    fn cell(&self, row: usize) -> Result<List, String> {
        let damaged = || "offsets that lead outside: the file is damaged".to_string();
        let items = |lists: &Level, index: usize, below: &Level| lists.items(index, below.length).ok_or_else(damaged);
        let inner = match &self.lists[..] {
            [only] => vec![items(only, row, &self.numbers)?],
            [outer, inner] => {
                items(outer, row, inner)?.map(|i| items(inner, i, &self.numbers)).collect::<Result<_, _>>()?
            }
            _ => return Err("lists of another depth".to_string()),
        };
        let (mut list, mut last) = (List { numbers: self.kind.none(), ends: Vec::new() }, 0);
        for range in inner {
            if !range.is_empty() {
                // Lists may not share items, or a small file could ask for any amount of memory.
                if range.start < last {
                    return Err(damaged());
                }
                last = range.end;
                if let Some(null) = range.clone().find(|&i| !self.numbers.is_valid(i)) {
                    return Err(format!("null as number {}", list.numbers.len() + null - range.start));
                }
                self.kind.append(self.numbers.data, range, &mut list.numbers)?;
            }
            list.ends.push(list.numbers.len());
        }
        Ok(list)
    }
}

impl<'a> Level<'a> {
    /// `None` if the buffers are too short for the node's length. `size` is of an offset or a number.
    fn new(
        lists: Option<Lists>,
        [length, nulls]: [usize; 2],
        valid: &'a [u8],
        data: &'a [u8],
        size: usize,
    ) -> Option<Level<'a>> {
        // Nulls take no bytes, so that nothing else bounds how many there are said to be.
        let length = if lists.is_none() && size == 0 { length.min(MOST_NULLS) } else { length };
        // Between offsets lie the lists.
        let items = if matches!(lists, Some(Lists::Offsets(_))) { length.checked_add(1)? } else { length };
        let whole = length == 0 || data.len() >= items.checked_mul(size)?;
        // Without nulls the bits may be left out.
        let valid = (nulls > 0 && !(lists.is_none() && size == 0)).then_some(valid);
        let told = valid.is_none_or(|bits| bits.len() >= length.div_ceil(8));
        (whole && told).then_some(Level { length, valid, data, lists })
    }

    fn is_valid(&self, index: usize) -> bool {
        self.valid.is_none_or(|bits| bits.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1))
    }

    /// The items of list `index` among the `below` there are; a null list has none.
    fn items(&self, index: usize, below: usize) -> Option<Range<usize>> {
        if !self.is_valid(index) {
            return Some(0..0);
        }
        let offset = |i: usize| match self.lists? {
            Lists::Offsets(4) => usize::try_from(i32::from_le_bytes(array(self.data, i.checked_mul(4)?)?)).ok(),
            Lists::Offsets(_) => usize::try_from(i64::from_le_bytes(array(self.data, i.checked_mul(8)?)?)).ok(),
            Lists::Fixed(size) => i.checked_mul(size),
        };
        let (start, end) = (offset(index)?, offset(index + 1)?);
        (start <= end && end <= below).then_some(start..end)
    }
}

impl Kind {
    fn bytes(self) -> usize {
        match self {
            Kind::Signed(bytes) | Kind::Unsigned(bytes) | Kind::Float(bytes) => bytes,
            Kind::Null => 0,
        }
    }

    fn none(self) -> Numbers {
        match self {
            Kind::Float(_) => Numbers::Float(Vec::new()),
            Kind::Signed(8) | Kind::Unsigned(4 | 8) | Kind::Null => Numbers::I64(Vec::new()),
            Kind::Signed(_) | Kind::Unsigned(_) => Numbers::I32(Vec::new()),
        }
    }

    fn append(self, data: &[u8], range: Range<usize>, to: &mut Numbers) -> Result<(), String> {
        let size = self.bytes();
        if size == 0 {
            return Err("null as number 0".to_string());
        }
        let items = data.get(range.start * size..range.end * size).unwrap_or_default().chunks_exact(size);
        let bits = |item: &[u8]| item.iter().rev().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        let shift = 64 - 8 * size as u32;
        match (self, to) {
            (Kind::Float(2), Numbers::Float(to)) => {
                to.extend(items.map(|item| half::f16::from_bits(bits(item) as u16).to_f64()));
            }
            (Kind::Float(4), Numbers::Float(to)) => {
                to.extend(items.map(|item| f64::from(f32::from_bits(bits(item) as u32))));
            }
            (Kind::Float(_), Numbers::Float(to)) => to.extend(items.map(|item| f64::from_bits(bits(item)))),
            (Kind::Signed(_), Numbers::I32(to)) => {
                to.extend(items.map(|item| ((bits(item) << shift) as i64 >> shift) as i32));
            }
            (Kind::Unsigned(_), Numbers::I32(to)) => to.extend(items.map(|item| bits(item) as i32)),
            (_, Numbers::I64(to)) => to.extend(items.map(|item| bits(item) as i64)),
            _ => return Err("another type".to_string()),
        }
        Ok(())
    }
}
