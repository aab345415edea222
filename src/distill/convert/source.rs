//! DistillKit's files as documents: which rows there are, which tokens, and where documents part.

use crate::formats::tables::{List, Table, files};
use crate::shards::foreign::Form;
use crate::{Error, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};

const IDS: &str = "input_ids";
const MASK: &str = "attention_mask";
const LABELS: &str = "labels";
/// The label of a token that is not learned (PyTorch's `ignore_index`).
const NOT_LEARNED: i64 = -100;

/// The files of one data set.
pub(super) struct Source {
    files: Vec<PathBuf>,
    /// How their records are stored.
    pub form: Form,
    /// `input_ids` and what else there is of `attention_mask` and `labels`.
    columns: Vec<&'static str>,
}

/// One row's tokens.
pub(super) struct Tokens {
    /// The file.
    pub file: PathBuf,
    /// The row of the file.
    pub row: u64,
    /// Token ids.
    pub ids: Vec<u32>,
    /// The documents among them; what is in none is padding.
    pub documents: Vec<Range<usize>>,
    /// Which are learned; all, where the data does not say.
    pub learned: Option<Vec<bool>>,
}

impl Source {
    /// Finds the files and recognises their form, which must be the same in all.
    pub fn open(path: &Path) -> Result<Source> {
        let mut source: Option<Source> = None;
        let files = files(path)?;
        for file in &files {
            let table = Table::open(file)?;
            let names = table.columns();
            let Some(form) = Form::recognise(names.iter().copied()) else {
                let forms = [Form::Raw, Form::Legacy, Form::New].map(|form| form.columns().join(" + "));
                let complaint = Error::file(file).field("columns").expected(forms.join(", or "));
                return complaint.found(names.join(", ")).help("DistillKit writes these for teacher logits").err();
            };
            let present = |name: &&str| names.contains(name);
            let columns: Vec<&str> = [IDS, MASK, LABELS].into_iter().filter(present).collect();
            if columns.first() != Some(&IDS) {
                let complaint = Error::file(file).field("columns").expected(format!("`{IDS}`")).found(names.join(", "));
                return complaint.help("records without their tokens cannot be trained on").err();
            }
            let first = source.get_or_insert(Source { files: files.clone(), form, columns: columns.clone() });
            if (first.form, &first.columns) != (form, &columns) {
                let words = |form: Form, columns: &[&str]| format!("the {form} form with {}", columns.join(", "));
                let complaint = Error::file(file).expected(words(first.form, &first.columns));
                let complaint = complaint.found(words(form, &columns));
                return complaint.help("convert files of different forms one by one").err();
            }
        }
        source.ok_or_else(|| Error::internal("no file after a look for files"))
    }

    /// Hands every row's tokens to `visit`.
    pub fn tokens(&self, visit: &mut dyn FnMut(Tokens) -> Result<()>) -> Result<()> {
        self.read(&[], &mut |tokens, _| visit(tokens))
    }

    /// Hands every row's tokens and the columns of its records, in the order of [`Form::columns`], to `visit`.
    pub fn records(&self, visit: &mut dyn FnMut(Tokens, Vec<List>) -> Result<()>) -> Result<()> {
        self.read(self.form.columns(), visit)
    }

    fn read(&self, more: &[&'static str], visit: &mut dyn FnMut(Tokens, Vec<List>) -> Result<()>) -> Result<()> {
        let columns: Vec<(&str, usize)> =
            self.columns.iter().map(|&name| (name, 1)).chain(more.iter().map(|&name| (name, 2))).collect();
        for file in &self.files {
            let table = Table::open(file)?;
            let mut rows = table.read(&columns)?;
            let mut row = 0;
            while let Some(mut cells) = rows.next()? {
                let records = cells.split_off(self.columns.len());
                visit(self.row(file, row, &cells)?, records)?;
                row += 1;
            }
        }
        Ok(())
    }

    fn row(&self, file: &Path, row: u64, cells: &[List]) -> Result<Tokens> {
        let wrong = |name: &str, expected: &str, found: String| {
            Error::file(file).field(format!("row {row}: `{name}`")).expected(expected).found(found).error()
        };
        let column = |wanted: &str| -> Result<Option<Vec<i64>>> {
            let found = self.columns.iter().zip(cells).find(|(name, _)| **name == wanted);
            let Some((name, list)) = found else { return Ok(None) };
            let numbers = list.numbers.integers(0..list.numbers.len());
            numbers.map(Some).ok_or_else(|| wrong(name, "integers", "floating-point numbers".to_string()))
        };
        let ids = column(IDS)?.unwrap_or_default();
        let id = |(i, &id): (usize, &i64)| {
            u32::try_from(id).map_err(|_| wrong(IDS, "token ids", format!("{id} at position {i}")))
        };
        let ids: Vec<u32> = ids.iter().enumerate().map(id).collect::<Result<_>>()?;
        let same = |name: &str, numbers: &Option<Vec<i64>>| match numbers {
            Some(numbers) if numbers.len() != ids.len() => {
                Err(wrong(name, &format!("{} numbers, as many as `{IDS}` has", ids.len()), numbers.len().to_string()))
            }
            _ => Ok(()),
        };
        let (mask, labels) = (column(MASK)?, column(LABELS)?);
        same(MASK, &mask)?;
        same(LABELS, &labels)?;
        let documents = segments(mask.as_deref(), ids.len());
        let learned = labels.map(|labels| labels.iter().map(|&label| label != NOT_LEARNED).collect());
        Ok(Tokens { file: file.to_path_buf(), row, ids, documents, learned })
    }
}

/// Runs of one number in the mask, which in packed data numbers the documents; 0 is padding.
fn segments(mask: Option<&[i64]>, tokens: usize) -> Vec<Range<usize>> {
    let Some(mask) = mask else { return (tokens > 0).then_some(0..tokens).into_iter().collect() };
    let mut at = 0;
    let runs = mask.chunk_by(|a, b| a == b).map(|run| {
        at += run.len();
        (run[0], at - run.len()..at)
    });
    runs.filter(|(segment, _)| *segment != 0).map(|(_, range)| range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_part_where_the_segment_changes_and_padding_is_none() {
        assert_eq!(segments(Some(&[1, 1, 2, 3, 3, 0, 0]), 7), [0..2, 2..3, 3..5]);
        assert_eq!(segments(Some(&[0, 1, 1, 0, 1]), 5), [1..3, 4..5]);
        assert_eq!(segments(None, 3).as_slice(), std::slice::from_ref(&(0..3)));
        assert!(segments(None, 0).is_empty() && segments(Some(&[]), 0).is_empty());
    }
}
