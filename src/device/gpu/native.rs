//! How GPUs are found and waited for on an operating system: by blocking.

use crate::device::Cooperative;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Instant;

/// Whether [`wait`] waits.
pub const BLOCKS: bool = true;
/// Whether kernels may run without bounds checks.
pub const TRUSTED: bool = true;

/// What kernels with cooperative matrices need.
pub const COOPERATIVE_FEATURES: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SUBGROUP).union(wgpu::Features::SHADER_F16);

/// The cooperative matrices of an adapter: square blocks of f16, the larger the better, summed in f32.
/// POTSTILL_COOPERATIVE=0 leaves them out.
pub fn cooperative(adapter: &wgpu::Adapter) -> Option<Cooperative> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let unwanted = std::env::var_os("POTSTILL_COOPERATIVE").is_some_and(|value| value == "0");
    let room = adapter.limits().max_compute_workgroup_storage_size >= Cooperative::WORKGROUP_MEMORY;
    if unwanted || !room || !adapter.features().contains(COOPERATIVE_FEATURES) {
        return None;
    }
    let offered = adapter.cooperative_matrix_properties();
    let fits = offered.iter().filter(|p| (p.ab_type, p.cr_type) == (F16, F32));
    let edges = fits.filter(|p| p.m_size == p.n_size && p.n_size == p.k_size).map(|p| p.m_size);
    let edge = edges.filter(|edge| [8, 16].contains(edge)).max()?;
    Some(Cooperative::new(edge, adapter.get_info().subgroup_max_size))
}

/// Leave for features that wgpu calls experimental.
pub fn experimental(features: wgpu::Features) -> wgpu::ExperimentalFeatures {
    if features.is_empty() {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: cooperative matrices are the only such feature, in one kernel of this crate, whose accesses stay within its
    // arrays and bindings as the case table checks.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

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
