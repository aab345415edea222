//! How GPUs are found and waited for on an operating system: by blocking.

use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Instant;

/// Whether [`wait`] waits.
pub const BLOCKS: bool = true;
/// Whether kernels may run without bounds checks.
pub const TRUSTED: bool = true;

/// A submission on its way.
pub type Flight = wgpu::SubmissionIndex;

/// Every adapter of the system.
pub async fn adapters(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    instance.enumerate_adapters(wgpu::Backends::PRIMARY).await
}

/// What `make` returns, or the error of this kind that it caused.
pub fn scoped<T>(device: &wgpu::Device, filter: wgpu::ErrorFilter, make: impl FnOnce() -> T) -> Result<T, wgpu::Error> {
    let scope = device.push_error_scope(filter);
    let made = make();
    pollster::block_on(scope.pop()).map_or(Ok(made), Err)
}

/// Waits until a submission, or every one so far, is done.
pub fn wait(device: &wgpu::Device, submission_index: Option<Flight>) -> Result<(), String> {
    let outcome = device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
    outcome.map(drop).map_err(|error| error.to_string())
}

/// The submission that `index` ends.
pub fn flight(_: &wgpu::Queue, index: wgpu::SubmissionIndex) -> Flight {
    index
}

/// Waits until a submission is done.
pub async fn landed(device: &wgpu::Device, flight: Flight) -> Result<(), String> {
    wait(device, Some(flight))
}

/// Waits for all work and notes in `rate` how much of `work` was done in a second since `start`.
pub fn time(
    device: &wgpu::Device,
    _: &wgpu::Queue,
    start: f64,
    work: u64,
    rate: &Arc<OnceLock<f64>>,
) -> Result<(), String> {
    wait(device, None)?;
    rate.get_or_init(|| work as f64 / (seconds() - start).max(1e-6));
    Ok(())
}

/// Seconds on a monotonic clock.
pub fn seconds() -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
}
