//! A packed batch into the externals of a recorded graph.

use crate::Result;
use crate::data::packing::{Batch, IGNORE};
use crate::graph::Store;
use crate::ops::segments_of;

/// Writes what every forward pass needs: `PREFIX.tokens`, `.positions`, `.query_range`, `.labels`.
pub fn write_batch(store: &Store, prefix: &str, batch: &Batch) -> Result<()> {
    store.write(&format!("{prefix}.tokens"), &batch.tokens)?;
    store.write(&format!("{prefix}.positions"), &batch.positions)?;
    store.write(&format!("{prefix}.query_range"), &batch.query_range)?;
    store.write(&format!("{prefix}.labels"), &batch.labels)
}

/// Writes what only gradients need: which queries see a key, and the rows sorted by token.
pub fn write_training_batch(store: &Store, prefix: &str, batch: &Batch) -> Result<()> {
    write_batch(store, prefix, batch)?;
    store.write(&format!("{prefix}.key_range"), &batch.key_range)?;
    let (order, starts, tokens) = segments_of(&batch.tokens);
    store.write(&format!("{prefix}.segment_order"), &order)?;
    store.write(&format!("{prefix}.segment_start"), &starts)?;
    store.write(&format!("{prefix}.segment_token"), &tokens)
}

/// Writes `PREFIX.weights`: `weight` for each row that has a label, 0 for the others.
pub fn write_weights(store: &Store, prefix: &str, batch: &Batch, weight: f64) -> Result<()> {
    let of = |label: &u32| if *label == IGNORE { 0.0 } else { weight as f32 };
    store.write(&format!("{prefix}.weights"), &batch.labels.iter().map(of).collect::<Vec<f32>>())
}
