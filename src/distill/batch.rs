//! A packed batch into the externals of a recorded graph.

use crate::Result;
use crate::data::packing::{Batch, IGNORE};
use crate::graph::Store;
use crate::nn::windows_in;
use crate::ops::segments_of;

/// Writes what every forward pass needs: `PREFIX.tokens`, `.positions`, `.query_range` (and under the sliding windows
/// that `store` has room for), `.labels`.
pub fn write_batch(store: &Store, prefix: &str, batch: &Batch) -> Result<()> {
    store.write(&format!("{prefix}.tokens"), &batch.tokens)?;
    store.write(&format!("{prefix}.positions"), &batch.positions)?;
    store.write(&format!("{prefix}.query_range"), &batch.query_range)?;
    for window in windows_in(store, prefix) {
        store.write(&format!("{prefix}.query_range.{window}"), &batch.windowed(window).0)?;
    }
    store.write(&format!("{prefix}.labels"), &batch.labels)
}

/// Writes what only gradients need: which queries see a key, and the rows sorted by token and, where positions are
/// learned, by position.
pub fn write_training_batch(store: &Store, prefix: &str, batch: &Batch) -> Result<()> {
    write_batch(store, prefix, batch)?;
    store.write(&format!("{prefix}.key_range"), &batch.key_range)?;
    for window in windows_in(store, prefix) {
        store.write(&format!("{prefix}.key_range.{window}"), &batch.windowed(window).1)?;
    }
    write_segments(store, &format!("{prefix}.segment"), &batch.tokens)?;
    let positions = format!("{prefix}.position");
    if store.contains(&format!("{positions}_order")) {
        write_segments(store, &positions, &batch.positions)?;
    }
    Ok(())
}

fn write_segments(store: &Store, name: &str, ids: &[u32]) -> Result<()> {
    let (order, starts, tokens) = segments_of(ids);
    store.write(&format!("{name}_order"), &order)?;
    store.write(&format!("{name}_start"), &starts)?;
    store.write(&format!("{name}_token"), &tokens)
}

/// Writes `PREFIX.weights`: `weight` for each row that has a label, 0 for the others.
pub fn write_weights(store: &Store, prefix: &str, batch: &Batch, weight: f64) -> Result<()> {
    let of = |label: &u32| if *label == IGNORE { 0.0 } else { weight as f32 };
    store.write(&format!("{prefix}.weights"), &batch.labels.iter().map(of).collect::<Vec<f32>>())
}
