//! The legacy form: ids in 64-bit words, the first `exact_k` values as floats, the rest as a polynomial in
//! a = 1, 2, ... . Its values are logits less their mean over the vocabulary.

use super::{Fault, Position, bits, index_bits};

/// `legacy_logit_compression`, under DistillKit's names.
#[derive(Clone, Debug, PartialEq)]
pub struct LegacyConfig {
    /// Entries of a position.
    pub k: u32,
    /// Entries stored as they are.
    pub exact_k: u32,
    /// The greatest exponent.
    pub polynomial_degree: u32,
    /// Tokens of the vocabulary; decides the bits of an id.
    pub vocab_size: u32,
    /// Powers a^0, a^-1, ... rather than a^0, a^1, ...; default true.
    pub invert_polynomial: bool,
    /// A square root after the powers; default false.
    pub with_sqrt_term: bool,
    /// How coefficients were rounded.
    pub term_dtype: super::FloatType,
}

/// Decodes positions of the legacy form.
#[derive(Clone, Debug)]
pub struct Legacy {
    config: LegacyConfig,
    /// `[k - exact_k, terms]`, each number as single precision has it, in which the coefficients were fitted.
    basis: Vec<Vec<f64>>,
    index_bits: u32,
}

impl Legacy {
    /// Checks the configuration.
    pub fn new(config: LegacyConfig) -> Result<Legacy, Fault> {
        let c = &config;
        if !(2..=1 << 24).contains(&c.vocab_size) {
            return Err(Fault::new("vocab_size", "2 to 16777216", c.vocab_size));
        }
        if c.k == 0 || c.k > c.vocab_size {
            return Err(Fault::new("k", "1 to `vocab_size`", c.k));
        }
        if c.exact_k > c.k {
            return Err(Fault::new("exact_k", "at most `k`", c.exact_k));
        }
        if c.polynomial_degree > 64 {
            return Err(Fault::new("polynomial_degree", "0 to 64", c.polynomial_degree));
        }
        let powers = (0..=c.polynomial_degree as i32).map(|i| if c.invert_polynomial { -i } else { i });
        let powers: Vec<i32> = powers.collect();
        let single = |x: f64| f64::from(x as f32);
        let row = |a: f64| {
            let mut row: Vec<f64> = powers.iter().map(|&i| single(a.powi(i))).collect();
            row.extend(c.with_sqrt_term.then(|| single(a.sqrt())));
            row
        };
        let basis: Vec<Vec<f64>> = (1..=c.k - c.exact_k).map(|a| row(f64::from(a))).collect();
        if basis.iter().flatten().any(|x| !x.is_finite()) {
            return Err(Fault::new("polynomial_degree", "powers that single precision holds", c.polynomial_degree));
        }
        Ok(Legacy { index_bits: index_bits(c.vocab_size), basis, config })
    }

    /// The configuration.
    pub fn config(&self) -> &LegacyConfig {
        &self.config
    }

    /// Decodes one position.
    pub fn decode(&self, words: &[u64], exact: &[f64], coefficients: &[f64]) -> Result<Position, Fault> {
        let k = self.config.k as usize;
        let expected = k.div_ceil((64 / self.index_bits) as usize);
        if words.len() != expected {
            return Err(Fault::new("packed_indices", format!("{expected} words"), words.len()));
        }
        if exact.len() != self.config.exact_k as usize {
            return Err(Fault::new("exact_values", format!("{} numbers", self.config.exact_k), exact.len()));
        }
        let terms = self.basis.first().map_or(0, Vec::len);
        if coefficients.len() != terms {
            return Err(Fault::new("coeffs", format!("{terms} numbers"), coefficients.len()));
        }
        let ids = bits::unpack_words(words, self.index_bits).take(k).map(|id| id as u32).collect();
        let rounded: Vec<f64> = coefficients.iter().map(|&c| self.config.term_dtype.round(c)).collect();
        let tail = self.basis.iter().map(|row| super::basis::dot(row, &rounded));
        Ok(Position { ids, values: exact.iter().copied().chain(tail).collect() })
    }
}
