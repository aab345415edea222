//! The GPU as a device. Only this file and its folder know wgpu's types: adapters, limits, buffers, pipelines,
//! submission, readback.

#[cfg_attr(not(target_family = "wasm"), path = "gpu/native.rs")]
#[cfg_attr(target_family = "wasm", path = "gpu/browser.rs")]
mod host;
mod oneshot;

use super::select::{AdapterSummary, Kind};
use super::{Caps, Launch, Ledger, Tiles};
use crate::{Error, Result};
use oneshot::oneshot;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// Bytes between the uniform blocks of two dispatches: WebGPU's default offset alignment.
const UNIFORM_STRIDE: u64 = 256;
/// Dispatches in one submission at most.
const MAX_DISPATCHES: usize = 128;
/// Work (FLOPs + bytes) in one submission until the device's speed is known.
const CAUTIOUS_WORK: u64 = 4_000_000_000;
/// What one submission should take once it is known. Watchdogs fire from about 2 s.
const SUBMISSION_SECONDS: f64 = 0.05;
/// Replays the host may run ahead of the GPU; deeper queues only add memory and latency.
const MAX_IN_FLIGHT: usize = 2;
/// Large writes go in pieces, so that staging memory stays small.
const WRITE_PIECE: usize = 32 << 20;

/// A GPU.
pub struct Gpu {
    pub(crate) caps: Caps,
    pub(crate) ledger: Ledger,
    summary: AdapterSummary,
    device: wgpu::Device,
    queue: wgpu::Queue,
    pipelines: Mutex<HashMap<String, Arc<Pipeline>>>,
    /// Compiled kernels of earlier runs.
    kept: Option<Arc<Mutex<host::Kept>>>,
    fault: Arc<Mutex<Option<Fault>>>,
    in_flight: Mutex<VecDeque<host::Flight>>,
}

/// The first error the driver reported outside an error scope, or the reason the device was lost.
#[derive(Clone)]
struct Fault {
    what: String,
    lost: bool,
}

/// A wgpu buffer behind a name of our own.
#[derive(Clone)]
pub(crate) struct Raw(wgpu::Buffer);

struct Pipeline {
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

/// Dispatches with prebuilt bind groups, ready to be submitted again and again.
pub struct Recorded {
    launches: Vec<Ready>,
    submissions: Vec<Range<usize>>,
    /// Work done in a second, once a replay was timed.
    rate: Arc<OnceLock<f64>>,
    calibrated: bool,
}

struct Ready {
    pipeline: Arc<Pipeline>,
    bind_group: wgpu::BindGroup,
    groups: [u32; 3],
    work: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn checked() -> bool {
    std::env::var_os("POTSTILL_CHECKED").is_some_and(|value| value != "0")
}

/// POTSTILL_TILES=single, 32, 64 or 128 forces one kind of tile, as the tests do to see them all.
fn tiles_from_environment() -> Option<Tiles> {
    const NEVER: usize = usize::MAX;
    match std::env::var("POTSTILL_TILES").ok()?.as_str() {
        "single" => Some(Tiles { fours: false, ..Tiles::default() }),
        "32" => Some(Tiles { fours: true, middle_from: NEVER, large_from: NEVER }),
        "64" => Some(Tiles { fours: true, middle_from: 0, large_from: NEVER }),
        "128" => Some(Tiles { fours: true, middle_from: 0, large_from: 0 }),
        _ => None,
    }
}

fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::PRIMARY;
    descriptor.flags = if checked() { wgpu::InstanceFlags::VALIDATION } else { wgpu::InstanceFlags::empty() };
    wgpu::Instance::new(descriptor)
}

fn summary(index: usize, info: &wgpu::AdapterInfo) -> AdapterSummary {
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => Kind::Discrete,
        wgpu::DeviceType::IntegratedGpu => Kind::Integrated,
        wgpu::DeviceType::Cpu => Kind::Software,
        _ => Kind::Other,
    };
    let driver = format!("{} {}", info.driver, info.driver_info);
    // Browsers keep the name to themselves.
    let name = if info.name.is_empty() { "unnamed adapter".to_owned() } else { info.name.clone() };
    AdapterSummary { index, name, driver: driver.trim().to_owned(), backend: format!("{:?}", info.backend), kind }
}

