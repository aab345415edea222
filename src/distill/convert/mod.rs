//! Teacher records between DistillKit's files and shard sets.
//!
//! [`import`] reads any of DistillKit's three stored forms ([`crate::shards::foreign`]) into a shard set with the
//! tokens beside it; [`export`] writes a shard set in DistillKit's new form. Both read and write a row at a time,
//! whatever the size of the files. `docs/distillkit.md` says what is kept and what cannot be.

mod cells;
mod export;
mod import;
mod record;
mod source;

pub use export::{ExportOptions, Exported, export};
pub use import::{ImportOptions, Imported, import};
pub use record::Values;

use crate::Error;
use std::path::Path;

/// DistillKit's capture writes its settings under this name, beside the data.
pub const CONFIG_FILE: &str = "compression_config.yaml";
/// The tokens of an imported set, for the recipe's `dataset.train`.
pub const TOKENS_FILE: &str = "tokens.jsonl";

/// How far a conversion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Tokens converted.
    pub rows: u64,
    /// Tokens of the whole.
    pub total: u64,
}

/// A fault of one position, with the place it was found at.
fn at_position(fault: crate::shards::foreign::Fault, file: &Path, row: u64, position: usize) -> Error {
    let field = format!("row {row}, position {position}: `{}`", fault.field);
    let complaint = Error::file(file).field(field).expected(fault.expected).found(fault.found);
    complaint.help("the file is damaged, or was made with other settings than those given").error()
}
