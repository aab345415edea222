//! Waiting in a browser, whose events reach a worker only while nothing runs in it.

use std::cell::Cell;
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen_futures::JsFuture;

/// Milliseconds of work between two turns: even no time to wait takes a browser four of them.
const EVERY: f64 = 50.0;

thread_local!(static LAST: Cell<f64> = const { Cell::new(0.0) });

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_name = setTimeout)]
    fn set_timeout(closure: &js_sys::Function, milliseconds: i32) -> JsValue;
}

/// Waits.
pub async fn sleep(milliseconds: i32) {
    let promise = js_sys::Promise::new(&mut |resolve, _| {
        set_timeout(&resolve, milliseconds);
    });
    // It is never rejected.
    let _ = JsFuture::from(promise).await;
}

/// Gives the browser its turn, if the last one is a while ago.
pub async fn turn() {
    let now = js_sys::Date::now();
    if now - LAST.get() > EVERY {
        sleep(0).await;
        LAST.set(js_sys::Date::now());
    }
}
