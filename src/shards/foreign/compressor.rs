//! The new form ("distribution quantization"). A position is two byte strings:
//!
//! - `compressed_logprobs`: `exact_k` numbers; the coefficients of a polynomial in t = 0, 1, ... through the rest;
//!   then per bin a scale and the quantised residuals of the next entries;
//! - `bytepacked_indices`: the ids in the same order.
//!
//! With `delta_encoding` the numbers are differences to the entry before. Decoding is done in double precision, but
//! where the encoder rounded a value before it took the residual (coefficients, basis and their products in
//! `term_dtype`, the scale), the same rounding is applied.

use serde::Serialize;

use super::basis::{dot, pseudo_inverse};
use super::bits::{pack, packed_bytes, unpack};
use super::{Fault, FloatType, Position, index_bits};

/// `logprob_compressor`, or the whole of a `compression_config.yaml`, under DistillKit's names.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CompressorConfig {
    /// Tokens of the vocabulary; decides the bits of an id.
    pub d: u32,
    /// Entries of a position.
    pub k: u32,
    /// Entries stored as they are.
    pub exact_k: u32,
    /// How those are stored; default float32.
    pub exact_dtype: FloatType,
    /// The basis of the rest; default none.
    pub polynomial_terms: Vec<Term>,
    /// How coefficients are stored; default float32.
    pub term_dtype: FloatType,
    /// What is stored of the difference between the rest and its polynomial.
    pub residual_bins: Vec<Bin>,
    /// Store differences of neighbours; default true.
    pub delta_encoding: bool,
    /// Carry rounding errors on to the next entry; default false. Decoding does not depend on it.
    pub error_diffusion: bool,
    /// t runs from 0 to 1 rather than over 0, 1, 2, ...; default false.
    pub normalize_t: bool,
}

/// One column of the basis.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(into = "serde_json::Value")]
pub enum Term {
    /// t^i.
    Power(u32),
    /// The square root of t.
    Sqrt,
    /// e^t.
    Exp,
}

impl From<Term> for serde_json::Value {
    fn from(term: Term) -> Self {
        match term {
            Term::Power(i) => i.into(),
            Term::Sqrt => "sqrt".into(),
            Term::Exp => "exp".into(),
        }
    }
}

impl Term {
    /// A term by its name: a power, `sqrt` or `exp`.
    pub fn parse(name: &str) -> Option<Term> {
        match name {
            "sqrt" => Some(Term::Sqrt),
            "exp" => Some(Term::Exp),
            power => power.parse().ok().map(Term::Power),
        }
    }

    fn at(self, t: f64) -> f64 {
        match self {
            Term::Power(i) => t.powi(i as i32),
            Term::Sqrt => t.sqrt(),
            Term::Exp => t.exp(),
        }
    }
}

/// Residuals that share a scale and a width.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// How the scale is stored.
    pub scale_dtype: FloatType,
    /// 1 to 64.
    pub element_bits: u32,
    /// Residuals.
    pub num_elements: u32,
}

/// Encodes and decodes positions of the new form.
#[derive(Clone, Debug)]
pub struct Compressor {
    config: CompressorConfig,
    /// `[k - exact_k, terms]` in `term_dtype`.
    basis: Vec<Vec<f64>>,
    /// `[terms, k - exact_k]`.
    projection: Vec<Vec<f64>>,
    index_bits: u32,
}

impl Compressor {
    /// Checks the configuration, computes basis and projection.
    pub fn new(config: CompressorConfig) -> Result<Compressor, Fault> {
        check(&config)?;
        let tail = (config.k - config.exact_k) as usize;
        let step = if config.normalize_t { 1.0 / (tail.max(2) - 1) as f64 } else { 1.0 };
        let column = |term: &Term| (0..tail).map(|i| term.at(i as f64 * step)).collect::<Vec<f64>>();
        let columns: Vec<Vec<f64>> = config.polynomial_terms.iter().map(column).collect();
        let rounded = |i: usize| columns.iter().map(|column| config.term_dtype.round(column[i])).collect();
        let basis: Vec<Vec<f64>> = (0..tail).map(rounded).collect();
        if basis.iter().flatten().any(|x| !x.is_finite()) {
            let expected = "a basis whose values fit `term_dtype` (set `normalize_t`, or a wider type)";
            return Err(Fault::new("polynomial_terms", expected, "an overflow"));
        }
        let projection = pseudo_inverse(&columns);
        Ok(Compressor { index_bits: index_bits(config.d), basis, projection, config })
    }

    /// The configuration.
    pub fn config(&self) -> &CompressorConfig {
        &self.config
    }

