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

thread_local! {
    /// Downloads one at a time: a step never waits behind more than one that was prefetched.
    static LINE: Rc<Mutex<()>> = Rc::default();
    /// The shards in the tree, the longest unused first, with the bytes each holds in memory. All runs share them.
    static IN_TREE: RefCell<VecDeque<(PathBuf, u64)>> = const { RefCell::new(VecDeque::new()) };
}

/// The shards of a run's sets.
#[derive(Clone)]
pub struct Shards {
    known: Rc<BTreeMap<PathBuf, Wanted>>,
    context: Context,
}

impl Shards {
    /// The shards of these sets, whose manifests are in the tree. `context` hears of every download.
    pub fn new(sets: &[&Reader], context: &Context) -> Shards {
        let mut known = BTreeMap::new();
        // A set that the visitor chose lies in the tree, and stays.
        for set in sets.iter().filter(|set| is_address(set.dir())) {
            for entry in &set.manifest().shards {
                let path = set.dir().join(&entry.file);
                let url = path.to_string_lossy().into_owned();
                known.insert(path, Wanted { url, bytes: Some(entry.bytes), sha256: Some(entry.sha256.clone()) });
            }
        }
        Shards { known: Rc::new(known), context: context.unstoppable() }
    }

    /// Waits until all of `paths` can be read.
    pub async fn need(&self, paths: &[PathBuf], call: &Context) -> Outcome<()> {
        let context = self.context.stopped_by(call.signal.clone());
        for path in paths {
            self.bring(path, paths, &context).await?;
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
        let line = LINE.with(Rc::clone);
        let _turn = line.lock().await;
        if fs::exists(path) {
            // The newest used comes last.
            IN_TREE.with_borrow_mut(|open| open.make_contiguous().sort_by_key(|(open, _)| open == path));
            return Ok(());
        }
        let held = cache::bring(path, wanted, context).await?;
        IN_TREE.with_borrow_mut(|open| open.push_back((path.to_owned(), held)));
        close_old(needed);
        Ok(())
    }
}

/// Whether a path of the tree is an address: what was fetched, not what a visitor put in.
pub fn is_address(path: &Path) -> bool {
    path.to_string_lossy().contains("://")
}

/// Lets the longest unused go while there are too many, but none that is `needed`.
fn close_old(needed: &[PathBuf]) {
    let too_many =
        |open: &VecDeque<(PathBuf, u64)>| open.len() > OPEN || open.iter().map(|(_, held)| held).sum::<u64>() > HELD;
    IN_TREE.with_borrow_mut(|open| {
        let mut at = 0;
        while too_many(open) && at < open.len() {
            if needed.contains(&open[at].0) {
                at += 1;
            } else if let Some((path, _)) = open.remove(at) {
                fs::remove(path);
            }
        }
    });
}

/// Lets all of them go: a run that needs one brings it again.
pub fn close_all() {
    IN_TREE.with_borrow_mut(|open| open.drain(..).for_each(|(path, _)| fs::remove(path)));
}
