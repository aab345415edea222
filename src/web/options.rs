//! What a caller in JavaScript hands over beside the arguments: a signal to stop by and functions to be told by.

use super::failure::{Failure, Outcome};
use js_sys::{Function, Reflect};
use serde_json::Value;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};
use web_sys::AbortSignal;

#[wasm_bindgen]
extern "C" {
    /// `OpenOptions`, `TrainerOptions`, `MergeOptions` or `GenerateOptions` of the TypeScript types; every property may be missing.
    #[wasm_bindgen(typescript_type = "OpenOptions")]
    pub type OpenOptions;
    /// See [`OpenOptions`].
    #[wasm_bindgen(typescript_type = "TrainerOptions")]
    pub type TrainerOptions;
    /// See [`OpenOptions`].
    #[wasm_bindgen(typescript_type = "MergeOptions")]
    pub type MergeOptions;
    /// See [`OpenOptions`].
    #[wasm_bindgen(typescript_type = "GenerateOptions")]
    pub type GenerateOptions;
}

/// A property of an options object, if it is there and of the type.
pub fn property<T: JsCast>(options: Option<&JsValue>, name: &str) -> Option<T> {
    Reflect::get(options?, &name.into()).ok()?.dyn_into().ok()
}

/// The same of a text.
pub fn text(options: Option<&JsValue>, name: &str) -> Option<String> {
    Reflect::get(options?, &name.into()).ok()?.as_string()
}

/// The same of a number.
pub fn number(options: Option<&JsValue>, name: &str) -> Option<f64> {
    Reflect::get(options?, &name.into()).ok()?.as_f64()
}

/// JSON as a JavaScript object.
pub fn to_js(value: &Value) -> JsValue {
    js_sys::JSON::parse(&value.to_string()).unwrap_or(JsValue::NULL)
}

/// A JavaScript object as JSON text.
pub fn to_json(value: &JsValue) -> Outcome<String> {
    let text = js_sys::JSON::stringify(value).map_err(|error| Failure::thrown("reading the recipe", error))?;
    Ok(text.as_string().unwrap_or_default())
}

/// How to stop, and whom to tell.
#[derive(Clone, Default)]
pub struct Context {
    /// Stops what is under way.
    pub signal: Option<AbortSignal>,
    on_progress: Option<Function>,
    on_event: Option<Function>,
}

impl Context {
    /// Reads `signal`, `onProgress` and `onEvent`.
    pub fn of(options: Option<&JsValue>) -> Context {
        Context {
            signal: property(options, "signal"),
            on_progress: property(options, "onProgress"),
            on_event: property(options, "onEvent"),
        }
    }

    /// The same with another signal.
    pub fn stopped_by(&self, signal: Option<AbortSignal>) -> Context {
        Context { signal, ..self.clone() }
    }

    /// The same without the signal, for what goes on behind the call.
    pub fn unstoppable(&self) -> Context {
        self.stopped_by(None)
    }

    /// An error once the signal fired.
    pub fn check(&self) -> Outcome<()> {
        match &self.signal {
            Some(signal) if signal.aborted() => Err(Failure::cancelled()),
            _ => Ok(()),
        }
    }

    /// Tells how far `what` has come.
    pub fn progress(&self, what: &str, done: u64, total: Option<u64>) {
        if let Some(function) = &self.on_progress {
            let value = serde_json::json!({"what": what, "done": done, "total": total});
            // What a listener throws is its own affair.
            let _ = function.call1(&JsValue::NULL, &to_js(&value));
        }
    }

    /// Tells of something that happened.
    pub fn event(&self, event: &Value) {
        if let Some(function) = &self.on_event {
            let _ = function.call1(&JsValue::NULL, &to_js(event));
        }
    }
}