    /// Bytes of a position: of `compressed_logprobs` and of `bytepacked_indices`.
    pub fn bytes(&self) -> (usize, usize) {
        let c = &self.config;
        let bin = |bin: &Bin| bin.scale_dtype.bytes() + packed_bytes(bin.num_elements as usize, bin.element_bits);
        let values = c.exact_k as usize * c.exact_dtype.bytes()
            + c.polynomial_terms.len() * c.term_dtype.bytes()
            + c.residual_bins.iter().map(bin).sum::<usize>();
        (values, packed_bytes(c.k as usize, self.index_bits))
    }

    /// Decodes one position.
    pub fn decode(&self, values: &[u8], ids: &[u8]) -> Result<Position, Fault> {
        let (value_bytes, id_bytes) = self.bytes();
        if values.len() != value_bytes {
            return Err(Fault::new("compressed_logprobs", format!("{value_bytes} bytes"), values.len()));
        }
        if ids.len() != id_bytes {
            return Err(Fault::new("bytepacked_indices", format!("{id_bytes} bytes"), ids.len()));
        }
        let c = &self.config;
        let k = c.k as usize;
        let (head, rest) = values.split_at(c.exact_k as usize * c.exact_dtype.bytes());
        let (coefficients, mut bins) = rest.split_at(c.polynomial_terms.len() * c.term_dtype.bytes());
        let mut out: Vec<f64> = c.exact_dtype.read(head).collect();
        out.extend(self.fit(&c.term_dtype.read(coefficients).collect::<Vec<_>>()));
        let mut at = c.exact_k as usize;
        for bin in &c.residual_bins {
            let n = bin.num_elements as usize;
            let (scale, rest) = bins.split_at(bin.scale_dtype.bytes());
            let (codes, rest) = rest.split_at(packed_bytes(n, bin.element_bits));
            bins = rest;
            let scale = bin.scale_dtype.read(scale).next().unwrap_or(0.0);
            let residuals = unpack(codes, bin.element_bits).map(|code| bin.level(code) * scale);
            out[at..at + n].iter_mut().zip(residuals).for_each(|(value, residual)| *value += residual);
            at += n;
        }
        if c.delta_encoding {
            let mut sum = 0.0;
            for value in &mut out {
                sum += *value;
                *value = sum;
            }
        }
        Ok(Position { ids: unpack(ids, self.index_bits).take(k).map(|id| id as u32).collect(), values: out })
    }

    /// Encodes a position of `k` entries, log-probabilities falling. Numbers that overflow their type are refused.
    pub fn encode(&self, ids: &[u32], log_probs: &[f32]) -> Result<(Vec<u8>, Vec<u8>), Fault> {
        let c = &self.config;
        if ids.len() != c.k as usize || log_probs.len() != ids.len() {
            return Err(Fault::new("k", format!("{} entries", c.k), ids.len()));
        }
        if let Some(id) = ids.iter().find(|id| **id >= c.d) {
            return Err(Fault::new("ids", format!("below d {}", c.d), id));
        }
        let values = self.numbers(log_probs);
        let (head, tail) = values.split_at(c.exact_k as usize);
        let (value_bytes, id_bytes) = self.bytes();
        let mut out = Vec::with_capacity(value_bytes);
        let overflow = |field, x: f64| Err(Fault::new(field, "a type that holds the numbers", x));
        for &x in head {
            if !c.exact_dtype.round(x).is_finite() {
                return overflow("exact_dtype", x);
            }
            c.exact_dtype.write(x, &mut out);
        }
        let coefficients: Vec<f64> = self.projection.iter().map(|row| c.term_dtype.round(dot(row, tail))).collect();
        if let Some(&x) = coefficients.iter().find(|x| !x.is_finite()) {
            return overflow("term_dtype", x);
        }
        coefficients.iter().for_each(|&x| c.term_dtype.write(x, &mut out));
        let residuals: Vec<f64> = tail.iter().zip(self.fit(&coefficients)).map(|(value, fit)| value - fit).collect();
        let (mut at, mut carried) = (0, 0.0);
        for bin in &c.residual_bins {
            let n = bin.num_elements as usize;
            let carry = c.error_diffusion.then_some(&mut carried);
            bin.encode(&residuals[at..at + n], carry, &mut out)?;
            at += n;
        }
        let mut packed = Vec::with_capacity(id_bytes);
        pack(ids.iter().map(|&id| u64::from(id)), self.index_bits, &mut packed);
        Ok((out, packed))
    }