impl Gpu {
    /// Every adapter of the system, in the system's order.
    pub async fn adapters() -> Vec<AdapterSummary> {
        let found = host::adapters(&instance()).await;
        found.iter().enumerate().map(|(i, adapter)| summary(i, &adapter.get_info())).collect()
    }

    /// Opens adapter `index` of [`Gpu::adapters`] with all the memory limits it offers.
    pub async fn open(index: usize) -> Result<Gpu> {
        let mut found = host::adapters(&instance()).await;
        if index >= found.len() {
            return Err(Error::device("the adapter is gone", "run `potstill doctor` to see what is there"));
        }
        let adapter = found.swap_remove(index);
        let summary = summary(index, &adapter.get_info());
        let offered = adapter.limits();
        let limits = wgpu::Limits {
            max_buffer_size: offered.max_buffer_size,
            max_storage_buffer_binding_size: offered.max_storage_buffer_binding_size,
            max_compute_workgroup_storage_size: offered.max_compute_workgroup_storage_size,
            ..wgpu::Limits::default()
        };
        let cooperative = host::cooperative(&adapter);
        let wanted = if cooperative.is_some() { host::COOPERATIVE_FEATURES } else { wgpu::Features::empty() };
        let features = adapter.features() & host::FEATURES | wanted;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("potstill"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features: host::experimental(wanted),
            ..Default::default()
        };
        let (device, queue) = adapter.request_device(&descriptor).await.map_err(|error| {
            Error::device(format!("{summary} does not open: {error}"), "try another adapter or `--device cpu`")
        })?;
        let fault = watch_for_faults(&device);
        let software = summary.kind == Kind::Software;
        let caps = Caps {
            max_binding: limits.max_storage_buffer_binding_size,
            max_buffer: limits.max_buffer_size,
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            max_workgroups: limits.max_compute_workgroups_per_dimension,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            bf16: false,
            f16: features.contains(wgpu::Features::SHADER_F16),
            cooperative,
            tiles: tiles_from_environment().unwrap_or(if software { Tiles::software() } else { Tiles::default() }),
            software,
            trusted: host::TRUSTED && !checked(),
        };
        let (pipelines, in_flight) = Default::default();
        let kept = host::Kept::open(&device, &adapter.get_info()).map(|kept| Arc::new(Mutex::new(kept)));
        Ok(Gpu { caps, ledger: Ledger::default(), summary, device, queue, pipelines, kept, fault, in_flight })
    }

    /// The same GPU with tighter limits: how tests see that large tensors are split.
    pub fn with_caps(mut self, change: impl FnOnce(&mut Caps)) -> Gpu {
        change(&mut self.caps);
        self
    }

