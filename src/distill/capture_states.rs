//! What is particular to recording a teacher's hidden states.

use crate::graph::{Graph, Runner, Tensor};
use crate::losses::{Head, evaluate_head};
use crate::models::{DecoderConfig, Taps};
use crate::shards::{Record, Records};
use crate::{Error, Result};

/// The record as the shard set's spec says it: of [`Record::Hidden`], width and final state come from the model, and
/// the states asked for are put in order. Layers that the model does not have are refused, all at once.
pub(super) fn complete(record: &Record, config: &DecoderConfig) -> Result<Record> {
    let Record::Hidden { states, layers, .. } = record else { return Ok(record.clone()) };
    let last = config.num_hidden_layers as u32;
    let outside: Vec<String> = layers.iter().filter(|layer| **layer > last).map(u32::to_string).collect();
    if !outside.is_empty() {
        return Error::at("capture")
            .field("`layers`")
            .expected(format!("0 (the embeddings) to {last} (the final state, which is always stored)"))
            .found(outside.join(", "))
            .help(format!("the model has {last} blocks"))
            .err();
    }
    let mut layers: Vec<u32> = layers.iter().copied().chain([last]).collect();
    layers.sort_unstable();
    layers.dedup();
    Ok(Record::Hidden { states: *states, hidden_size: config.hidden_size as u32, layers })
}

/// The states that a record wants of a forward pass.
pub(super) fn taps(record: &Record) -> Taps {
    match record {
        Record::Hidden { layers, .. } => {
            Taps { states: layers.iter().map(|&layer| layer as usize).collect(), ..Taps::default() }
        }
        _ => Taps::default(),
    }
}

/// Makes the tapped `states` and the labels' NLL outputs of the graph.
pub(super) fn outputs(
    g: &mut Graph,
    hidden: Tensor,
    states: &[(usize, Tensor)],
    head: &Head<'_>,
    [labels, weights]: [Tensor; 2],
    chunk_rows: usize,
) -> Result<()> {
    let measured = evaluate_head(g, hidden, head, labels, weights, &[], chunk_rows)?;
    g.output("nll", measured.nll);
    for (i, (_, state)) in states.iter().enumerate() {
        g.output(&state_name(i), *state);
    }
    Ok(())
}

fn state_name(i: usize) -> String {
    format!("state.{i}")
}

/// The states of some rows of the batch that has just run.
pub(super) fn read(runner: &Runner, kept: &[usize], hidden_size: usize, count: usize) -> Result<Records> {
    let mut all = Vec::new();
    for i in 0..count {
        all.push(pollster::block_on(runner.read_f32(&state_name(i)))?);
    }
    let of_row = |&row: &usize| all.iter().flat_map(move |s| s[row * hidden_size..][..hidden_size].iter().copied());
    Ok(Records::Hidden { states: kept.iter().flat_map(of_row).collect() })
}
