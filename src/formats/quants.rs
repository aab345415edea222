//! GGUF's block quantisations to f32, block layouts as in ggml (`ggml-common.h`) and the `gguf` Python package.
//!
//! A block is little-endian, with f16 scales. "Legacy" blocks hold 32 values, K blocks 256 in 16 or 8 sub-blocks with
//! small integer scales. Nibbles lie half a block apart: byte j of the quants holds value j (low) and value j + 16
//! (high); K blocks do the same over 64 or 128 values. Products are taken in the reference's order, so that results
//! are equal bit for bit.

use super::dtype::Quant;
use half::f16;

/// Decodes blocks of `bytes`, one every `stride` bytes, into `out`. What it calls is inlined into each instruction set's
/// version of it.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn dequantise(quant: Quant, bytes: &[u8], stride: usize, out: &mut [f32]) {
    match quant {
        Quant::Q4_0 => each_block(bytes, stride, out, q4_0),
        Quant::Q4_1 => each_block(bytes, stride, out, q4_1),
        Quant::Q5_0 => each_block(bytes, stride, out, q5_0),
        Quant::Q5_1 => each_block(bytes, stride, out, q5_1),
        Quant::Q8_0 => each_block(bytes, stride, out, q8_0),
        Quant::Q2_K => each_block(bytes, stride, out, q2_k),
        Quant::Q3_K => each_block(bytes, stride, out, q3_k),
        Quant::Q4_K => each_block(bytes, stride, out, q4_k),
        Quant::Q5_K => each_block(bytes, stride, out, q5_k),
        Quant::Q6_K => each_block(bytes, stride, out, q6_k),
    }
}

#[inline(always)]
fn each_block<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    stride: usize,
    out: &mut [f32],
    decode: fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    let blocks = bytes.chunks(stride).filter_map(|block| block.first_chunk());
    for (block, values) in blocks.zip(out.as_chunks_mut().0) {
        decode(block, values);
    }
}

#[inline(always)]
fn scale(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// d, 16 bytes of nibbles: d * (q - 8).
#[inline(always)]
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    for (j, byte) in block[2..].iter().enumerate() {
        out[j] = d * f32::from((byte & 15) as i8 - 8);
        out[j + 16] = d * f32::from((byte >> 4) as i8 - 8);
    }
}

/// d, m, 16 bytes of nibbles: d * q + m.
#[inline(always)]
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    for (j, byte) in block[4..].iter().enumerate() {
        out[j] = d * f32::from(byte & 15) + m;
        out[j + 16] = d * f32::from(byte >> 4) + m;
    }
}

/// The 32 five-bit values of a Q5_0 or Q5_1 block: four bytes of fifth bits, then nibbles.
#[inline(always)]
fn five_bits(bytes: &[u8]) -> [u8; 32] {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let mut q = [0; 32];
    for (j, &byte) in bytes[4..20].iter().enumerate() {
        q[j] = byte & 15;
        q[j + 16] = byte >> 4;
    }
    for (i, q) in q.iter_mut().enumerate() {
        *q |= ((high >> i & 1) << 4) as u8;
    }
    q
}

/// d, fifth bits, nibbles: d * (q - 16).
#[inline(always)]
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    *out = five_bits(&block[2..]).map(|q| d * (f32::from(q) - 16.0));
}

/// d, m, fifth bits, nibbles: d * q + m.
#[inline(always)]
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    *out = five_bits(&block[4..]).map(|q| d * f32::from(q) + m);
}

/// d, 32 signed bytes: d * q.
#[inline(always)]
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    // By index: compilers then see that both sides are 32 long, and take them in vectors.
    for j in 0..32 {
        out[j] = f32::from(block[2 + j] as i8) * d;
    }
}

/// 16 bytes of (scale, min) nibbles, 64 bytes of 2-bit quants, d, dmin: d * scale * q - dmin * min.
/// Each run of 32 quant bytes holds 128 values, two bits at a time.
#[inline(always)]
fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (d, dmin) = (scale(block, 80), scale(block, 82));
    for (part, values) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (ds, dm) = (d * f32::from(scales[part] & 15), dmin * f32::from(scales[part] >> 4));
        for (value, byte) in values.iter_mut().zip(&quants[part / 8 * 32 + part % 2 * 16..]) {
            *value = ds * f32::from(byte >> (part % 8 / 2 * 2) & 3) - dm;
        }
    }
}

