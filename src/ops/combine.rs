//! Several tensors become one, value by value: the core of merging (weighted sums, thresholds, the election of signs).

use super::shader;
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("combine");
/// Values one rayon task handles.
const CHUNK: usize = 1 << 12;
/// Weights whose sum is smaller are not divided by, but after an election, where it is of one sign's weights.
const LEAST: f64 = 1e-8;

/// How [`combine`] sums.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Combination {
    /// Only values count that have the sign of a sum of votes (TIES, arXiv:2306.01708).
    pub election: Election,
    /// Divide by the sum of the factors (of those that count, after an election).
    pub normalize: bool,
    /// A factor of the sum.
    pub lambda: f32,
    /// The x are differences to the base already: it is added, but not subtracted.
    pub differences: bool,
}

/// By what a sign is elected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Election {
    /// There is none.
    Nothing,
    /// Every value times its factor.
    Weighted,
    /// Every value as it is.
    Equal,
}

/// Inputs: x, rules, then the base if there is one.
#[derive(Debug, Clone, Copy)]
struct Combine {
    how: Combination,
    base: bool,
}

/// out = b + lambda s, where s sums f_i t_i over the N vectors t_i = x_i - b (x_i, if those are differences) of x `[N,
/// n]`, a value below its vector's threshold in magnitude left out. `rules` `[2, N]` are the factors f_i and the
/// thresholds; the base b `[n]` is 0 without one. `[n]`. No gradient.
pub fn combine(g: &mut Graph, x: Tensor, rules: Tensor, base: Option<Tensor>, how: Combination) -> Tensor {
    let [models, n] = [x.shape.rows(), x.shape.cols()];
    assert!(rules.shape.numel() == 2 * models && base.is_none_or(|b| b.shape.numel() == n), "combine: {x:?} {rules:?}");
    let inputs: Vec<Tensor> = [x, rules].into_iter().chain(base).collect();
    g.record(Combine { how, base: base.is_some() }, &inputs, [([n].into(), DType::F32)])[0]
}

impl Op for Combine {
    fn name(&self) -> &'static str {
        "combine"
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let x = node.inputs[0].shape;
        let Combination { election, normalize, lambda, differences } = self.how;
        let flags = [
            ("BASE", self.base),
            ("DIFFERENCES", differences),
            ("ELECT", election != Election::Nothing),
            ("EQUAL", election == Election::Equal),
            ("NORMALIZE", normalize),
        ];
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: "main",
            constants: flags.map(|(name, flag)| (name, flag.to_string())).to_vec(),
            binds: vec![Bind::Out(0), Bind::In(0), Bind::In(1), Bind::In(if self.base { 2 } else { 1 })],
            params: vec![x.cols() as u32, x.rows() as u32, lambda.to_bits()],
            groups: grid(x.cols().div_ceil(256), caps),
        }])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let n = node.inputs[0].shape.numel() as u64;
        Cost { flops: 6 * n, bytes: 4 * n + 8 * node.outputs[0].shape.numel() as u64 }
    }
}

impl Twin for Combine {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (x, rules, n) = (io.f(0), io.f(1), io.in_shape(0).cols());
        let base = if self.base { io.f(2) } else { &[] };
        let (factors, thresholds) = rules.split_at(rules.len() / 2);
        let Combination { election, normalize, lambda, differences } = self.how;
        let one = |j: usize| {
            let b = base.get(j).copied().unwrap_or(F::ZERO);
            let kept = |i: usize| {
                let t = if differences { x[i * n + j] } else { x[i * n + j] - b };
                if t.abs() >= thresholds[i] { t } else { F::ZERO }
            };
            let vote = |i: usize| if election == Election::Equal { kept(i) } else { factors[i] * kept(i) };
            let elected = (0..factors.len()).fold(F::ZERO, |sum, i| sum + vote(i));
            let (mut sum, mut divisor) = (F::ZERO, F::ZERO);
            for (i, &factor) in factors.iter().enumerate() {
                let own = vote(i);
                let agrees = own > F::ZERO && elected >= F::ZERO || own < F::ZERO && elected < F::ZERO;
                if election == Election::Nothing || agrees {
                    sum += factor * kept(i);
                    divisor += factor;
                }
            }
            let least = if election == Election::Nothing { LEAST } else { f64::from(f32::MIN_POSITIVE) };
            if normalize && divisor.abs() >= F::of(least) {
                sum /= divisor;
            }
            b + F::of(f64::from(lambda)) * sum
        };
        io.out(0).par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, out)| {
            out.iter_mut().enumerate().for_each(|(i, out)| *out = one(chunk * CHUNK + i));
        });
    }
}
