//! The surface for JavaScript: thin over the rest of the crate, whose trainer, formats and messages it hands on. It adds
//! what only a browser needs: downloads ([`http`], [`cache`], [`shards`]), private storage ([`storage`],
//! [`checkpoints`]) and a device that may be taken away ([`run`]).
//!
//! All of it runs in a dedicated worker; `web/proxy/` brings it to the page.

mod archive;
mod cache;
mod checkpoints;
mod device;
mod failure;
mod files;
mod generation;
mod http;
mod merge;
mod model;
mod options;
mod run;
mod shards;
mod sources;
mod storage;
mod trainer;
mod types;

pub use device::device_info;
pub use failure::{Failure, Kind};
pub use files::{put_files, remove_files};
pub use merge::merge_models;
pub use model::{Model, open_model};
pub use options::{GenerateOptions, MergeOptions, OpenOptions, TrainerOptions};
pub use trainer::{Trainer, create_trainer};

use failure::Outcome;
use options::{Context, to_js};
use serde_json::json;
use std::path::Path;
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn console_error(text: &str);
}

/// Runs once, when the module is loaded: a panic is a bug, and says where it is.
#[wasm_bindgen(start)]
pub fn start() {
    std::panic::set_hook(Box::new(|panic| console_error(&format!("potstill: {panic} (please report this)"))));
}

/// Reads a shard set's manifest and tells what it holds.
#[wasm_bindgen(js_name = openShards, unchecked_return_type = "ShardSetInfo")]
pub async fn open_shards(url: &str, options: Option<OpenOptions>) -> Outcome<JsValue> {
    let context = Context::of(options.as_ref().map(AsRef::as_ref));
    let known = crate::platform::fs::exists(Path::new(url));
    let name = if known { url.to_owned() } else { sources::absolute(url, &sources::here())? };
    let reader = sources::manifest(Path::new(&name), &context).await?;
    let (manifest, spec) = (reader.manifest(), reader.spec());
    Ok(to_js(&json!({
        "teacher": spec.teacher.name, "kind": spec.record.rows_name(), "tokens": spec.rows,
        "vocabulary": spec.vocab_size, "shards": manifest.shards.len(),
        "bytes": manifest.shards.iter().map(|shard| shard.bytes).sum::<u64>(),
    })))
}

/// What this origin stores.
#[wasm_bindgen(js_name = storage, unchecked_return_type = "StorageInfo")]
pub async fn storage_info() -> JsValue {
    let (used, quota) = storage::estimate().await.unwrap_or((0, 0));
    let runs = checkpoints::names().await;
    to_js(&json!({
        "usedBytes": used, "quotaBytes": quota, "cachedBytes": cache::bytes().await, "checkpoints": runs,
    }))
}

/// Removes what this crate stores: `cache`, `checkpoints`, or (the default) `all` of it. What is in use stays.
#[wasm_bindgen(js_name = clearStorage)]
pub async fn clear_storage(
    #[wasm_bindgen(unchecked_param_type = "\"cache\" | \"checkpoints\" | \"all\"")] what: Option<String>,
) {
    let Some(root) = storage::Folder::root().await else { return };
    // Only a file that no one has open can be removed.
    shards::close_all();
    let fetched = crate::platform::fs::files_in("").into_iter().filter(|path| shards::is_address(path));
    fetched.for_each(crate::platform::fs::remove);
    for name in [cache::FOLDER, checkpoints::FOLDER] {
        if what.as_deref().is_none_or(|what| what == name || what == "all")
            && let Ok(folder) = root.folder(name).await
        {
            for entry in folder.names().await {
                folder.remove(&entry).await;
            }
        }
    }
}
