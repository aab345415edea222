//! What a device can do beyond the baseline, as plain numbers.

/// Limits and features of a device. [`Caps::webgpu`] is the baseline that every kernel must run on.
#[derive(Debug, Clone, PartialEq)]
pub struct Caps {
    /// Largest range one storage binding may cover, bytes.
    pub max_binding: u64,
    /// Largest single buffer, bytes.
    pub max_buffer: u64,
    /// Storage buffers one dispatch may bind.
    pub max_storage_buffers: u32,
    /// Workgroups along one dispatch dimension.
    pub max_workgroups: u32,
    /// Bytes of workgroup memory.
    pub workgroup_memory: u32,
    /// Invocations in a workgroup.
    pub max_invocations: u32,
    /// 16-bit floats in shaders.
    pub f16: bool,
    /// Subgroup operations in shaders.
    pub subgroups: bool,
    /// A software rasteriser: correct, slow, never chosen by `auto`.
    pub software: bool,
    /// Shaders run without bounds checks, loop bounding and workgroup zero-initialisation.
    pub trusted: bool,
}

impl Caps {
    /// The limits every WebGPU implementation grants without asking.
    pub fn webgpu() -> Caps {
        Caps {
            max_binding: 128 << 20,
            max_buffer: 256 << 20,
            max_storage_buffers: 8,
            max_workgroups: 65_535,
            workgroup_memory: 16 << 10,
            max_invocations: 256,
            f16: false,
            subgroups: false,
            software: false,
            trusted: false,
        }
    }
}
