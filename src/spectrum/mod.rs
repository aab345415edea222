//! Which layers carry signal: Spectrum's score (arXiv 2406.06623) from the singular values of every weight matrix, the
//! best layers of each type, and the list of them that `distill` recipes and axolotl train.
//!
//! [`modules`] lists what a model has, [`wanted`] takes the types asked for, [`scan`] scores them one tensor at a time,
//! [`Results`] holds the scores and reads and writes Spectrum's JSON files, [`choose`] takes the best of each type,
//! [`bars`] and [`html`] draw
//! them, and [`write`] writes all of it.

mod bars;
mod choice;
mod files;
mod listing;
mod report;
mod results;
mod scan;
mod score;
mod singular;

pub use bars::{Bar, Bars, bars};
pub use choice::{By, Choice, Chosen, Kind, Rounding, choose};
pub use files::{Files, base_name, write};
pub use listing::{Layers, Module, modules, unscored, wanted};
pub use report::{ReportData, html};
pub use results::{Results, Scored};
pub use scan::{Progress, scan};
pub use score::{Score, mp_edge, mp_median, score, threshold};
#[cfg(not(target_family = "wasm"))]
pub(crate) use singular::gram;
pub use singular::singular_values;
