//! Small tables of text with aligned columns.

use std::fmt;

/// Which side a column keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows of cells that print in columns, two spaces apart and indented by two.
#[derive(Clone, Debug)]
pub struct Table {
    align: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(columns: &[(&str, Align)]) -> Table {
        let header = columns.iter().map(|(name, _)| name.to_string()).collect();
        Table { align: columns.iter().map(|(_, align)| *align).collect(), rows: vec![header] }
    }

    /// A table of words without headings.
    pub fn plain(columns: usize) -> Table {
        Table { align: vec![Align::Left; columns], rows: Vec::new() }
    }

    /// Adds a row; missing cells stay empty.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |cell: &String| cell.chars().count();
        let widest = |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(width).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.align.len()).map(widest).collect();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, align), width) in row.iter().zip(&self.align).zip(&widths) {
                line.push_str("  ");
                line.push_str(&match align {
                    Align::Left => format!("{cell:<width$}"),
                    Align::Right => format!("{cell:>width$}"),
                });
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_left_and_numbers_right() {
        let mut table = Table::new(&[("", Align::Left), ("nll", Align::Right), ("note", Align::Left)]);
        table.row(["teacher", "2.5", "é"]);
        table.row(["sft", "13.25"]);
        let lines = ["             nll  note", "  teacher    2.5  é", "  sft      13.25", ""];
        assert_eq!(table.to_string(), lines.join("\n"));
    }
}