    /// The polynomial at every t, in the encoder's roundings; 0 without terms.
    fn fit<'a>(&'a self, coefficients: &[f64]) -> impl Iterator<Item = f64> + use<'a> {
        let coefficients = coefficients.to_vec();
        let dtype = self.config.term_dtype;
        self.basis.iter().map(move |row| {
            let products = row.iter().zip(&coefficients).map(|(x, c)| dtype.round(x * c));
            dtype.round(products.sum::<f64>())
        })
    }

    /// Log-probabilities, or their differences as single precision has them.
    fn numbers(&self, log_probs: &[f32]) -> Vec<f64> {
        let c = &self.config;
        let wide = log_probs.iter().map(|&l| f64::from(l));
        if !c.delta_encoding {
            return wide.collect();
        }
        let (mut previous, mut carried) = (0.0, 0.0);
        let difference = |l: f64| {
            let exact = l - previous + carried;
            let rounded = FloatType::Float32.round(exact);
            previous = l;
            carried = if c.error_diffusion { exact - rounded } else { 0.0 };
            rounded
        };
        wide.map(difference).collect()
    }
}

impl Bin {
    /// What a stored code stands for, in units of the scale. One bit is -1 or 1: there is no zero.
    fn level(&self, code: u64) -> f64 {
        match self.element_bits {
            1 => 2.0 * code as f64 - 1.0,
            bits => code as f64 - (1u64 << (bits - 1)) as f64,
        }
    }

    /// Appends scale and codes. `carried` is the error handed on from entry to entry, in nats: DistillKit hands it on
    /// in units of the scale, which differs from bin to bin.
    fn encode(&self, residuals: &[f64], mut carried: Option<&mut f64>, out: &mut Vec<u8>) -> Result<(), Fault> {
        let largest = residuals.iter().fold(0.0f64, |most, r| most.max(r.abs()));
        let wanted = match self.element_bits {
            // Of two levels alone the mean magnitude is nearest to all residuals; the largest, to one.
            1 => residuals.iter().map(|r| r.abs()).sum::<f64>() / residuals.len().max(1) as f64,
            bits => largest / (1u64 << (bits - 1)) as f64,
        };
        let scale = self.scale_dtype.round(wanted);
        if !scale.is_finite() {
            return Err(Fault::new("scale_dtype", "a type that holds the scale", wanted));
        }
        // Residuals too small for the type are as good as none.
        let scale = if scale == 0.0 { 1.0 } else { scale };
        self.scale_dtype.write(scale, out);
        let code = |residual: &f64| {
            let wanted = residual + carried.as_deref().copied().unwrap_or(0.0);
            let code = self.code(wanted / scale);
            if let Some(carried) = carried.as_deref_mut() {
                *carried = wanted - self.level(code) * scale;
            }
            code
        };
        pack(residuals.iter().map(code).collect::<Vec<_>>(), self.element_bits, out);
        Ok(())
    }

    fn code(&self, x: f64) -> u64 {
        if self.element_bits == 1 {
            return u64::from(x >= 0.0);
        }
        let half = (1u64 << (self.element_bits - 1)) as f64;
        let most = u64::MAX >> (64 - self.element_bits);
        // From 54 bits on `half - 1` is not a double; the conversion saturates and `min` does the rest.
        ((x.round_ties_even().clamp(-half, half - 1.0) + half) as u64).min(most)
    }
}

fn check(c: &CompressorConfig) -> Result<(), Fault> {
    if !(2..=1 << 24).contains(&c.d) {
        return Err(Fault::new("d", "2 to 16777216", c.d));
    }
    if c.k == 0 || c.k > c.d {
        return Err(Fault::new("k", "1 to `d`", c.k));
    }
    if c.exact_k > c.k {
        return Err(Fault::new("exact_k", "at most `k`", c.exact_k));
    }
    let tail = c.k - c.exact_k;
    if tail > 0 && c.polynomial_terms.is_empty() && c.residual_bins.is_empty() {
        return Err(Fault::new("exact_k", "`k`, or `polynomial_terms` or `residual_bins` for the rest", c.exact_k));
    }
    if c.polynomial_terms.len() > 64 || c.polynomial_terms.iter().any(|t| matches!(t, Term::Power(i) if *i > 64)) {
        return Err(Fault::new("polynomial_terms", "at most 64 terms, powers up to 64", c.polynomial_terms.len()));
    }
    if let Some(bin) = c.residual_bins.iter().find(|bin| !(1..=64).contains(&bin.element_bits)) {
        return Err(Fault::new("residual_bins", "`element_bits` of 1 to 64", bin.element_bits));
    }
    let elements: u64 = c.residual_bins.iter().map(|bin| u64::from(bin.num_elements)).sum();
    match c.residual_bins.iter().all(|bin| bin.num_elements > 0) && elements <= u64::from(tail) {
        true => Ok(()),
        false => {
            let expected = format!("`num_elements` of at least 1, at most {tail} (k - exact_k) together");
            Err(Fault::new("residual_bins", expected, elements))
        }
    }
}
