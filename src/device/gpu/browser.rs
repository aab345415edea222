//! How GPUs are found and waited for in a browser: nothing blocks, callbacks tell.

use super::oneshot::{Receiver, oneshot};
use crate::device::Cooperative;
use std::sync::{Arc, OnceLock};
use wasm_bindgen::prelude::wasm_bindgen;

/// Whether [`wait`] waits.
pub const BLOCKS: bool = false;
/// Whether kernels may run without bounds checks: a browser has them always.
pub const TRUSTED: bool = false;

/// What kernels with cooperative matrices need: there are none.
pub const COOPERATIVE_FEATURES: wgpu::Features = wgpu::Features::empty();

/// The cooperative matrices of an adapter: a browser has none.
pub fn cooperative(_: &wgpu::Adapter) -> Option<Cooperative> {
    None
}

/// Nothing experimental is asked for.
pub fn experimental(_: wgpu::Features) -> wgpu::ExperimentalFeatures {
    wgpu::ExperimentalFeatures::disabled()
}

/// A submission on its way.
pub type Flight = Receiver<()>;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = performance)]
    fn now() -> f64;
}

/// The adapter that the browser offers, if any; it tells of one only, so the fastest is asked for.
pub async fn adapters(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    let power_preference = wgpu::PowerPreference::HighPerformance;
    let options = wgpu::RequestAdapterOptions { power_preference, ..Default::default() };
    instance.request_adapter(&options).await.into_iter().collect()
}

/// What `make` returns. An error comes later: without a scope the device's fault handler hears of it, and the next
/// call on the device reports it.
pub fn scoped<T>(_: &wgpu::Device, _: wgpu::ErrorFilter, make: impl FnOnce() -> T) -> Result<T, wgpu::Error> {
    Ok(make())
}

/// Nothing can be waited for here.
pub fn wait(_: &wgpu::Device, _: Option<Flight>) -> Result<(), String> {
    Ok(())
}

/// The work submitted so far.
pub fn flight(queue: &wgpu::Queue, _: wgpu::SubmissionIndex) -> Flight {
    let (sender, receiver) = oneshot();
    queue.on_submitted_work_done(move || sender.send(()));
    receiver
}

/// Waits until a submission is done.
pub async fn landed(_: &wgpu::Device, flight: Flight) -> Result<(), String> {
    flight.await;
    Ok(())
}

/// Will note in `rate`, once all work is done, how much of `work` was done in a second since `start`.
pub fn time(
    _: &wgpu::Device,
    queue: &wgpu::Queue,
    start: f64,
    work: u64,
    rate: &Arc<OnceLock<f64>>,
) -> Result<(), String> {
    let rate = rate.clone();
    queue.on_submitted_work_done(move || {
        rate.get_or_init(|| work as f64 / (seconds() - start).max(1e-3));
    });
    Ok(())
}

/// Seconds on a monotonic clock.
pub fn seconds() -> f64 {
    now() / 1000.0
}