/// 32 bytes of high-bit mask, 64 bytes of 2-bit quants, 12 bytes of sixteen 6-bit scales, d: d * (scale - 32) * q,
/// where q is two bits, less 4 when its mask bit is clear.
#[inline(always)]
fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (mask, quants, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = scale(block, 108);
    let scales: [f32; 16] = std::array::from_fn(|s| {
        let low = packed[s % 8] >> (s / 8 * 4) & 15;
        let high = packed[8 + s % 4] >> (s / 4 * 2) & 3;
        d * f32::from((low | high << 4) as i8 - 32)
    });
    for (part, values) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (quants, mask) = (&quants[part / 8 * 32 + part % 2 * 16..], &mask[part % 2 * 16..]);
        for ((value, byte), mask) in values.iter_mut().zip(quants).zip(mask) {
            let (low, kept) = (byte >> (part % 8 / 2 * 2) & 3, mask >> (part / 2) & 1);
            *value = scales[part] * (f32::from(low | kept << 2) - 4.0);
        }
    }
}

/// The eight 6-bit (scale, min) pairs of a Q4_K or Q5_K block, from its 12 packed bytes.
#[inline(always)]
fn six_bit_pairs(packed: &[u8]) -> [(u8, u8); 8] {
    std::array::from_fn(|j| match j {
        0..4 => (packed[j] & 63, packed[j + 4] & 63),
        _ => (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4),
    })
}

/// d, dmin, 12 bytes of scales and mins, 128 bytes of nibbles: d * scale * q - dmin * min.
/// Each run of 32 quant bytes holds 64 values.
#[inline(always)]
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    let (pairs, quants) = (six_bit_pairs(&block[4..16]), &block[16..]);
    for (run, values) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let [low, high] = [pairs[2 * run], pairs[2 * run + 1]].map(|(sc, m)| (d * f32::from(sc), dmin * f32::from(m)));
        for (j, byte) in quants[32 * run..][..32].iter().enumerate() {
            values[j] = low.0 * f32::from(byte & 15) - low.1;
            values[j + 32] = high.0 * f32::from(byte >> 4) - high.1;
        }
    }
}

/// As Q4_K with 32 bytes of fifth bits before the nibbles: bit `sub` of byte j is for value j of the sub-block.
#[inline(always)]
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    let (pairs, high, quants) = (six_bit_pairs(&block[4..16]), &block[16..48], &block[48..]);
    for (sub, (values, (sc, m))) in out.as_chunks_mut::<32>().0.iter_mut().zip(pairs).enumerate() {
        let (ds, dm) = (d * f32::from(sc), dmin * f32::from(m));
        for ((value, byte), fifth) in values.iter_mut().zip(&quants[sub / 2 * 32..]).zip(high) {
            let q = byte >> (sub % 2 * 4) & 15 | (fifth >> sub & 1) << 4;
            *value = ds * f32::from(q) - dm;
        }
    }
}

/// 128 bytes of nibbles, 64 bytes of 2-bit highs, 16 signed scales, d: d * scale * (q - 32).
/// Each run of 64 nibble bytes and 32 high bytes holds 128 values.
#[inline(always)]
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = scale(block, 208);
    for (part, values) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (run, within) = (part / 8, part % 8 * 16);
        let scale = d * f32::from(scales[part] as i8);
        let low = &low[run * 64 + within % 64..];
        let high = &high[run * 32 + within % 32..];
        for ((value, low), high) in values.iter_mut().zip(low).zip(high) {
            let nibble = low >> (within / 64 * 4) & 15;
            let two = high >> (within / 32 * 2) & 3;
            *value = scale * (f32::from(nibble | two << 4) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::formats::{GgufHeader, Tensors};
    use std::path::Path;

    /// Random blocks against the `gguf` package's dequantisation (tests/golden/make_gguf_golden.py).
    #[test]
    fn every_type_decodes_bit_for_bit_as_the_reference_does() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let bytes = std::fs::read(golden.join("quants.gguf")).unwrap();
        let header = GgufHeader::parse(Path::new("quants.gguf"), &bytes).unwrap();
        let expected = Tensors::open_safetensors(&[golden.join("quants.safetensors")]).unwrap();
        assert_eq!(header.tensors.len(), 13);
        for tensor in &header.tensors {
            assert_eq!((tensor.dtype.to_string(), &tensor.shape[..]), (tensor.name.clone(), &[2, 256][..]));
            let mut values = vec![0.0; 512];
            tensor.dtype.decode(&bytes[tensor.range.clone()], &mut values);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&values), bits(&expected.read_f32(&tensor.name).unwrap()), "{}", tensor.name);
        }
    }
}
