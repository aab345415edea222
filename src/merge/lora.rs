//! Adapters merged on the fly: W + scale B A, and DoRA's lengths, as values are read.

use crate::formats::{Adapter, Tensors};
use crate::platform::parallel::*;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::path::Path;

/// An adapter over a model.
#[derive(Debug)]
pub(super) struct Lora {
    adapter: Adapter,
    modules: BTreeSet<String>,
    whole: BTreeSet<String>,
}

/// What an adapter does to one tensor.
pub(super) enum Patch<'l> {
    /// Takes its place.
    Whole {
        /// Where.
        tensors: &'l Tensors,
        /// Under which name.
        name: String,
    },
    /// Adds to it.
    Low(LowRank),
}

/// scale B A, row by row of the stored weight.
pub(super) struct LowRank {
    /// [out, r]
    b: Vec<f32>,
    /// [r, in]
    a: Vec<f32>,
    rank: usize,
    scale: f32,
    columns: usize,
    /// The weight is stored as [in, out].
    transposed: bool,
    /// DoRA: what each output's weights are multiplied by.
    factors: Option<Vec<f32>>,
}

impl Lora {
    /// Opens the adapter in `folder`, which must fit the model's `tensors`.
    pub fn open(folder: &Path, tensors: &Tensors) -> Result<Lora> {
        let adapter = Adapter::open(folder)?;
        let (modules, whole) = adapter.contents()?;
        let lora = Lora { adapter, modules, whole };
        let mut wrong = Vec::new();
        for name in &lora.whole {
            if !tensors.contains(name) {
                let expected = "a tensor of the model, or lora_A and lora_B of one";
                wrong.push(Error::file(folder).field(format!("tensor `{name}`")).expected(expected).error());
                continue;
            }
            let shape = lora.adapter.tensors.shape(&Adapter::stored(name))?;
            wrong.extend(tensors.expect_shape(name, shape).err());
        }
        for module in &lora.modules {
            let weight = format!("{module}.weight");
            if !tensors.contains(&weight) {
                let complaint = Error::file(folder).field(format!("`{module}`")).expected("a layer of the model");
                wrong.push(complaint.found("none of this name").help("take the adapter's own base model").error());
                continue;
            }
            wrong.extend(lora.check(module, tensors.shape(&weight)?).err());
        }
        Error::all(wrong)?;
        Ok(lora)
    }

    /// The file of its weights.
    #[cfg(not(target_family = "wasm"))]
    pub fn file(&self) -> std::path::PathBuf {
        self.adapter.path().join("adapter_model.safetensors")
    }

    fn part(&self, module: &str, part: &str) -> String {
        Adapter::stored(&format!("{module}.{part}"))
    }

    fn check(&self, module: &str, shape: &[usize]) -> Result<()> {
        let config = &self.adapter.config;
        let (out, inner) = match (shape, config.fan_in_fan_out) {
            ([out, inner], false) | ([inner, out], true) => (*out, *inner),
            _ => {
                let complaint = Error::file(self.adapter.path()).field(format!("`{module}`")).expected("a matrix");
                return complaint.found(format!("{shape:?}")).err();
            }
        };
        let expect = |part: &str, shape: &[usize]| self.adapter.tensors.expect_shape(&self.part(module, part), shape);
        expect("lora_A.weight", &[config.r, inner])?;
        expect("lora_B.weight", &[out, config.r])?;
        if config.use_dora { expect("lora_magnitude_vector", &[out]) } else { Ok(()) }
    }

    /// What the adapter does to a tensor, if anything.
    pub fn patch(&self, stored: &str, tensors: &Tensors) -> Result<Option<Patch<'_>>> {
        if self.whole.contains(stored) {
            return Ok(Some(Patch::Whole { tensors: &self.adapter.tensors, name: Adapter::stored(stored) }));
        }
        let Some(module) = stored.strip_suffix(".weight").filter(|module| self.modules.contains(*module)) else {
            return Ok(None);
        };
        let config = &self.adapter.config;
        let mut low = LowRank {
            a: self.adapter.tensors.read_f32(&self.part(module, "lora_A.weight"))?,
            b: self.adapter.tensors.read_f32(&self.part(module, "lora_B.weight"))?,
            rank: config.r,
            scale: config.scale() as f32,
            columns: tensors.shape(stored)?.last().copied().unwrap_or(1).max(1),
            transposed: config.fan_in_fan_out,
            factors: None,
        };
        if config.use_dora {
            let magnitudes = self.adapter.tensors.read_f32(&self.part(module, "lora_magnitude_vector"))?;
            low.factors = Some(low.dora_factors(stored, tensors, &magnitudes)?);
        }
        Ok(Some(Patch::Low(low)))
    }
}

impl LowRank {
    /// Adds the change to stored values from `start` on.
    pub fn add(&self, start: usize, out: &mut [f32]) {
        let mut position = start;
        let mut rest = out;
        while !rest.is_empty() {
            let (row, column) = (position / self.columns, position % self.columns);
            let (part, others) = rest.split_at_mut((self.columns - column).min(rest.len()));
            self.add_row(row, column, part);
            position += part.len();
            rest = others;
        }
    }

    fn add_row(&self, row: usize, column: usize, out: &mut [f32]) {
        // Stored as [out, in], a row is sum_k B[row, k] A[k, :]; as [in, out] it is sum_k A[k, row] B[:, k].
        let (inner, rank) = (self.a.len() / self.rank, self.rank);
        for k in 0..rank {
            match self.transposed {
                false => {
                    let factor = self.scale * self.b[row * rank + k];
                    let a = &self.a[k * inner + column..][..out.len()];
                    out.iter_mut().zip(a).for_each(|(out, a)| *out += factor * a);
                }
                true => {
                    let factor = self.scale * self.a[k * inner + row];
                    let b = self.b[column * rank + k..].iter().step_by(rank);
                    out.iter_mut().zip(b).for_each(|(out, b)| *out += factor * b);
                }
            }
        }
        match (&self.factors, self.transposed) {
            (None, _) => {}
            (Some(factors), false) => out.iter_mut().for_each(|x| *x *= factors[row]),
            (Some(factors), true) => out.iter_mut().zip(&factors[column..]).for_each(|(x, factor)| *x *= factor),
        }
    }

    /// DoRA (Liu et al. 2024): the magnitude over the length of each output's weights.
    fn dora_factors(&self, stored: &str, tensors: &Tensors, magnitudes: &[f32]) -> Result<Vec<f32>> {
        let rows = tensors.shape(stored)?.first().copied().unwrap_or(0);
        let squares: Vec<Vec<f64>> = (0..rows)
            .into_par_iter()
            .map(|row| {
                let mut values = vec![0.0; self.columns];
                tensors.read_f32_range(stored, row * self.columns, &mut values)?;
                self.add_row(row, 0, &mut values);
                let squares = values.iter().map(|x| f64::from(*x) * f64::from(*x));
                Ok(if self.transposed { squares.collect() } else { vec![squares.sum()] })
            })
            .collect::<Result<_>>()?;
        let mut sums = vec![0.0; magnitudes.len()];
        for (row, squares) in squares.iter().enumerate() {
            let first = if self.transposed { 0 } else { row };
            sums[first..].iter_mut().zip(squares).for_each(|(sum, square)| *sum += square);
        }
        let factor = |(magnitude, sum): (&f32, f64)| (f64::from(*magnitude) / sum.sqrt().max(1e-12)) as f32;
        Ok(magnitudes.iter().zip(sums).map(factor).collect())
    }
}
