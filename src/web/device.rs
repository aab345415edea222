//! Which device computes, in words for a visitor.

use super::failure::{Failure, Kind, Outcome};
use super::options::to_js;
use crate::Error;
use crate::device::{Choice, Device, adapters};
use js_sys::Reflect;
use serde_json::{Value, json};
use std::cell::RefCell;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;

thread_local!(static OPEN: RefCell<Vec<(Choice, Device)>> = const { RefCell::new(Vec::new()) });

/// The device that a choice leads to, opened once: runs and models share it, so that each kernel is compiled once. One
/// that was lost is replaced.
pub async fn open(choice: &Choice) -> Outcome<Device> {
    let known = OPEN.with_borrow_mut(|open| {
        open.retain(|(_, device)| !device.is_lost());
        open.iter().find(|(own, _)| own == choice).map(|(_, device)| device.clone())
    });
    if let Some(device) = known {
        return Ok(device);
    }
    if matches!(choice, Choice::Gpu(_)) && adapters().await.is_empty() {
        let complaint = Error::at("device").expected("a GPU").found("none: this browser offers no GPU through WebGPU");
        let complaint = complaint.help("choose `auto` or `cpu`, or a browser that has WebGPU");
        return Err(Failure::new(Kind::NoGpu, complaint));
    }
    let device = choice.open().await?;
    OPEN.with_borrow_mut(|open| open.push((choice.clone(), device.clone())));
    Ok(device)
}

/// What the browser tells of its adapter.
async fn adapter_name() -> Option<String> {
    let get = |object: &JsValue, name: &str| Reflect::get(object, &name.into()).ok().filter(|value| !value.is_falsy());
    let gpu = get(&get(&js_sys::global(), "navigator")?, "gpu")?;
    let request: js_sys::Function = get(&gpu, "requestAdapter")?.dyn_into().ok()?;
    let promise: js_sys::Promise = request.call0(&gpu).ok()?.dyn_into().ok()?;
    let info = get(&JsFuture::from(promise).await.ok()?, "info")?;
    let text = |name: &str| get(&info, name).and_then(|value| value.as_string());
    let parts: Vec<String> = ["description", "vendor", "architecture"].into_iter().filter_map(text).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// A `DeviceInfo` of `device`, which `choice` led to.
pub async fn describe(choice: &Choice, device: &Device) -> Value {
    let offered = if *choice == Choice::Cpu { Vec::new() } else { adapters().await };
    let gpu = matches!(device, Device::Gpu(_));
    let reason = match choice {
        Choice::Cpu => "it was asked for",
        Choice::Gpu(_) => "a GPU was asked for",
        Choice::Auto if gpu => "the browser offers this GPU",
        Choice::Auto if offered.is_empty() => "this browser offers no GPU through WebGPU",
        Choice::Auto => "the browser's adapter is a software driver, slower than the CPU itself",
    };
    let name = if gpu { adapter_name().await.unwrap_or_else(|| device.name()) } else { device.name() };
    json!({
        "kind": if gpu { "gpu" } else { "cpu" }, "name": name, "software": gpu && device.caps().software,
        "reason": reason, "maxBufferBytes": device.caps().max_buffer,
    })
}

/// The device that a choice leads to; `auto` if there is none.
#[wasm_bindgen(js_name = deviceInfo, unchecked_return_type = "DeviceInfo")]
pub async fn device_info(
    #[wasm_bindgen(unchecked_param_type = "DeviceChoice")] choice: Option<String>,
) -> Outcome<JsValue> {
    let choice: Choice = choice.as_deref().unwrap_or("auto").parse()?;
    let device = open(&choice).await?;
    Ok(to_js(&describe(&choice, &device).await))
}
