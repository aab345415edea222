//! Files that a visitor chose or dropped, put into the tree.

use super::failure::{Failure, Outcome};
use crate::platform::fs;
use js_sys::{Array, Object, Uint8Array};
use std::cell::Cell;
use std::path::Path;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::Blob;

thread_local!(static NEXT: Cell<u32> = const { Cell::new(0) });

/// A number that no call got before.
pub fn number() -> u32 {
    NEXT.replace(NEXT.get() + 1)
}

/// Puts files into the folder `folder` of the worker's memory, by their paths in it; recipes and `openModel` may name
/// the folder then.
#[wasm_bindgen(js_name = putFiles)]
pub async fn put_files(
    folder: &str,
    #[wasm_bindgen(unchecked_param_type = "{ [path: string]: Blob }")] files: Object,
) -> Outcome<()> {
    for entry in Object::entries(&files).iter() {
        let entry: Array = entry.unchecked_into();
        let name = entry.get(0).as_string().unwrap_or_default();
        let unreadable = |thrown: JsValue| Failure::thrown(&format!("reading {name}"), thrown);
        let blob: Blob = entry.get(1).dyn_into().map_err(unreadable)?;
        let bytes = JsFuture::from(blob.array_buffer()).await.map_err(unreadable)?;
        fs::write(Path::new(folder).join(&name), Uint8Array::new(&bytes).to_vec());
    }
    Ok(())
}

/// Takes a folder that [`put_files`] filled away.
#[wasm_bindgen(js_name = removeFiles)]
pub fn remove_files(folder: &str) {
    fs::remove(folder);
}

/// Puts files into a folder of their own, and tells its name.
pub async fn put_aside(files: Object) -> Outcome<String> {
    let folder = format!("opened/{}", number());
    put_files(&folder, files).await?;
    Ok(folder)
}
