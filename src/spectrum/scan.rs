//! Scores of a model's modules, read one tensor at a time.

use super::listing::Module;
use super::results::{Results, Scored};
use super::score::score;
use super::singular::{eigen, gram};
use crate::formats::Tensors;
use crate::{Error, Result};
use faer::Par;
use rayon::prelude::*;
use std::ops::ControlFlow;

/// Small tensors are scored side by side, one on each thread, as long as they take no more memory than this together
/// or than the largest does.
const TOGETHER: u64 = 128 << 20;

/// How far a scan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Modules scored.
    pub done: u64,
    /// Modules to score.
    pub total: u64,
}

/// Scores `modules`. No more of the model is in memory than the largest weight and its Gram matrix, or a few small ones.
///
/// Errors name every tensor that is stored in a type this crate does not read, before anything is read, and every one
/// with numbers that are not finite.
pub fn scan(
    tensors: &Tensors,
    modules: &[Module],
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Results> {
    readable(tensors, modules)?;
    let (mut scored, mut problems) = (Vec::with_capacity(modules.len()), Vec::new());
    let total = modules.len() as u64;
    for group in groups(modules) {
        if progress(Progress { done: (scored.len() + problems.len()) as u64, total }).is_break() {
            return Err(Error::Cancelled);
        }
        // Nested parallelism would make threads wait for one another.
        let outcomes: Vec<Result<Scored>> = match group {
            [module] => vec![one(tensors, module, Par::rayon(0))],
            several => several.par_iter().map(|module| one(tensors, module, Par::Seq)).collect(),
        };
        for outcome in outcomes {
            match outcome {
                Ok(module) => scored.push(module),
                Err(problem) => problems.push(problem),
            }
        }
    }
    Error::all(problems)?;
    match progress(Progress { done: total, total }) {
        ControlFlow::Continue(()) => Ok(Results { modules: scored }),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}

fn one(tensors: &Tensors, module: &Module, par: Par) -> Result<Scored> {
    let Module { rows, columns, .. } = *module;
    let values = tensors.read_f32(&module.tensor)?;
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        let complaint = Error::file(tensors.file(&module.tensor)?).field(format!("tensor `{}`", module.tensor));
        let complaint = complaint.expected("finite numbers").found(format!("{} at value {at}", values[at]));
        return complaint.help("the file is damaged, or its training diverged: take another").err();
    }
    let gram = gram(&values, rows, columns, par);
    drop(values);
    let score = score(&eigen(gram, rows.max(columns), par)?, rows, columns);
    let (name, kind) = (module.name.clone(), module.kind.clone());
    Ok(Scored { name, kind, snr: score.snr, mp_snr: Some(score.mp_snr) })
}

/// Refuses types that hold no numbers this crate reads: one message for all such tensors of a file.
fn readable(tensors: &Tensors, modules: &[Module]) -> Result<()> {
    let mut unread = Vec::new();
    for module in modules {
        if tensors.dtype(&module.tensor)?.block().is_none() {
            unread.push(module.tensor.as_str());
        }
    }
    let Some(first) = unread.first() else { return Ok(()) };
    let others = match unread.len() - 1 {
        0 => String::new(),
        others => format!(" and {others} more"),
    };
    let complaint = Error::file(tensors.file(first)?).field(format!("tensor `{first}`{others}"));
    let complaint = complaint.expected("F32, F16, BF16 or a GGUF quantisation").found(tensors.dtype(first)?);
    complaint.help("convert the weights to one of these first").err()
}

/// Bytes that scoring takes: the weight as f32, then its Gram matrix and the copy that is reduced.
fn cost(module: &Module) -> u64 {
    let (rows, columns) = (module.rows as u64, module.columns as u64);
    let small = rows.min(columns);
    4 * rows * columns + 16 * small * small
}

/// Neighbours that are scored side by side.
fn groups(modules: &[Module]) -> Vec<&[Module]> {
    let budget = modules.iter().map(cost).fold(TOGETHER, u64::max);
    let most = 4 * rayon::current_num_threads();
    let mut groups = Vec::new();
    let mut rest = modules;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |module: &&Module| {
            bytes += cost(module);
            bytes <= budget
        };
        let (group, others) = rest.split_at(rest.iter().take(most).take_while(fits).count().max(1));
        groups.push(group);
        rest = others;
    }
    groups
}
