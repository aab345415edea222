//! How a tensor's numbers are stored, and how they become f32.

use super::quants;
use half::{bf16, f16};
use std::fmt;

/// A storage type: IEEE and brain floats, GGUF's block quantisations, or a safetensors type kept only by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// 16-bit brain float.
    Bf16,
    /// A GGUF block quantisation.
    Quant(Quant),
    /// A safetensors type that holds no weights this crate reads (integers, booleans, f64, f8); listed, never
    /// decoded.
    Other(&'static str),
}

/// GGUF's block quantisations, by their ggml names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types)]
pub enum Quant {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl Quant {
    /// Values in a block and the bytes that hold them (ggml's `GGML_QUANT_SIZES`).
    pub const fn block(self) -> (usize, usize) {
        match self {
            Quant::Q4_0 => (32, 18),
            Quant::Q4_1 => (32, 20),
            Quant::Q5_0 => (32, 22),
            Quant::Q5_1 => (32, 24),
            Quant::Q8_0 => (32, 34),
            Quant::Q2_K => (256, 84),
            Quant::Q3_K => (256, 110),
            Quant::Q4_K => (256, 144),
            Quant::Q5_K => (256, 176),
            Quant::Q6_K => (256, 210),
        }
    }
}

/// ggml's type numbers that this crate does not read, for messages (`ggml.h`; gaps are types since removed).
const UNREAD_GGML_TYPES: [(u32, &str); 22] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

impl Dtype {
    /// The type of ggml's number `id`, or the name of one that is not read.
    pub fn from_ggml(id: u32) -> Result<Self, String> {
        Ok(match id {
            0 => Dtype::F32,
            1 => Dtype::F16,
            2 => Dtype::Quant(Quant::Q4_0),
            3 => Dtype::Quant(Quant::Q4_1),
            6 => Dtype::Quant(Quant::Q5_0),
            7 => Dtype::Quant(Quant::Q5_1),
            8 => Dtype::Quant(Quant::Q8_0),
            10 => Dtype::Quant(Quant::Q2_K),
            11 => Dtype::Quant(Quant::Q3_K),
            12 => Dtype::Quant(Quant::Q4_K),
            13 => Dtype::Quant(Quant::Q5_K),
            14 => Dtype::Quant(Quant::Q6_K),
            30 => Dtype::Bf16,
            _ => {
                let known = UNREAD_GGML_TYPES.iter().find(|(number, _)| *number == id);
                return Err(known.map_or(format!("type number {id}"), |(_, name)| (*name).to_string()));
            }
        })
    }

    /// Values in a block and bytes that hold them; none for a type that is not decoded.
    pub const fn block(self) -> Option<(usize, usize)> {
        match self {
            Dtype::F32 => Some((1, 4)),
            Dtype::F16 | Dtype::Bf16 => Some((1, 2)),
            Dtype::Quant(quant) => Some(quant.block()),
            Dtype::Other(_) => None,
        }
    }

    /// Decodes `bytes` (whole blocks) into `out`, which has room for exactly their values. Not for [`Dtype::Other`].
    pub(super) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Dtype::F32 => decode_each(bytes, out, f32::from_le_bytes),
            Dtype::F16 => decode_each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::Bf16 => decode_each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::Quant(quant) => quants::dequantise(quant, bytes, quant.block().1, out),
            Dtype::Other(_) => unreachable!("refused before any bytes are asked for"),
        }
    }

    /// Encodes `values` as little-endian floats of this type (round to nearest even), appending to `out`.
    /// Only the three float types are ever written.
    pub(crate) fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            Dtype::F16 => encode_each(values, out, |v| f16::from_f32(v).to_le_bytes()),
            Dtype::Bf16 => encode_each(values, out, |v| bf16_bits(v).to_le_bytes()),
            _ => encode_each(values, out, f32::to_le_bytes),
        }
    }
}

fn encode_each<const N: usize>(values: &[f32], out: &mut Vec<u8>, encode: impl Fn(f32) -> [u8; N]) {
    let start = out.len();
    out.resize(start + N * values.len(), 0);
    for (bytes, value) in out[start..].as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *bytes = encode(*value);
    }
}

/// The bits of `bf16::from_f32(value)`, found without branches, so that compilers take many values at a time.
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let even = (bits >> 16) & 1;
    let rounded = bits.wrapping_add(0x7fff + even) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) as u16
}

fn decode_each<const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = decode(*bytes);
    }
}

impl fmt::Display for Dtype {
    /// The name the file format uses: `F32`, `BF16`, `Q4_K`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dtype::F32 => f.write_str("F32"),
            Dtype::F16 => f.write_str("F16"),
            Dtype::Bf16 => f.write_str("BF16"),
            Dtype::Quant(quant) => write!(f, "{quant:?}"),
            Dtype::Other(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bfloat16_is_rounded_as_half_does() {
        // Every sign and exponent, with mantissas around halfway between two values, and those of NaN.
        let low = [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1_7fff, 0x1_8000, 0x1_8001, 0x7f_8000, 0x7f_ffff];
        for high in 0..512u32 {
            for bits in low.map(|low| high << 23 | low) {
                let value = f32::from_bits(bits);
                assert_eq!(bf16_bits(value), bf16::from_f32(value).to_bits(), "{bits:#x}");
            }
        }
    }
}
