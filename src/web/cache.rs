//! Downloads kept in private storage: what was fetched once is read where it lies. Files that a manifest describes are
//! kept by their digest; others by their address, and asked for again with what the server said of them. The oldest make
//! room for new ones.

use super::failure::{Failure, Kind, Outcome};
use super::http::{Answer, Part, Sink, Wanted, download};
use super::options::Context;
use super::storage::{Folder, estimate};
use crate::digest::sha256;
use crate::platform::fs;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;

/// The folder of the cache in private storage.
pub const FOLDER: &str = "cache";
/// The part of the browser's quota that is left to others, the checkpoints among them.
const RESERVE: f64 = 0.1;
/// How often one download may make room for itself.
const EVICTIONS: u32 = 64;

/// What is known of a file that is whole; it lies beside the file, so that a file without it is a part.
#[derive(Serialize, Deserialize)]
struct Note {
    url: String,
    bytes: u64,
    etag: Option<String>,
    modified: Option<String>,
    /// When it was last used, in milliseconds since 1970.
    used: f64,
}

fn note_name(key: &str) -> String {
    format!("{key}.json")
}

fn key(wanted: &Wanted) -> String {
    wanted.sha256.clone().unwrap_or_else(|| format!("url-{}", sha256(wanted.url.as_bytes())))
}

/// Brings a file into the tree at `path`: from the cache, or downloaded into it. Where the browser stores nothing, or no
/// more, the file is held in memory, and an event says so. The value is the number of bytes held in memory.
pub async fn bring(path: &Path, wanted: &Wanted, context: &Context) -> Outcome<u64> {
    let reason = match folder().await {
        None => "this browser stores nothing for this page".to_owned(),
        Some(folder) => match stored(&folder, path, wanted, context).await {
            Ok(()) => return Ok(0),
            Err(failure) if matches!(failure.kind, Kind::Quota | Kind::Internal) => failure.to_string(),
            Err(failure) => return Err(failure),
        },
    };
    context.event(&json!({"type": "not-cached", "reason": reason}));
    let mut part = Part::start(Sink::Memory(Vec::new())).map_err(crate::Error::io("hold", path))?;
    download(wanted, &mut part, None, context).await?;
    let held = part.bytes();
    if let Sink::Memory(bytes) = part.sink {
        fs::write(path, bytes);
    }
    Ok(held)
}

/// The cache, if the browser has private storage.
pub async fn folder() -> Option<Folder> {
    Folder::root().await?.folder(FOLDER).await.ok()
}

async fn stored(folder: &Folder, path: &Path, wanted: &Wanted, context: &Context) -> Outcome<()> {
    let key = key(wanted);
    let mut evictions = 0;
    loop {
        match try_stored(folder, &key, path, wanted, context).await {
            Err(failure) if failure.kind == Kind::Quota && evictions < EVICTIONS => {
                evictions += 1;
                if !evict(folder, &key).await {
                    // The part would only stand in the way of others.
                    folder.remove(&key).await;
                    return Err(failure);
                }
            }
            other => return other,
        }
    }
}

async fn try_stored(folder: &Folder, key: &str, path: &Path, wanted: &Wanted, context: &Context) -> Outcome<()> {
    let note: Option<Note> = match folder.read(&note_name(key)).await {
        Some(bytes) => serde_json::from_slice(&bytes).ok(),
        None => None,
    };
    make_room(folder, key, wanted, note.as_ref()).await?;
    let hold = |error| Failure::from(crate::Error::io("keep", path)(error));
    let sink = Sink::Stored(folder.open(key).await?);
    // A part without a digest may be of another version.
    let fresh = wanted.sha256.is_none() && note.is_none();
    let mut part = if fresh { Part::start(sink) } else { Part::resume(sink) }.map_err(hold)?;
    let whole = note.filter(|note| note.bytes == part.bytes());
    let known = whole.as_ref().map(|note| Answer {
        etag: note.etag.clone(),
        modified: note.modified.clone(),
        unchanged: false,
    });
    let answer = match download(wanted, &mut part, known.as_ref(), context).await {
        // Offline, the copy of before is better than none.
        Err(failure) if failure.kind == Kind::Network && whole.is_some_and(|note| note.bytes == part.bytes()) => {
            known.unwrap_or_default()
        }
        other => other?,
    };
    let Sink::Stored(file) = part.sink else { return Ok(()) };
    file.sync().map_err(hold)?;
    let note = Note {
        url: wanted.url.clone(),
        bytes: file.bytes(),
        etag: answer.etag,
        modified: answer.modified,
        used: js_sys::Date::now(),
    };
    fs::mount(path, file);
    let text = serde_json::to_vec(&note).unwrap_or_default();
    folder.write(&note_name(key), &text).await
}

/// Evicts until a file of known length fits into what the browser gives.
async fn make_room(folder: &Folder, key: &str, wanted: &Wanted, note: Option<&Note>) -> Outcome<()> {
    let (Some(bytes), None) = (wanted.bytes, note) else { return Ok(()) };
    while let Some((used, quota)) = estimate().await {
        let free = (quota as f64 * (1.0 - RESERVE)) as u64;
        if used.saturating_add(bytes) <= free || !evict(folder, key).await {
            break;
        }
    }
    Ok(())
}

/// Removes the file that was not used for the longest time, other than `keep`; whether there was one. One that is open
/// stays where it is.
async fn evict(folder: &Folder, keep: &str) -> bool {
    let mut notes = Vec::new();
    for name in folder.names().await {
        let Some(key) = name.strip_suffix(".json").filter(|key| *key != keep) else { continue };
        let note = folder.read(&name).await.and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok());
        notes.push((note.map_or(0.0, |note| note.used), key.to_owned()));
    }
    notes.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (_, key) in notes {
        if folder.remove(&key).await {
            folder.remove(&note_name(&key)).await;
            return true;
        }
    }
    false
}

/// Bytes of all whole files.
pub async fn bytes() -> u64 {
    let Some(folder) = folder().await else { return 0 };
    let mut sum = 0;
    for name in folder.names().await.iter().filter(|name| name.ends_with(".json")) {
        let note = folder.read(name).await.and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok());
        sum += note.map_or(0, |note| note.bytes);
    }
    sum
}