    /// The same GPU, its memory shared, whose products are computed in other tiles from now on.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn with_tiles(&self, tiles: Tiles) -> Gpu {
        let caps = Caps { tiles, ..self.caps.clone() };
        let (ledger, summary, kept) = (self.ledger.clone(), self.summary.clone(), self.kept.clone());
        let (device, queue, fault) = (self.device.clone(), self.queue.clone(), self.fault.clone());
        let (pipelines, in_flight) = Default::default();
        Gpu { caps, ledger, summary, device, queue, pipelines, kept, fault, in_flight }
    }

    /// What it is.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn summary(&self) -> &AdapterSummary {
        &self.summary
    }

    pub(crate) fn name(&self) -> String {
        self.summary.to_string()
    }

    pub(crate) fn alloc(&self, label: &str, bytes: u64) -> Result<Raw> {
        self.check()?;
        let (most, help) = (self.caps.max_buffer, "use a smaller batch or sequence length, or `--device cpu`");
        if bytes > most {
            let found = format!("`{label}` needs {bytes} bytes in one buffer, the limit here is {most}");
            return Err(Error::device(found, help));
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size: bytes, usage, mapped_at_creation: false };
        let made =
            host::scoped(&self.device, wgpu::ErrorFilter::OutOfMemory, || self.device.create_buffer(&descriptor));
        made.map(Raw).map_err(|error| {
            Error::device(
                format!("no memory for `{label}` ({bytes} bytes): {error}"),
                "use a smaller batch or sequence length, `gradient_checkpointing: true`, or `--device cpu`",
            )
        })
    }

    /// Copies between two buffers, or between ranges of one that do not touch.
    pub(crate) fn copy(&self, [from, to]: [&Raw; 2], [from_at, to_at]: [u64; 2], bytes: u64) -> Result<()> {
        self.check()?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&from.0, from_at, &to.0, to_at, Some(bytes));
        self.queue.submit([encoder.finish()]);
        self.check()
    }

    pub(crate) fn write(&self, raw: &Raw, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check()?;
        let mut at = offset;
        for piece in bytes.chunks(WRITE_PIECE) {
            self.queue.write_buffer(&raw.0, at, piece);
            at += piece.len() as u64;
            if bytes.len() > WRITE_PIECE {
                self.queue.submit([]);
                self.wait(None)?;
            }
        }
        self.check()
    }

    pub(crate) async fn read(&self, raw: &Raw, offset: u64, bytes: u64) -> Result<Vec<u32>> {
        self.check()?;
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let descriptor =
            wgpu::BufferDescriptor { label: Some("readback"), size: bytes, usage, mapped_at_creation: false };
        let staging = self.device.create_buffer(&descriptor);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&raw.0, offset, &staging, 0, Some(bytes));
        self.queue.submit([encoder.finish()]);
        let (sender, receiver) = oneshot();
        staging.map_async(wgpu::MapMode::Read, .., move |result| sender.send(result.map_err(|e| e.to_string())));
        self.wait(None)?;
        receiver.await.map_err(|error| self.fault_or(&format!("reading back failed: {error}")))?;
        let view = staging.get_mapped_range(..).map_err(|e| self.fault_or(&format!("reading back failed: {e}")))?;
        Ok(bytemuck::pod_collect_to_vec(&view))
    }

    /// Builds pipelines, uniform blocks and bind groups for a list of launches.
    pub fn record(&self, launches: &[Launch]) -> Result<Recorded> {
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let size = UNIFORM_STRIDE * launches.len().max(1) as u64;
        let label = Some("uniforms");
        let uniforms =
            self.device.create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false });
        let mut block = vec![0u8; size as usize];
        let mut ready = Vec::with_capacity(launches.len());
        for (i, launch) in launches.iter().enumerate() {
            let start = i * UNIFORM_STRIDE as usize;
            let words: &[u8] = bytemuck::cast_slice(&launch.dispatch.params);
            if words.len() as u64 > UNIFORM_STRIDE {
                return Err(Error::internal(format!("`{}` has too many parameters", launch.dispatch.shader.name)));
            }
            block[start..start + words.len()].copy_from_slice(words);
            ready.push(self.ready(launch, &uniforms, start as u64)?);
        }
        self.queue.write_buffer(&uniforms, 0, &block);
        self.check()?;
        if let Some(kept) = &self.kept {
            lock(kept).save();
        }
        let submissions = cut(&ready, CAUTIOUS_WORK);
        Ok(Recorded { launches: ready, submissions, rate: Arc::default(), calibrated: false })
    }

    /// Submits everything recorded, cut into pieces that no watchdog minds. The first time it also measures
    /// how fast the device is, and once that is known it cuts anew for the replays that follow.
    pub fn submit(&self, recorded: &mut Recorded) -> Result<()> {
        self.make_room()?;
        recorded.calibrate();
        let start = host::seconds();
        let counters = &self.ledger;
        counters.dispatches.fetch_add(recorded.launches.len() as u64, Relaxed);
        counters.submissions.fetch_add(recorded.submissions.len() as u64, Relaxed);
        let mut last = None;
        for range in &recorded.submissions {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                for ready in &recorded.launches[range.clone()] {
                    pass.set_pipeline(&ready.pipeline.pipeline);
                    pass.set_bind_group(0, &ready.bind_group, &[]);
                    let [x, y, z] = ready.groups;
                    pass.dispatch_workgroups(x, y, z);
                }
            }
            last = Some(self.queue.submit([encoder.finish()]));
        }
        counters.submit_micros.fetch_add(((host::seconds() - start) * 1e6) as u64, Relaxed);
        if recorded.rate.get().is_none() {
            let work = recorded.launches.iter().map(|l| l.work).sum();
            let timed = host::time(&self.device, &self.queue, start, work, &recorded.rate);
            timed.map_err(|error| self.fault_or(&error))?;
        }
        if let Some(index) = last {
            lock(&self.in_flight).push_back(host::flight(&self.queue, index));
        }
        self.check()
    }

    /// Waits until fewer than [`MAX_IN_FLIGHT`] replays are queued, where waiting is possible.
    fn make_room(&self) -> Result<()> {
        if !host::BLOCKS {
            return Ok(());
        }
        let mut in_flight = lock(&self.in_flight);
        while in_flight.len() >= MAX_IN_FLIGHT {
            let oldest = in_flight.pop_front();
            self.wait(oldest)?;
        }
        Ok(())
    }

    /// Waits until fewer than [`MAX_IN_FLIGHT`] replays are queued.
    pub(crate) async fn catch_up(&self) -> Result<()> {
        while let Some(oldest) = self.oldest_in_the_way() {
            let landed = host::landed(&self.device, oldest).await;
            landed.map_err(|error| self.fault_or(&error))?;
        }
        self.check()
    }

    /// A function of its own, so that no lock is held while waiting.
    fn oldest_in_the_way(&self) -> Option<host::Flight> {
        let mut in_flight = lock(&self.in_flight);
        if in_flight.len() >= MAX_IN_FLIGHT { in_flight.pop_front() } else { None }
    }

    fn wait(&self, submission: Option<host::Flight>) -> Result<()> {
        host::wait(&self.device, submission).map_err(|error| self.fault_or(&error))?;
        self.check()
    }

    fn check(&self) -> Result<()> {
        match lock(&self.fault).clone() {
            None => Ok(()),
            Some(fault) => Err(device_fault(&self.summary, &fault.what)),
        }
    }

    fn fault_or(&self, other: &str) -> Error {
        let fault = lock(&self.fault).clone();
        device_fault(&self.summary, fault.as_ref().map_or(other, |fault| &fault.what))
    }

    /// Whether the device is gone, so that only a new one can help.
    pub(crate) fn is_lost(&self) -> bool {
        lock(&self.fault).as_ref().is_some_and(|fault| fault.lost)
    }

    /// Destroys the device as a crash of the driver would.
    pub(crate) fn lose(&self) {
        let what = "device lost: destroyed on demand".to_owned();
        lock(&self.fault).get_or_insert(Fault { what, lost: true });
        self.device.destroy();
    }

    fn ready(&self, launch: &Launch, uniforms: &wgpu::Buffer, offset: u64) -> Result<Ready> {
        let pipeline = self.pipeline(launch)?;
        let uniform = wgpu::BufferBinding { buffer: uniforms, offset, size: std::num::NonZeroU64::new(UNIFORM_STRIDE) };
        let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(uniform) }];
        for (i, (slice, _)) in launch.bindings.iter().enumerate() {
            let super::Memory::Gpu(raw) = &slice.buffer.memory else {
                return Err(Error::internal("a CPU buffer in a GPU plan"));
            };
            let size = std::num::NonZeroU64::new(slice.bytes);
            let range = wgpu::BufferBinding { buffer: &raw.0, offset: slice.offset, size };
            entries
                .push(wgpu::BindGroupEntry { binding: i as u32 + 1, resource: wgpu::BindingResource::Buffer(range) });
        }
        let label = Some(launch.dispatch.shader.name);
        let bind_group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label,
            layout: &pipeline.layout,
            entries: &entries,
        });
        Ok(Ready { pipeline, bind_group, groups: launch.dispatch.groups, work: launch.work })
    }

    fn pipeline(&self, launch: &Launch) -> Result<Arc<Pipeline>> {
        let dispatch = &launch.dispatch;
        let writes: Vec<bool> = launch.bindings.iter().map(|(_, writes)| *writes).collect();
        let key = format!("{}:{}:{:?}:{writes:?}", dispatch.shader.name, dispatch.entry, dispatch.constants);
        if let Some(pipeline) = lock(&self.pipelines).get(&key) {
            return Ok(pipeline.clone());
        }
        let text = dispatch.shader.specialise(&dispatch.constants).map_err(Error::internal)?;
        let name = dispatch.shader.name;
        let built = host::scoped(&self.device, wgpu::ErrorFilter::Validation, || {
            self.build_pipeline(name, dispatch.entry, text, &writes)
        });
        let pipeline = built.map_err(|error| Error::internal(format!("shader `{name}` does not build: {error}")))?;
        let pipeline = Arc::new(pipeline);
        lock(&self.pipelines).insert(key, pipeline.clone());
        Ok(pipeline)
    }

    fn build_pipeline(&self, name: &str, entry: &str, text: String, writes: &[bool]) -> Pipeline {
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: Some(name), source: wgpu::ShaderSource::Wgsl(text.into()) };
        let module = if self.caps.trusted {
            // SAFETY: the kernels are this crate's own; every one passes the case table with the checks on
            // (POTSTILL_CHECKED=1), where an access out of bounds would change the result, and all loops are bounded.
            unsafe { self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
        } else {
            self.device.create_shader_module(descriptor)
        };
        let entry_of = |binding: u32, ty: wgpu::BufferBindingType| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let mut entries = vec![entry_of(0, wgpu::BufferBindingType::Uniform)];
        for (i, writes) in writes.iter().enumerate() {
            entries.push(entry_of(i as u32 + 1, wgpu::BufferBindingType::Storage { read_only: !writes }));
        }
        let label = Some(name);
        let layout =
            self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let kept = self.kept.as_ref().map(|kept| lock(kept));
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: !self.caps.trusted,
                ..Default::default()
            },
            cache: kept.as_ref().map(|kept| &kept.cache),
        });
        Pipeline { pipeline, layout }
    }
}

