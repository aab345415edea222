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
    /// Rounded to 16-bit floats on the way in, gradients after a power of two has brought them into their range, where
    /// shaders have them ([`Caps::f16`]).
    F16,
}

impl Precision {
    /// Whether it is f32.
    pub fn is_f32(&self) -> bool {
        *self == Precision::F32
    }
}

/// Products of blocks of f16, summed in f32, that the invocations of a subgroup compute together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cooperative {
    /// Rows and columns of a block: 8 or 16.
    pub edge: u32,
    /// Panels of 2 x 4 blocks in a workgroup, down and across: never more than it has subgroups.
    pub panels: [u32; 2],
    /// Invocations in a workgroup.
    pub threads: u32,
}

impl Cooperative {
    /// Bytes of workgroup memory that the largest tile takes: both strips, with their padding, and the panels' blocks.
    pub const WORKGROUP_MEMORY: u32 = 2 * 2 * 128 * 40 + 4 * 8 * 256;

    /// For blocks of `edge` in subgroups of at most `subgroup` invocations (of which 256 fit a workgroup).
    pub fn new(edge: u32, subgroup: u32) -> Cooperative {
        let subgroup = subgroup.clamp(1, 256);
        let panels = match 256 / subgroup {
            8.. => [4, 2],
            4.. => [2, 2],
            2.. => [1, 2],
            _ => [1, 1],
        };
        Cooperative { edge, panels, threads: panels[0] * panels[1] * subgroup }
    }

    /// Rows and columns that a workgroup computes.
    pub fn tile(&self) -> [u32; 2] {
        [self.panels[0] * 2 * self.edge, self.panels[1] * 4 * self.edge]
    }
}

/// Which tiles matrix products are computed in on a GPU: larger ones read less, smaller ones keep more cores busy. The
/// results do not depend on it beyond the order of sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiles {
    /// Load and store four elements at a time where the matrices allow it.
    pub fours: bool,
    /// Tiles of 64 x 64 from which on they are taken, instead of 32 x 32.
    pub middle_from: usize,
    /// Tiles of 128 x 128 from which on they are taken, where elements are loaded in fours.
    pub large_from: usize,
}

impl Default for Tiles {
    /// Enough tiles for the cores of a large GPU.
    fn default() -> Tiles {
        Tiles { fours: true, middle_from: 128, large_from: 256 }
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
    /// Matrices that a subgroup multiplies together.
    pub cooperative: Option<Cooperative>,
    /// Which tiles matrix products are computed in.
    pub tiles: Tiles,
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
            cooperative: None,
            tiles: Tiles::default(),
            software: false,
            trusted: false,
        }
    }
}
