//! The work of a merge: a few tensors at a time, each to its place in its file, so that one is computed while another is
//! written.

use super::methods::{Inputs, Read, random_key};
use super::model::Reader;
use super::output::Shard;
use super::plan::{Piece, Plan, Planned};
use super::run::{MergeOptions, Progress, Stage};
use crate::formats::{Draft, Dtype};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Tensors in the making. Each one's values are computed on all cores; more of them hide the time of writing.
const IN_FLIGHT: usize = 3;

/// Writes every file that is not there yet.
///
/// Errors are those of the first tensor that fails; [`Error::Cancelled`] when `progress` breaks.
pub(super) fn write_shards(
    plan: &Plan,
    shards: &[Shard],
    options: &MergeOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<()> {
    let total = shards.iter().map(|shard| shard.bytes).sum();
    let mut done = shards.iter().filter(|shard| shard.path.is_file()).map(|shard| shard.bytes).sum();
    let stop = AtomicBool::new(progress(Progress { stage: Stage::Writing, done, total }).is_break());
    let tensors = plan.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let left = shards.iter().filter(|shard| !shard.path.is_file());
    let queue = Mutex::new(Queue { left: Box::new(left), current: None, next: 0, count: 0 });
    let work = Work { plan, options, tensors, queue, stop, touched: AtomicU64::new(0) };
    let failed = thread::scope(|scope| {
        let (sender, receiver) = channel();
        let start = |_| {
            let (work, sender) = (&work, sender.clone());
            scope.spawn(move || work.all(&sender).err())
        };
        let threads: Vec<_> = (0..IN_FLIGHT).map(start).collect();
        drop(sender);
        for bytes in receiver {
            done += bytes;
            if progress(Progress { stage: Stage::Writing, done, total }).is_break() {
                work.stop.store(true, Ordering::Relaxed);
            }
        }
        let panicked = || Some((0, Error::internal("a thread of a merge failed")));
        let failed = threads.into_iter().filter_map(|thread| thread.join().unwrap_or_else(|_| panicked()));
        failed.collect::<Vec<(usize, Error)>>()
    });
    // Those that were stopped because another failed say nothing.
    let (stopped, failed): (Vec<_>, Vec<_>) =
        failed.into_iter().partition(|(_, error)| matches!(error, Error::Cancelled));
    match failed.into_iter().min_by_key(|(index, _)| *index) {
        Some((_, error)) => Err(error),
        None if stopped.is_empty() => Ok(()),
        None => Err(Error::Cancelled),
    }
}

/// Bytes of a tensor from which it is sent to the disk by itself.
const SYNCED_FROM: u64 = 8 << 20;

struct Work<'a> {
    plan: &'a Plan,
    options: &'a MergeOptions,
    tensors: BTreeMap<&'a str, &'a Planned>,
    queue: Mutex<Queue<'a>>,
    /// Somebody failed, or the user wants no more.
    stop: AtomicBool,
    /// Bytes of mapped files read since their pages were let go.
    touched: AtomicU64,
}

/// What is still to do.
struct Queue<'a> {
    left: Box<dyn Iterator<Item = &'a Shard> + Send + 'a>,
    current: Option<Arc<Open<'a>>>,
    /// The next tensor of the current file.
    next: usize,
    /// How many tensors were handed out.
    count: usize,
}

/// A file that is being written.
struct Open<'a> {
    path: &'a Path,
    draft: Mutex<Option<Draft<'a>>>,
    places: Vec<(&'a str, Range<u64>)>,
    left: AtomicUsize,
}

/// A tensor to be made.
struct Task<'a> {
    file: Arc<Open<'a>>,
    place: usize,
    number: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Queue<'a> {
    fn take(&mut self) -> Result<Option<Task<'a>>> {
        loop {
            if let Some(file) = self.current.as_ref().filter(|file| self.next < file.places.len()) {
                let task = Task { file: file.clone(), place: self.next, number: self.count };
                self.next += 1;
                self.count += 1;
                return Ok(Some(task));
            }
            let Some(shard) = self.left.next() else { return Ok(None) };
            let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
            let draft = Draft::begin(&shard.path, &shard.specs, &metadata)?;
            let places: Vec<_> = draft.places.iter().map(|(spec, place)| (spec.name.as_str(), place.clone())).collect();
            let left = AtomicUsize::new(places.len());
            self.current = Some(Arc::new(Open { path: &shard.path, draft: Mutex::new(Some(draft)), places, left }));
            self.next = 0;
        }
    }
}

