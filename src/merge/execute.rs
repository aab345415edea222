//! The work of a merge: a few tensors at a time, each to its place in its file, so that one is computed while another is
//! written.

use super::making::Making;
use super::output::Shard;
use super::plan::{Plan, Planned};
use super::run::{MergeOptions, Progress, Stage};
use crate::device::Device;
use crate::formats::Draft;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Tensors in the making. Each one's values are computed on all cores; more of them hide the time of writing.
const IN_FLIGHT: usize = 3;

/// Writes every file that is not there yet, with the arithmetic on `device` where it can do it.
///
/// Errors are those of the first tensor that fails; [`Error::Cancelled`] when `progress` breaks.
pub(super) async fn write_shards(
    plan: &Plan,
    shards: &[Shard],
    options: &MergeOptions,
    device: Option<&Device>,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<()> {
    let total = shards.iter().map(|shard| shard.bytes).sum();
    let mut done = shards.iter().filter(|shard| shard.path.is_file()).map(|shard| shard.bytes).sum();
    let stop = AtomicBool::new(progress(Progress { stage: Stage::Writing, done, total }).is_break());
    let tensors = plan.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let left = shards.iter().filter(|shard| !shard.path.is_file());
    let queue = Mutex::new(Queue { left: Box::new(left), current: None, next: 0, count: 0 });
    let work = Work { making: Making::new(plan, options, device), tensors, queue, stop };
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
    making: Making<'a>,
    tensors: BTreeMap<&'a str, &'a Planned>,
    queue: Mutex<Queue<'a>>,
    /// Somebody failed, or the user wants no more.
    stop: AtomicBool,
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
        let mut put = |bytes: &[u8]| {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            writer.write_all(bytes).map_err(Error::io("write", task.file.path))?;
            // Nobody listens once the merge has failed.
            let _ = sender.send(bytes.len() as u64);
            Ok(())
        };
        pollster::block_on(self.making.tensor(tensor, &mut put))?;
        // On its way to the disk while other tensors are made, rather than all at the end.
        if place.end - place.start >= SYNCED_FROM {
            writer.sync_data().map_err(Error::io("sync", task.file.path))?;
        }
        match task.file.left.fetch_sub(1, Ordering::AcqRel) {
            1 => lock(&task.file.draft).take().map_or(Ok(()), Draft::finish),
            _ => Ok(()),
        }
    }
}