impl Recorded {
    /// Cuts anew for the measured speed, once it is known.
    fn calibrate(&mut self) {
        if let (Some(rate), false) = (self.rate.get(), self.calibrated) {
            self.submissions = cut(&self.launches, (rate * SUBMISSION_SECONDS) as u64);
            self.calibrated = true;
        }
    }
}

/// Splits launches into submissions of about `budget` work each.
fn cut(launches: &[Ready], budget: u64) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut work) = (0, 0u64);
    for (i, launch) in launches.iter().enumerate() {
        if i > start && (work + launch.work > budget || i - start >= MAX_DISPATCHES) {
            ranges.push(start..i);
            (start, work) = (i, 0);
        }
        work += launch.work;
    }
    if start < launches.len() {
        ranges.push(start..launches.len());
    }
    ranges
}

fn watch_for_faults(device: &wgpu::Device) -> Arc<Mutex<Option<Fault>>> {
    let fault = Arc::new(Mutex::new(None));
    let (on_error, on_loss) = (fault.clone(), fault.clone());
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        lock(&on_error).get_or_insert(Fault { what: error.to_string(), lost: false });
    }));
    device.set_device_lost_callback(move |reason, message| {
        if reason != wgpu::DeviceLostReason::Destroyed {
            // What failed before is a consequence of it.
            *lock(&on_loss) = Some(Fault { what: format!("device lost: {message}"), lost: true });
        }
    });
    fault
}

fn device_fault(summary: &AdapterSummary, fault: &str) -> Error {
    let help = if fault.to_lowercase().contains("memory") {
        "use a smaller batch or sequence length, or `--device cpu`"
    } else {
        "run `potstill doctor`; a training run continues from its last checkpoint when started again"
    };
    Error::device(format!("{summary}: {fault}"), help)
}
