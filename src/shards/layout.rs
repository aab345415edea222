//! Where each number of a row lies, in 32-bit words, so that a shader reads rows as `array<u32>`.
//!
//! ```text
//! word 0                  token id in bits 0-23, flags in bits 24-31
//! word 1                  f32: negative log-likelihood of the true next token at T = 1
//! then, top-k only        per temperature: f32 tail mass, f32 log-partition c_T
//! ids_at ..               `entries` ids of `id_bits` bits each, a little-endian bit stream
//! values_at ..            `entries` values of `value_bits` bits each, likewise
//! ```
//!
//! Rows of hidden states have no ids: `entries` counts the numbers of all stored states, one state after another.
//!
//! One bit-stream reader decodes every field: entry `i` of width `b` occupies bits `i*b .. (i+1)*b` of its section,
//! bit 0 being the least significant bit of the section's first word. Sections start on a word; the bits left over at
//! their end are zero.

use serde::{Deserialize, Serialize};

use super::spec::{LogProbType, Record, SetSpec, StateType};

/// Word of a row that holds token id and flags.
pub const TOKEN_AT: u32 = 0;
/// Word of a row that holds the f32 negative log-likelihood of the true next token.
pub const NLL_AT: u32 = 1;
/// What a log-probability of minus infinity becomes in `f32` storage: a finite number whose exponential is 0.
pub const F32_FLOOR: f32 = -1e30;

/// How the value bits of an entry are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValueType {
    /// Unsigned count of draws.
    Count = 0,
    /// Bits of an f32 log-probability.
    F32 = 1,
    /// Unsigned code: log-probability = -code x step.
    Unorm = 2,
    /// Bits of a half-precision number of a hidden state.
    F16 = 3,
    /// Bits of a brain float of a hidden state.
    Bf16 = 4,
}

/// Places and widths of a row's fields. Everything is in words except the `*_bits`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowLayout {
    /// Words from one row to the next.
    pub stride_words: u32,
    /// First (tail mass, log-partition) pair.
    pub temperatures_at: u32,
    /// Number of such pairs; 0 in all but top-k rows.
    pub temperatures: u32,
    /// k, or the slots of a sampled row, or the numbers of all hidden states.
    pub entries: u32,
    /// First word of the ids.
    pub ids_at: u32,
    /// Bits of an id: enough for `vocab_size - 1`; 0 in rows of hidden states.
    pub id_bits: u32,
    /// First word of the log-probabilities or counts.
    pub values_at: u32,
    /// Bits of a log-probability, count or number of a state.
    pub value_bits: u32,
    /// How those bits are read.
    pub values: ValueType,
    /// Least log-probability that the values can express; 0 for all else.
    pub floor: f32,
}

/// Bits of the largest of `count` values from 0.
fn bits_for(count: u32) -> u32 {
    (32 - count.saturating_sub(1).leading_zeros()).max(1)
}

impl RowLayout {
    /// The layout of a set with this spec.
    pub fn new(spec: &SetSpec) -> RowLayout {
        let widest = spec.temperatures.iter().fold(1.0f32, |a, &b| a.max(b));
        let (entries, value_bits, values, floor, temperatures) = match &spec.record {
            Record::Hidden { states, hidden_size, layers } => {
                let values = match states {
                    StateType::F16 => ValueType::F16,
                    StateType::Bf16 => ValueType::Bf16,
                };
                (hidden_size.saturating_mul(layers.len() as u32), 16, values, 0.0, 0)
            }
            &Record::Sampled { draws, max_unique, .. } => {
                (max_unique, bits_for(draws.saturating_add(1)), ValueType::Count, 0.0, 0)
            }
            &Record::TopK { k, log_probs } => {
                let (bits, values, floor) = match log_probs {
                    LogProbType::F32 => (32, ValueType::F32, F32_FLOOR),
                    LogProbType::Unorm(bits) => (u32::from(bits), ValueType::Unorm, -24.0 * widest),
                };
                (k, bits, values, floor, spec.temperatures.len() as u32)
            }
        };
        let id_bits = if spec.record.kind() == 2 { 0 } else { bits_for(spec.vocab_size) };
        let words = |bits: u32| (u64::from(entries) * u64::from(bits)).div_ceil(32).min(u32::MAX.into()) as u32;
        let temperatures_at = NLL_AT + 1;
        let ids_at = temperatures_at + 2 * temperatures;
        let values_at = ids_at.saturating_add(words(id_bits));
        let stride_words = values_at.saturating_add(words(value_bits));
        RowLayout {
            stride_words,
            temperatures_at,
            temperatures,
            entries,
            ids_at,
            id_bits,
            values_at,
            value_bits,
            values,
            floor,
        }
    }

    /// Bytes from one row to the next.
    pub fn stride_bytes(&self) -> u64 {
        4 * u64::from(self.stride_words)
    }

