//! The cells of a row as numbers of one position, and what the raw form's numbers are.

use super::at_position;
use super::record::Values;
use super::source::Source;
use crate::formats::tables::List;
use crate::shards::foreign::{Fault, Form, Position};
use crate::{Error, Result};

/// A fault in one of the form's columns.
pub(super) fn fault(form: Form, column: usize, expected: &str, found: impl std::fmt::Display) -> Fault {
    Fault { field: form.columns()[column], expected: expected.to_string(), found: found.to_string() }
}

/// The integers of position `at` in one of the form's columns.
pub(super) fn integers(cells: &[List], column: usize, at: usize, form: Form) -> Result<Vec<i64>, Fault> {
    let list = &cells[column];
    list.numbers.integers(list.range(at)).ok_or_else(|| fault(form, column, "integers", "floating-point numbers"))
}

/// The floating-point numbers of position `at` in one of the form's columns.
pub(super) fn floats(cells: &[List], column: usize, at: usize, form: Form) -> Result<&[f64], Fault> {
    let list = &cells[column];
    // An empty list may come as integers, where a writer had nothing to tell its type by.
    match list.numbers.floats(list.range(at)) {
        Some(floats) => Ok(floats),
        None if list.range(at).is_empty() => Ok(&[]),
        None => Err(fault(form, column, "floating-point numbers", "integers")),
    }
}

/// Position `at` of the raw form.
pub(super) fn raw(cells: &[List], at: usize) -> Result<Position, Fault> {
    let id = |id: i64| u32::try_from(id).map_err(|_| fault(Form::Raw, 0, "token ids", id));
    let ids: Vec<u32> = integers(cells, 0, at, Form::Raw)?.into_iter().map(id).collect::<Result<_, _>>()?;
    let values = floats(cells, 1, at, Form::Raw)?.to_vec();
    match ids.len() == values.len() {
        true => Ok(Position { ids, values }),
        false => Err(fault(Form::Raw, 1, &format!("{} numbers, as many as ids", ids.len()), values.len())),
    }
}

/// What the raw form's values are, why, and the entries of a position: from the first row that has any.
pub(super) fn sniff(source: &Source, wanted: Option<Values>) -> Result<(Values, String, usize)> {
    /// Above this, no rounding makes a log-probability of it.
    const SLACK: f64 = 1e-3;
    /// Positions looked at.
    const MOST: usize = 1024;
    let mut found = None;
    let looked = source.records(&mut |row, cells| {
        for at in 0..cells[0].ends.len().min(MOST) {
            let position = raw(&cells, at).map_err(|fault| at_position(fault, &row.file, row.row, at))?;
            let (_, _, k) = found.get_or_insert((Values::LogProbs, String::new(), position.ids.len()));
            let sum: f64 = position.values.iter().map(|v| v.exp()).sum();
            let place = format!("{}, row {}, position {at}", row.file.display(), row.row);
            if let Some(value) = position.values.iter().find(|value| **value > SLACK) {
                found = Some((Values::Logits, format!("{value} above 0 at {place}"), *k));
                return Err(Error::Cancelled);
            }
            if sum > 1.0 + SLACK {
                found = Some((Values::Logits, format!("exponentials that sum to {sum} at {place}"), *k));
                return Err(Error::Cancelled);
            }
        }
        // One row with positions is enough.
        if found.is_some() { Err(Error::Cancelled) } else { Ok(()) }
    });
    match (looked, found) {
        (Ok(()) | Err(Error::Cancelled), Some((_, _, k))) if wanted.is_some() => {
            Ok((wanted.unwrap_or(Values::LogProbs), "as told".to_string(), k))
        }
        (Err(Error::Cancelled), Some((Values::Logits, why, k))) => Ok((Values::Logits, why, k)),
        (Err(Error::Cancelled), Some((values, _, k))) => {
            Ok((values, "none above 0, exponentials that sum to at most 1".to_string(), k))
        }
        (Err(error), _) => Err(error),
        (Ok(()), _) => Error::at("the data set").expected("at least one position with a record").found("none").err(),
    }
}