impl Work<'_> {
    /// Makes tensors until there are none left; the number of the tensor comes with an error.
    fn all(&self, sender: &Sender<u64>) -> std::result::Result<(), (usize, Error)> {
        loop {
            let mut queue = lock(&self.queue);
            let number = queue.count;
            let failed = |error| {
                self.stop.store(true, Ordering::Relaxed);
                (number, error)
            };
            let task = queue.take().map_err(failed)?;
            drop(queue);
            let Some(task) = task else { return Ok(()) };
            self.one(&task, sender).map_err(|error| {
                self.stop.store(true, Ordering::Relaxed);
                (task.number, error)
            })?;
        }
    }

    fn one(&self, task: &Task, sender: &Sender<u64>) -> Result<()> {
        let (name, place) = &task.file.places[task.place];
        let tensor = self.tensors.get(name).ok_or_else(|| Error::internal("a tensor without a plan"))?;
        let writer = lock(&task.file.draft).as_ref().map(|draft| draft.writer(place)).transpose()?;
        let mut writer = writer.ok_or_else(|| Error::internal("a file closed before it was whole"))?;
        let mut written = 0;
        let made = self.tensor(tensor, &mut |bytes| {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            writer.write_all(bytes).map_err(Error::io("write", task.file.path))?;
            written += bytes.len() as u64;
            // Nobody listens once the merge has failed.
            let _ = sender.send(bytes.len() as u64);
            Ok(())
        });
        made.map_err(|error| error.inside(format!("merging `{}`", tensor.name)))?;
        if written != place.end - place.start {
            return Err(Error::internal(format!("{written} bytes of `{name}` instead of {}", place.end - place.start)));
        }
        // On its way to the disk while other tensors are made, rather than all at the end.
        if written >= SYNCED_FROM {
            writer.sync_data().map_err(Error::io("sync", task.file.path))?;
        }
        match task.file.left.fetch_sub(1, Ordering::AcqRel) {
            1 => lock(&task.file.draft).take().map_or(Ok(()), Draft::finish),
            _ => Ok(()),
        }
    }

    fn tensor(&self, tensor: &Planned, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (plan, limit) = (self.plan, self.options.memory / 4);
        let touched = &self.touched;
        // Called by all threads; letting go of pages that another thread reads only makes it fetch them again.
        let touch = |bytes: usize| {
            let bytes = bytes as u64;
            if touched.fetch_add(bytes, Ordering::Relaxed) + bytes > limit {
                touched.store(0, Ordering::Relaxed);
                plan.models.iter().for_each(|model| model.folder.tensors.release());
            }
        };
        // Blocks of several models are read in turn, which looks like no order to the system.
        for piece in tensor.base.iter().chain(&tensor.models) {
            plan.models[piece.model].folder.tensors.prefetch(&piece.stored);
        }
        let sources = Sources::new(plan, tensor)?;
        let (sources, touch) = (&sources, &touch);
        let read = |piece: &Piece| {
            let (reader, model) = (sources.of(piece)?, piece.model);
            let table = sources.tables.get(&model);
            let padding = table.map_or(&[][..], |table| table.as_slice());
            let columns = tensor.shape.get(1..).map_or(1, |rest| rest.iter().product::<usize>()).max(1);
            let width = plan.models[model].folder.tensors.dtype(&piece.stored)?.block().map_or(4, |(_, width)| width);
            Ok(move |start: usize, out: &mut [f32]| {
                touch(out.len() * width.min(4));
                match (&plan.vocabulary, tensor.by_token) {
                    (Some(vocabulary), true) => vocabulary.read(model, &sources.readers, columns, padding, start, out),
                    _ => reader.read(start, out),
                }
            })
        };
        let base = tensor.base.as_ref().map(&read).transpose()?;
        let models = tensor.models.iter().map(&read).collect::<Result<Vec<_>>>()?;
        let inputs = Inputs {
            shape: &tensor.shape,
            base: base.as_ref().map(|read| read as &Read),
            models: models.iter().map(|read| read as &Read).collect(),
        };
        let key = random_key(self.options.seed, &tensor.name);
        let kernel = tensor.method.prepare(&inputs, &tensor.settings, key)?;
        let band = (self.options.memory / 256).clamp(1 << 16, 1 << 22) as usize;
        let finish = |start: usize, values: &[f32]| encode(tensor, start, values);
        inputs.compute(&kernel, band, finish, |parts, _| parts.iter().try_for_each(|part| put(part)))
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

/// The bytes of `values`, which the type must be able to hold.
fn encode(tensor: &Planned, start: usize, values: &[f32]) -> Result<Vec<u8>> {
    let most = match tensor.dtype {
        Dtype::F16 => 65_519.0,
        Dtype::Bf16 => 3.395e38,
        _ => f32::MAX,
    };
    if let Some(at) = values.iter().position(|x| x.is_nan() || x.abs() > most) {
        let complaint =
            Error::at(format!("value {}", start + at)).expected(format!("a number that {} holds", tensor.dtype));
        return complaint
            .found(values[at])
            .help("set `out_dtype` to `bfloat16` or `float32`, or lower the weights")
            .err();
    }
    let mut bytes = Vec::with_capacity(values.len() * 4);
    tensor.dtype.encode(values, &mut bytes);
    Ok(bytes)
}
