//! Checkpoints in private storage: the tree's, which are those of the native trainer, copied there and back. State comes
//! last and counts: a checkpoint without it was being written when the tab went.

use super::failure::{Failure, Outcome};
use super::storage::Folder;
use crate::Error;
use crate::distill::checkpoint::{self, Checkpoint};
use crate::platform::fs;
use std::path::{Path, PathBuf};

/// The folder of all checkpoints in private storage.
pub const FOLDER: &str = "checkpoints";
/// The files of one, in the order of writing.
const FILES: [&str; 2] = ["arrays.safetensors", "state.json"];

/// Where a run's checkpoints are: in the tree, and in storage if the run has a name and the browser storage.
pub struct Checkpoints {
    tree: PathBuf,
    stored: Option<Folder>,
}

/// The folder of all runs' checkpoints, if the browser has private storage.
pub async fn folder() -> Option<Folder> {
    Folder::root().await?.folder(FOLDER).await.ok()
}

impl Checkpoints {
    /// Those of the run `name`; `number` tells runs apart in the tree.
    pub async fn of(name: Option<&str>, number: u32) -> Checkpoints {
        let stored = match (folder().await, name) {
            (Some(folder), Some(name)) => folder.folder(&encoded(name)).await.ok(),
            _ => None,
        };
        Checkpoints { tree: PathBuf::from(format!("checkpoints/{number}")), stored }
    }

    /// Where the tree's are saved to.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// The newest, if there is any: the tree's, else the storage's, which comes into the tree.
    pub async fn latest(&self) -> Outcome<Option<Checkpoint>> {
        if let Some(found) = checkpoint::latest(&self.tree)? {
            return Ok(Some(found));
        }
        let Some(stored) = &self.stored else { return Ok(None) };
        let mut steps: Vec<u64> = stored.names().await.iter().filter_map(|name| name.parse().ok()).collect();
        steps.sort_unstable();
        while let Some(step) = steps.pop() {
            let folder = stored.folder(&step.to_string()).await?;
            let mut files = Vec::new();
            for name in FILES {
                files.extend(folder.read(name).await);
            }
            if files.len() < FILES.len() {
                stored.remove(&step.to_string()).await;
                continue;
            }
            let place = self.tree.join(format!("checkpoint-{step}"));
            for (name, bytes) in FILES.iter().zip(files) {
                fs::write(place.join(name), bytes);
            }
            return Ok(checkpoint::latest(&self.tree)?);
        }
        Ok(None)
    }

    /// Copies the tree's newest into storage, then removes older ones there.
    pub async fn store(&self) -> Outcome<()> {
        let (Some(stored), Some(newest)) = (&self.stored, checkpoint::latest(&self.tree)?) else { return Ok(()) };
        let step = newest.state().step.to_string();
        let older: Vec<String> = stored.names().await.into_iter().filter(|name| *name != step).collect();
        if let Err(failure) = write(&stored.folder(&step).await?, newest.path()).await {
            stored.remove(&step).await;
            return Err(failure);
        }
        for name in older {
            stored.remove(&name).await;
        }
        Ok(())
    }

    /// Takes the tree's away.
    pub fn forget(&self) {
        fs::remove(&self.tree);
    }
}

async fn write(folder: &Folder, from: &Path) -> Result<(), Failure> {
    for name in FILES {
        let path = from.join(name);
        let bytes = fs::contents(&path).map_err(Error::io("read", &path))?;
        folder.write(name, bytes.as_ref()).await?;
    }
    Ok(())
}

/// A name that any file system takes.
fn encoded(name: &str) -> String {
    String::from(js_sys::encode_uri_component(name)).replace('.', "%2E")
}

/// The names of the runs that have checkpoints.
pub async fn names() -> Vec<String> {
    let Some(folder) = folder().await else { return Vec::new() };
    let mut names = Vec::new();
    for name in folder.names().await {
        let some = match folder.folder(&name).await {
            Ok(run) => !run.names().await.is_empty(),
            Err(_) => false,
        };
        if some {
            let plain = js_sys::decode_uri_component(&name).map(String::from);
            names.push(plain.unwrap_or(name));
        }
    }
    names
}
