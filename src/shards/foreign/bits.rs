//! Bit packing. Byte strings: elements one after another, the most significant bit first, padded with zero bits to a
//! byte. Words (legacy): elements from the least significant bit up, none across a word's end.

/// Bytes that `count` elements of `width` bits (1 to 64) take.
pub(super) fn packed_bytes(count: usize, width: u32) -> usize {
    (count as u64 * u64::from(width)).div_ceil(8) as usize
}

/// Appends `values` of `width` bits (1 to 64), which must fit.
pub(super) fn pack(values: impl IntoIterator<Item = u64>, width: u32, out: &mut Vec<u8>) {
    let (mut pending, mut filled) = (0u128, 0u32);
    for value in values {
        pending = pending << width | u128::from(value);
        filled += width;
        while filled >= 8 {
            filled -= 8;
            out.push((pending >> filled) as u8);
        }
        pending &= (1 << filled) - 1;
    }
    if filled > 0 {
        out.push((pending << (8 - filled)) as u8);
    }
}

/// The elements of `width` bits (1 to 64) that lie whole in `bytes`.
pub(super) fn unpack(bytes: &[u8], width: u32) -> impl Iterator<Item = u64> + '_ {
    let (mut pending, mut filled) = (0u128, 0u32);
    let mut bytes = bytes.iter();
    std::iter::from_fn(move || {
        while filled < width {
            pending = pending << 8 | u128::from(*bytes.next()?);
            filled += 8;
        }
        filled -= width;
        let value = (pending >> filled) as u64;
        pending &= (1 << filled) - 1;
        Some(value)
    })
}

/// The elements of `width` bits (1 to 63) in `words`.
pub(super) fn unpack_words(words: &[u64], width: u32) -> impl Iterator<Item = u64> + '_ {
    let mask = u64::MAX >> (64 - width);
    words.iter().flat_map(move |word| (0..64 / width).map(move |i| word >> (width * i) & mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_strings_round_trip_at_every_width() {
        for width in 1..=64u32 {
            let mask = u64::MAX >> (64 - width);
            let values: Vec<u64> = (1..30u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15) & mask).collect();
            let mut bytes = Vec::new();
            pack(values.iter().copied(), width, &mut bytes);
            assert_eq!(bytes.len(), packed_bytes(values.len(), width));
            assert_eq!(unpack(&bytes, width).take(values.len()).collect::<Vec<_>>(), values, "width {width}");
        }
    }

    #[test]
    fn the_first_element_has_the_highest_bits_of_the_first_byte() {
        let mut bytes = Vec::new();
        pack([4, 4, 1, 6, 7], 3, &mut bytes);
        assert_eq!(bytes, [0x90, 0xee]);
    }
}
