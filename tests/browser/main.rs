//! What runs in a real browser, in a dedicated worker: `tests/browser.sh`.

#![cfg(target_family = "wasm")]

mod cases;
mod files;
mod merging;
mod training;
mod web;

wasm_bindgen_test::wasm_bindgen_test_configure!(run_in_dedicated_worker);