    /// Word of the tail mass at temperature number `j` of the spec (top-k rows).
    pub fn tail_at(&self, j: u32) -> u32 {
        self.temperatures_at + 2 * j
    }

    /// Word of the log-partition c_T at temperature number `j` of the spec (top-k rows); c_1 is 0.
    pub fn log_partition_at(&self, j: u32) -> u32 {
        self.tail_at(j) + 1
    }

    /// Nats between neighbouring `Unorm` codes; 0 for the other types.
    pub fn step(&self) -> f32 {
        match self.values {
            ValueType::Unorm => -self.floor / ((1u32 << self.value_bits) - 1) as f32,
            _ => 0.0,
        }
    }

    /// The twelve words of a shader's layout uniform: stride_words, temperatures_at, temperatures, entries, ids_at,
    /// id_bits, values_at, value_bits, value type (0 count, 1 f32, 2 unorm, 3 f16, 4 bf16), bits of the f32 step, 0, 0.
    pub fn uniform_words(&self) -> [u32; 12] {
        let l = self;
        let head = [l.stride_words, l.temperatures_at, l.temperatures, l.entries, l.ids_at, l.id_bits];
        let tail = [l.values_at, l.value_bits, l.values as u32, l.step().to_bits(), 0, 0];
        std::array::from_fn(|i| if i < 6 { head[i] } else { tail[i - 6] })
    }

    /// The stored bits of a log-probability (not NaN); values outside `[floor, 0]` go to the nearer end.
    pub fn encode_log_prob(&self, log_prob: f32) -> u32 {
        // Not `min(0.0)`: the sign of its zero is unspecified, and files are compared bit for bit.
        let l = if log_prob < 0.0 { log_prob.max(self.floor) } else { 0.0 };
        match self.values {
            ValueType::F32 => l.to_bits(),
            ValueType::Unorm => {
                let most = f64::from((1u32 << self.value_bits) - 1);
                (f64::from(l) / f64::from(self.floor) * most).round() as u32
            }
            ValueType::Count | ValueType::F16 | ValueType::Bf16 => 0,
        }
    }

    /// The log-probability, or number of a hidden state, behind stored bits; a count is returned as a number.
    pub fn decode_value(&self, bits: u32) -> f32 {
        match self.values {
            ValueType::F32 => f32::from_bits(bits),
            ValueType::Unorm => -(bits as f32) * self.step(),
            ValueType::Count => bits as f32,
            ValueType::F16 => StateType::F16.decode(bits as u16),
            ValueType::Bf16 => StateType::Bf16.decode(bits as u16),
        }
    }

    /// Greatest difference between a log-probability in `[floor, 0]` and its stored form: half a step, and the
    /// roundings of the f32 product.
    pub fn rounding(&self) -> f32 {
        match self.values {
            ValueType::Unorm => 0.5 * self.step() - self.floor * 2e-7,
            ValueType::F32 | ValueType::Count | ValueType::F16 | ValueType::Bf16 => 0.0,
        }
    }
}

/// Writes entry `index` of `width` bits (1 to 32) into a zeroed section; `value` must fit.
pub fn put_bits(section: &mut [u32], index: usize, width: u32, value: u32) {
    let bit = index as u64 * u64::from(width);
    let (word, shift) = ((bit / 32) as usize, (bit % 32) as u32);
    section[word] |= value << shift;
    if shift + width > 32 {
        section[word + 1] |= value >> (32 - shift);
    }
}

/// Reads entry `index` of `width` bits (1 to 32) of a section.
pub fn get_bits(section: &[u32], index: usize, width: u32) -> u32 {
    let bit = index as u64 * u64::from(width);
    let (word, shift) = ((bit / 32) as usize, (bit % 32) as u32);
    let mut value = section[word] >> shift;
    if shift + width > 32 {
        value |= section[word + 1] << (32 - shift);
    }
    value & (u32::MAX >> (32 - width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_the_bits_of_the_largest_value() {
        let expect = [(2, 1), (256, 8), (257, 9), (49_152, 16), (65_536, 16), (65_537, 17), (151_936, 18), (51, 6)];
        for (count, bits) in expect {
            assert_eq!(bits_for(count), bits, "{count}");
        }
    }

    #[test]
    fn bit_streams_round_trip_at_every_width() {
        for width in 1..=32u32 {
            let mask = u32::MAX >> (32 - width);
            let values: Vec<u32> = (0..37u32).map(|i| i.wrapping_mul(0x9E37_79B9).rotate_left(7) & mask).collect();
            let mut section = vec![0; (37 * width).div_ceil(32) as usize];
            for (i, &v) in values.iter().enumerate() {
                put_bits(&mut section, i, width, v);
            }
            let read: Vec<u32> = (0..37).map(|i| get_bits(&section, i, width)).collect();
            assert_eq!(read, values, "width {width}");
        }
    }
}
