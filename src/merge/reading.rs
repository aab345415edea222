//! The tensors of a plan, read from the models' files, within the memory a merge may take.

use super::methods::{Inputs, Read};
use super::model::Reader;
use super::plan::{Piece, Plan, Planned};
use crate::device::Device;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Reads a plan's tensors; any number of threads may at once.
pub(super) struct Reading<'a> {
    plan: &'a Plan,
    /// Bytes of mapped files that may be read before their pages are let go.
    limit: u64,
    /// Bytes read since.
    touched: AtomicU64,
}

impl<'a> Reading<'a> {
    /// For a merge that keeps within `memory` bytes.
    pub fn new(plan: &'a Plan, memory: u64) -> Reading<'a> {
        Reading { plan, limit: memory / 4, touched: AtomicU64::new(0) }
    }

    /// Called by all threads; letting go of pages that another thread reads only makes it fetch them again.
    fn touch(&self, bytes: u64) {
        if self.touched.fetch_add(bytes, Ordering::Relaxed) + bytes > self.limit {
            self.touched.store(0, Ordering::Relaxed);
            self.plan.models.iter().for_each(|model| model.folder.tensors.release());
        }
    }

    /// What `work` makes of the tensors that `tensor` is merged from.
    pub async fn with<R>(
        &self,
        tensor: &Planned,
        device: Option<&Device>,
        work: impl AsyncFnOnce(&Inputs<'_>) -> Result<R>,
    ) -> Result<R> {
        let plan = self.plan;
        // Blocks of several models are read in turn, which looks like no order to the system.
        for piece in tensor.base.iter().chain(&tensor.models) {
            plan.models[piece.model].folder.tensors.prefetch(&piece.stored);
        }
        let sources = Sources::new(plan, tensor)?;
        let sources = &sources;
        let read = |piece: &Piece| {
            let (reader, model) = (sources.of(piece)?, piece.model);
            let table = sources.tables.get(&model);
            let padding = table.map_or(&[][..], |table| table.as_slice());
            let columns = tensor.shape.get(1..).map_or(1, |rest| rest.iter().product::<usize>()).max(1);
            let width = plan.models[model].folder.tensors.dtype(&piece.stored)?.block().map_or(4, |(_, width)| width);
            Ok(move |start: usize, out: &mut [f32]| {
                self.touch((out.len() * width.min(4)) as u64);
                match (&plan.vocabulary, tensor.by_token) {
                    (Some(vocabulary), true) => vocabulary.read(model, &sources.readers, columns, padding, start, out),
                    _ => reader.read(start, out),
                }
            })
        };
        let base = tensor.base.as_ref().map(&read).transpose()?;
        let models = tensor.models.iter().map(&read).collect::<Result<Vec<_>>>()?;
        work(&Inputs {
            shape: &tensor.shape,
            base: base.as_ref().map(|read| read as &Read),
            models: models.iter().map(|read| read as &Read).collect(),
            device,
        })
        .await
    }
}

/// The tensors of all models that a tensor is made from.
struct Sources<'p> {
    readers: Vec<Reader<'p>>,
    /// Which reader is that of a piece.
    pieces: Vec<Piece>,
    /// By model, the row that fills up its vocabulary.
    tables: BTreeMap<usize, Vec<f32>>,
}

impl<'p> Sources<'p> {
    fn new(plan: &'p Plan, tensor: &'p Planned) -> Result<Sources<'p>> {
        let own: Vec<&Piece> = tensor.base.iter().chain(&tensor.models).collect();
        let mut sources = Sources { readers: Vec::new(), pieces: Vec::new(), tables: BTreeMap::new() };
        let (Some(vocabulary), true) = (&plan.vocabulary, tensor.by_token) else {
            for piece in own {
                sources.readers.push(plan.models[piece.model].reader(&piece.stored)?);
                sources.pieces.push(piece.clone());
            }
            return Ok(sources);
        };
        // A token that a model lacks may come from any other.
        let name = own.first().map_or("", |piece| piece.name.as_str());
        for (i, model) in plan.models.iter().enumerate() {
            let stored = model.stored_or_tied(name).ok_or_else(|| {
                let complaint = model.reference.complaint().expected(format!("a tensor `{name}`"));
                complaint.found("none").error()
            })?;
            let reader = model.reader(stored)?;
            let shape = model.shape(stored)?;
            let columns = shape.get(1..).map_or(1, |rest| rest.iter().product::<usize>());
            let count = shape.first().copied().unwrap_or(0);
            sources.tables.insert(i, vocabulary.padding(i, &reader, count, columns)?);
            sources.readers.push(reader);
            sources.pieces.push(Piece { model: i, name: name.to_string(), stored: stored.to_string() });
        }
        Ok(sources)
    }

    fn of(&self, piece: &Piece) -> Result<&Reader<'p>> {
        let same = |own: &Piece| own.model == piece.model && own.stored == piece.stored;
        let index = self.pieces.iter().position(same);
        index.and_then(|i| self.readers.get(i)).ok_or_else(|| Error::internal("a piece without its reader"))
    }
}
