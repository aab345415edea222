//! The four storage types of floating-point numbers, little-endian.

use half::{bf16, f16};
use serde::Serialize;

/// A storage type, by its name in torch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatType {
    /// IEEE half precision.
    Float16,
    /// The upper half of single precision.
    Bfloat16,
    /// IEEE single precision.
    Float32,
    /// IEEE double precision.
    Float64,
}

impl FloatType {
    /// Every type with its name.
    pub const NAMES: &'static [(&'static str, FloatType)] = &[
        ("float16", FloatType::Float16),
        ("bfloat16", FloatType::Bfloat16),
        ("float32", FloatType::Float32),
        ("float64", FloatType::Float64),
    ];

    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            FloatType::Float16 | FloatType::Bfloat16 => 2,
            FloatType::Float32 => 4,
            FloatType::Float64 => 8,
        }
    }

    /// The nearest number of this type, ties to even.
    pub fn round(self, x: f64) -> f64 {
        match self {
            FloatType::Float16 => f16::from_f64(x).to_f64(),
            FloatType::Bfloat16 => bf16::from_f64(x).to_f64(),
            FloatType::Float32 => f64::from(x as f32),
            FloatType::Float64 => x,
        }
    }

    /// Appends the nearest number of this type.
    pub(super) fn write(self, x: f64, out: &mut Vec<u8>) {
        match self {
            FloatType::Float16 => out.extend(f16::from_f64(x).to_le_bytes()),
            FloatType::Bfloat16 => out.extend(bf16::from_f64(x).to_le_bytes()),
            FloatType::Float32 => out.extend((x as f32).to_le_bytes()),
            FloatType::Float64 => out.extend(x.to_le_bytes()),
        }
    }

    /// The numbers of a whole number of stored ones.
    pub(super) fn read(self, bytes: &[u8]) -> impl Iterator<Item = f64> + '_ {
        bytes.chunks_exact(self.bytes()).map(move |b| {
            let mut wide = [0u8; 8];
            wide[..b.len()].copy_from_slice(b);
            let word = u64::from_le_bytes(wide);
            match self {
                FloatType::Float16 => f16::from_bits(word as u16).to_f64(),
                FloatType::Bfloat16 => bf16::from_bits(word as u16).to_f64(),
                FloatType::Float32 => f64::from(f32::from_bits(word as u32)),
                FloatType::Float64 => f64::from_bits(word),
            }
        })
    }
}
