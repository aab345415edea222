//! Shards while they are needed: brought before the step that reads them, prefetched behind the steps before it, and
//! let go of again, so that memory stays bounded whatever a set's size.

use super::cache;
use super::failure::Outcome;
use super::http::Wanted;
use super::options::Context;
use crate::platform::fs;
use crate::shards::Reader;
use futures_util::lock::Mutex;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use wasm_bindgen_futures::spawn_local;

/// Bytes of shards that are held in memory at most (but always one shard), where the browser stores nothing.
const HELD: u64 = 256 << 20;
/// Shards that are open at most.
const OPEN: usize = 64;

/// The shards of a run's sets.
#[derive(Clone)]
pub struct Shards {
    known: Rc<BTreeMap<PathBuf, Wanted>>,
    /// One download at a time: a step never waits behind more than one that was prefetched.
    line: Rc<Mutex<()>>,
    /// Those in the tree, the longest unused first, with the bytes each holds in memory.
    open: Rc<RefCell<VecDeque<(PathBuf, u64)>>>,
    context: Context,
}

impl Shards {
    /// The shards of these sets, whose manifests are in the tree. `context` hears of every download.
    pub fn new(sets: &[&Reader], context: &Context) -> Shards {
        let mut known = BTreeMap::new();
        for set in sets {
            for entry in &set.manifest().shards {
                let path = set.dir().join(&entry.file);
                // A set that the visitor chose lies in the tree.
                if !fs::exists(&path) {
                    let (url, bytes) = (path.to_string_lossy().into_owned(), Some(entry.bytes));
                    known.insert(path, Wanted { url, bytes, sha256: Some(entry.sha256.clone()) });
                }
            }
        }
        Shards { known: Rc::new(known), line: Rc::default(), open: Rc::default(), context: context.unstoppable() }
    }

    /// Waits until all of `paths` can be read.
    pub async fn need(&self, paths: &[PathBuf], context: &Context) -> Outcome<()> {
        for path in paths {
            let mut own = self.context.clone();
            own.signal = context.signal.clone();
            self.bring(path, paths, &own).await?;
        }
        Ok(())
    }

    /// Begins to bring `paths`; what goes wrong is left to whoever needs them.
    pub fn prefetch(&self, paths: Vec<PathBuf>) {
        if paths.iter().all(|path| fs::exists(path)) {
            return;
        }
        let own = self.clone();
        spawn_local(async move {
            for path in &paths {
                if own.bring(path, &paths, &own.context).await.is_err() {
                    break;
                }
            }
        });
    }

    async fn bring(&self, path: &Path, needed: &[PathBuf], context: &Context) -> Outcome<()> {
        let Some(wanted) = self.known.get(path) else { return Ok(()) };
        let _turn = self.line.lock().await;
        if fs::exists(path) {
            self.open.borrow_mut().make_contiguous().sort_by_key(|(open, _)| open == path);
            return Ok(());
        }
        let held = cache::bring(path, wanted, context).await?;
        self.open.borrow_mut().push_back((path.to_owned(), held));
        self.close_old(needed);
        Ok(())
    }

    /// Lets the longest unused go while there are too many, but none that is `needed`.
    fn close_old(&self, needed: &[PathBuf]) {
        let mut open = self.open.borrow_mut();
        let too_many = |open: &VecDeque<(PathBuf, u64)>| {
            open.len() > OPEN || open.iter().map(|(_, held)| held).sum::<u64>() > HELD
        };
        let mut at = 0;
        while too_many(&open) && at < open.len() {
            if needed.contains(&open[at].0) {
                at += 1;
            } else if let Some((path, _)) = open.remove(at) {
                fs::remove(path);
            }
        }
    }
}

impl Drop for Shards {
    fn drop(&mut self) {
        // The last of the clones: no prefetch is under way either.
        if Rc::strong_count(&self.open) == 1 {
            self.open.borrow().iter().for_each(|(path, _)| fs::remove(path));
        }
    }
}
