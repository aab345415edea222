//! One table of small computations that exercise every op at awkward shapes, and the checks that run over it:
//! f32 twin and GPU kernels against the f64 oracle, and gradients against central differences of the oracle.
//! The tests, `potstill doctor` and the kernel benchmark share it.

#[cfg(not(target_family = "wasm"))]
mod bench;
pub mod cases;
mod check;

#[cfg(not(target_family = "wasm"))]
pub use bench::{Timing, time_on};
pub use check::{Finding, check_gradients, check_on, kernels_of};

use crate::Result;
use crate::formats::Dtype;
use crate::graph::{DType, Graph, Shape, Tensor, Values};
use crate::random::SplitMix64;
use std::collections::HashMap;

/// One row of the table.
pub struct Case {
    /// The op it exercises.
    pub op: &'static str,
    /// What is special about it.
    pub what: String,
    /// Largest allowed error of f32 against the oracle, relative to the largest magnitude in the tensor.
    pub tolerance: f64,
    /// Too slow for a self-test on a user's machine; run by the tests only.
    pub heavy: bool,
    build: Build,
}

/// Records a row's graph.
type Build = Box<dyn Fn(&mut Setup) -> Result<()> + Send + Sync>;

impl Case {
    /// A row with the usual tolerance: 1e-5, about 80 f32 roundings.
    pub fn new(
        op: &'static str,
        what: impl Into<String>,
        build: impl Fn(&mut Setup) -> Result<()> + Send + Sync + 'static,
    ) -> Case {
        Case { op, what: what.into(), tolerance: 1e-5, heavy: false, build: Box::new(build) }
    }

    /// Another tolerance, for a reason the row states.
    pub fn tolerance(mut self, tolerance: f64) -> Case {
        self.tolerance = tolerance;
        self
    }

    /// Marks the row as heavy.
    pub fn heavy(mut self) -> Case {
        self.heavy = true;
        self
    }

    /// Builds the graph, its backward pass from random upstream gradients, and the input values.
    pub fn setup(&self) -> Result<Setup> {
        let mut setup = Setup::default();
        (self.build)(&mut setup)?;
        setup.finish()?;
        Ok(setup)
    }
}

/// A graph under test with its inputs, what to compare, and which gradients it claims.
#[derive(Default)]
pub struct Setup {
    /// The graph; a row's `build` records into it.
    pub graph: Graph,
    pub(crate) values: HashMap<String, Values>,
    pub(crate) differentiated: Vec<(String, Tensor)>,
    pub(crate) results: Vec<Tensor>,
    /// Pairs (weights' external name, result index): the scalar under differentiation is their dot product.
    pub(crate) seeds: Vec<(String, usize)>,
    pub(crate) claims: Vec<Claim>,
    random: SplitMix64,
}

/// d (sum of weights * loss) / d input = grad, where the op itself computes `grad`.
pub(crate) struct Claim {
    pub loss: Tensor,
    pub weights: String,
    pub input: String,
    pub grad: Tensor,
}

impl Setup {
    /// Uniform in [-1, 1), the same on every machine.
    pub fn random(&mut self) -> f64 {
        2.0 * self.random.uniform() - 1.0
    }

    /// `n` random values, each exactly an f32, so that f32 and f64 start equal.
    pub fn randoms(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.random() as f32 as f64).collect()
    }

    /// A float input of random values, with respect to which the results are differentiated.
    pub fn float(&mut self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        let values = self.randoms(shape.numel());
        self.floats(shape, values, true)
    }

    /// A float input of random values that gets no gradient.
    pub fn fixed(&mut self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        let values = self.randoms(shape.numel());
        self.floats(shape, values, false)
    }

    /// A float input of given values (each must be exactly an f32).
    pub fn floats(&mut self, shape: impl Into<Shape>, values: Vec<f64>, differentiate: bool) -> Tensor {
        let shape = shape.into();
        assert_eq!(shape.numel(), values.len());
        let name = format!("in{}", self.values.len());
        let tensor = self.graph.external(&name, shape, DType::F32);
        if differentiate {
            self.graph.require_grad(tensor);
            self.differentiated.push((name.clone(), tensor));
        }
        self.values.insert(name, Values::F(values));
        tensor
    }

    /// An integer input.
    pub fn ints(&mut self, shape: impl Into<Shape>, values: Vec<u32>) -> Tensor {
        let shape = shape.into();
        assert_eq!(shape.numel(), values.len());
        let name = format!("in{}", self.values.len());
        let tensor = self.graph.external(&name, shape, DType::U32);
        self.values.insert(name, Values::U(values));
        tensor
    }

    /// A frozen matrix of random blocks of a type: random quants, and scales of the size that weights have.
    pub fn packed(&mut self, shape: [usize; 2], stored: Dtype) -> Tensor {
        let words = shape[0] * stored.packed_words(shape[1]);
        let mut bytes: Vec<u8> = (0..4 * words).map(|_| (self.random.bits() >> 56) as u8).collect();
        let block = stored.packed_block().map_or(4, |(_, words)| 4 * words);
        for block in bytes.chunks_exact_mut(block) {
            for at in stored.halves() {
                let value = half::f16::from_f64(self.random() / 64.0);
                // Every fourth below f16's normal range.
                let small = half::f16::from_bits(value.to_bits() & 0x83ff);
                let value = if self.random() > 0.5 { small } else { value };
                let bits = if stored == Dtype::Bf16 {
                    half::bf16::from_f32(value.to_f32()).to_bits()
                } else {
                    value.to_bits()
                };
                block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
            }
        }
        let words = bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect();
        let name = format!("in{}", self.values.len());
        let tensor = self.graph.external(&name, shape, DType::Packed(stored));
        self.values.insert(name, Values::U(words));
        tensor
    }

    /// A tensor to compare (and to differentiate, if it depends on a differentiated input).
    pub fn result(&mut self, tensor: Tensor) {
        self.results.push(tensor);
    }

    /// States that the op computed `grad` = d (sum of weights * loss) / d input. `weights` and `input` are inputs
    /// of this setup; both tensors are compared like results too.
    pub fn claim(&mut self, loss: Tensor, weights: Tensor, input: Tensor, grad: Tensor) {
        let name_of = |setup: &Setup, t: Tensor| {
            setup.graph.externals().find(|(_, e)| *e == t).map(|(name, _)| name.to_owned()).expect("an input")
        };
        let (weights, input) = (name_of(self, weights), name_of(self, input));
        self.results.extend([loss, grad]);
        self.claims.push(Claim { loss, weights, input, grad });
    }

    fn finish(&mut self) -> Result<()> {
        let mut seeds = Vec::new();
        for index in 0..self.results.len() {
            let result = self.results[index];
            if result.dtype == DType::F32 && self.graph.requires_grad(result) {
                let name = format!("seed{index}");
                let seed = self.graph.external(&name, result.shape, DType::F32);
                let values = self.randoms(result.shape.numel());
                self.values.insert(name.clone(), Values::F(values));
                self.seeds.push((name, index));
                seeds.push((result, seed));
            }
        }
        self.graph.backward(&seeds)?;
        for (index, result) in self.results.iter().enumerate() {
            self.graph.output(&format!("result{index}"), *result);
        }
        for (index, (_, tensor)) in self.differentiated.iter().enumerate() {
            if let Some(grad) = self.graph.grad(*tensor) {
                self.graph.output(&format!("grad{index}"), grad);
            }
        }
        Ok(())
    }
}
