//! Teacher distributions as DistillKit (arcee-ai/DistillKit v1) stores them: one list of positions a document, each
//! position decoded by itself. Bytes and numbers only; the files around them are `formats::tables`'.
//!
//! Three forms, told apart by their columns, the first that fits counting:
//!
//! | form | columns | a position |
//! | --- | --- | --- |
//! | raw | `token_ids`, `top_values` | ids and logits or log-probabilities, as they are |
//! | legacy | `packed_indices`, `exact_values`, `coeffs` | ids in 64-bit words, a head of floats, a polynomial tail |
//! | new | `compressed_logprobs`, `bytepacked_indices` | two byte strings, see [`Compressor`] |
//!
//! `docs/distillkit.md` gives the forms byte by byte.

mod basis;
mod bits;
mod compressor;
mod legacy;
mod number;

pub use compressor::{Bin, Compressor, CompressorConfig, Term};
pub use legacy::{Legacy, LegacyConfig};
pub use number::FloatType;

use std::fmt;

/// The three stored forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Ids and values as they are.
    Raw,
    /// Words of ids, a head of floats, a polynomial of centred logits.
    Legacy,
    /// Byte strings ("distribution quantization").
    New,
}

impl Form {
    /// The columns of this form, ids first.
    pub fn columns(self) -> &'static [&'static str] {
        match self {
            Form::Raw => &["token_ids", "top_values"],
            Form::Legacy => &["packed_indices", "exact_values", "coeffs"],
            Form::New => &["bytepacked_indices", "compressed_logprobs"],
        }
    }

    /// The form of a table with these columns, if it is one.
    pub fn recognise<'a>(columns: impl IntoIterator<Item = &'a str> + Clone) -> Option<Form> {
        let has = |name: &str| columns.clone().into_iter().any(|column| column == name);
        [Form::Raw, Form::Legacy, Form::New].into_iter().find(|form| form.columns().iter().all(|name| has(name)))
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Form::Raw => "raw",
            Form::Legacy => "legacy",
            Form::New => "new",
        })
    }
}

/// One position decoded: ids and their values, in stored order (falling).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Position {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Log-probabilities, or logits where the form holds those.
    pub values: Vec<f64>,
}

/// Something about one position or one configuration that cannot be; whoever knows the file makes an error of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The column or key.
    pub field: &'static str,
    /// What should have been there.
    pub expected: String,
    /// What was there.
    pub found: String,
}

impl Fault {
    fn new(field: &'static str, expected: impl fmt::Display, found: impl fmt::Display) -> Fault {
        Fault { field, expected: expected.to_string(), found: found.to_string() }
    }
}

/// Bits of an id: `ceil(log2(d))`, the logarithm rounded to single precision as DistillKit computes it.
fn index_bits(d: u32) -> u32 {
    (f64::from(d).log2() as f32).ceil() as u32
}

/// Refuses ids of which one is not below `vocabulary` or stands twice, and values that are not finite.
pub fn check_position(position: &Position, vocabulary: u32, fields: (&'static str, &'static str)) -> Result<(), Fault> {
    if let Some(id) = position.ids.iter().find(|id| **id >= vocabulary) {
        return Err(Fault::new(fields.0, format!("ids below {vocabulary}"), id));
    }
    let mut sorted = position.ids.clone();
    sorted.sort_unstable();
    if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Fault::new(fields.0, "each id once", format!("{} twice", twice[0])));
    }
    match position.values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(entry) => {
            let found = format!("{} at entry {entry}", position.values[entry]);
            Err(Fault::new(fields.1, "finite numbers", found))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_whose_columns_are_all_there_counts() {
        let raw = ["input_ids", "token_ids", "top_values", "packed_indices", "exact_values", "coeffs"];
        assert_eq!(Form::recognise(raw), Some(Form::Raw));
        let legacy = ["coeffs", "top_values", "packed_indices", "exact_values", "compressed_logprobs"];
        assert_eq!(Form::recognise(legacy), Some(Form::Legacy));
        assert_eq!(Form::recognise(["compressed_logprobs", "bytepacked_indices"]), Some(Form::New));
        assert_eq!(Form::recognise(["compressed_logprobs", "input_ids"]), None);
    }

    #[test]
    fn index_bits_are_those_of_the_published_vocabularies() {
        let known = [(2, 1), (1000, 10), (50_257, 16), (65_536, 16), (128_256, 17), (129_280, 17), (151_936, 18)];
        for (d, bits) in known.into_iter().chain([(262_144, 18), (262_145, 19)]) {
            assert_eq!(index_bits(d), bits, "{d}");
        }
    }
}
