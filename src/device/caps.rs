//! What a device can do beyond the baseline, as plain numbers.

use serde::{Deserialize, Serialize};

/// How matrix products treat their factors. Their sums are f32 always, and so is whatever lies in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As they are, in f32.
    #[default]
    F32,
    /// Rounded to bfloat16 on the way in, where the device has instructions for that ([`Caps::bf16`]).
    Bf16,
}

impl Precision {
    /// Whether it is f32.
    pub fn is_f32(&self) -> bool {
        *self == Precision::F32
    }
}

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
    /// Products of bfloat16 factors.
    pub bf16: bool,
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
            bf16: false,
            f16: false,
            subgroups: false,
            software: false,
            trusted: false,
        }
    }
}
