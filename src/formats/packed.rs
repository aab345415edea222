//! Matrices that stay on a device as their file stores them, and are decoded where they are used.
//!
//! A matrix lies row after row. A row is its blocks in order, each with the bytes it has in the file and zeros up to a
//! whole number of 32-bit words: of Q8_0's 34 bytes it makes 36, Q4_1's 20 and Q4_K's 144 stay as they are. Rows of F16
//! and BF16 are their numbers, two a word, the first in the low half. So rows begin at whole words, and decoding gives
//! exactly what reading the file as f32 gives.

use super::Dtype;
use super::quants::dequantise;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Numbers of F16 and BF16 that count as a block: what kernels decode at once.
const HALVES: usize = 4;

impl Dtype {
    /// Values in a block and the words it takes in memory. None for F32, which needs no decoding, and for what is
    /// not decoded at all.
    pub fn packed_block(self) -> Option<(usize, usize)> {
        match self {
            Dtype::F16 | Dtype::Bf16 => Some((HALVES, HALVES / 2)),
            Dtype::Quant(quant) => Some((quant.block().0, quant.block().1.div_ceil(4))),
            Dtype::F32 | Dtype::Other(_) => None,
        }
    }

    /// Where a block has floats of two bytes: its scales and minima, or all that it is.
    #[cfg(any(not(target_family = "wasm"), feature = "oracle"))]
    pub(crate) fn halves(self) -> Vec<usize> {
        use super::Quant;
        match self {
            Dtype::F16 | Dtype::Bf16 => (0..HALVES).map(|i| 2 * i).collect(),
            Dtype::Quant(Quant::Q4_0 | Quant::Q5_0 | Quant::Q8_0) => vec![0],
            Dtype::Quant(Quant::Q4_1 | Quant::Q5_1 | Quant::Q4_K | Quant::Q5_K) => vec![0, 2],
            Dtype::Quant(Quant::Q2_K) => vec![80, 82],
            Dtype::Quant(Quant::Q3_K) => vec![108],
            Dtype::Quant(Quant::Q6_K) => vec![208],
            Dtype::F32 | Dtype::Other(_) => Vec::new(),
        }
    }

    /// Whether rows of `cols` values can stay as they are stored: whole blocks of a type that is kept.
    pub fn packs(self, cols: usize) -> bool {
        self.packed_block().is_some_and(|(values, _)| cols > 0 && cols.is_multiple_of(values))
    }

    /// Words of a row of `cols` values; one a value of a type that is not kept.
    pub fn packed_words(self, cols: usize) -> usize {
        self.packed_block().map_or(cols, |(values, words)| cols / values * words)
    }

    /// Lays whole blocks of a file into `words`, which has room for exactly them.
    pub(super) fn pack(self, bytes: &[u8], words: &mut [u32]) {
        let packed: &mut [u8] = bytemuck::cast_slice_mut(words);
        if bytes.len() == packed.len() {
            return packed.copy_from_slice(bytes);
        }
        let Some(((_, size), (_, words))) = self.block().zip(self.packed_block()) else { return };
        for (block, to) in bytes.chunks_exact(size).zip(packed.chunks_exact_mut(4 * words)) {
            to[..size].copy_from_slice(block);
            to[size..].fill(0);
        }
    }

    /// Decodes whole blocks in memory into `out`, which has room for exactly their values.
    pub fn unpack(self, words: &[u32], out: &mut [f32]) {
        let bytes: &[u8] = bytemuck::cast_slice(words);
        match (self, self.packed_block()) {
            (Dtype::Quant(quant), Some((_, words))) => dequantise(quant, bytes, 4 * words, out),
            // Eight at a time where the processor can.
            (Dtype::F16, _) => bytemuck::cast_slice::<u8, f16>(bytes).convert_to_f32_slice(out),
            _ => self.decode(bytes, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::formats::{GgufHeader, Tensors};
    use std::path::Path;

    /// The reference's blocks (see `quants.rs`), as they lie in memory.
    #[test]
    fn blocks_in_memory_decode_bit_for_bit_as_the_reference_does() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let bytes = std::fs::read(golden.join("quants.gguf")).unwrap();
        let header = GgufHeader::parse(Path::new("quants.gguf"), &bytes).unwrap();
        let expected = Tensors::open_safetensors(&[golden.join("quants.safetensors")]).unwrap();
        let mut kept = 0;
        for tensor in header.tensors.iter().filter(|tensor| tensor.dtype.packs(256)) {
            let mut words = vec![u32::MAX; 2 * tensor.dtype.packed_words(256)];
            tensor.dtype.pack(&bytes[tensor.range.clone()], &mut words);
            let mut values = vec![0.0; 512];
            tensor.dtype.unpack(&words, &mut values);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&values), bits(&expected.read_f32(&tensor.name).unwrap()), "{}", tensor.name);
            kept += 1;
        }
        assert_eq!(kept, 12);
    }

    #[test]
    fn rows_take_whole_words() {
        use crate::formats::{Dtype, Quant};
        let of = |dtype: Dtype, cols| (dtype.packs(cols), dtype.packed_words(cols));
        assert_eq!(of(Dtype::Quant(Quant::Q8_0), 96), (true, 27));
        assert_eq!(of(Dtype::Quant(Quant::Q4_1), 576), (true, 90));
        assert_eq!(of(Dtype::Quant(Quant::Q6_K), 512), (true, 106));
        assert_eq!(of(Dtype::Bf16, 12), (true, 6));
        assert!(!Dtype::Bf16.packs(6) && !Dtype::Quant(Quant::Q4_K).packs(576) && !Dtype::F32.packs(64));
    }
}
