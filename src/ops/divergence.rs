//! Divergences between a teacher's and the student's row of probabilities, and their gradients: every one that needs
//! each column's two log-probabilities and a few sums over the row. Formulas with sources: `docs/losses.md`.

use super::cross_entropy::{LossInto, each_row, in_place};
use super::{Chunk, DenseTarget, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, Graph, Node, Op, Tensor, Twin};

pub(crate) const SHADER: Shader = shader!("divergence");

/// Which divergence; p is the teacher's row, q the student's, a and b the two parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Divergence {
    /// KL(p || q).
    Kl,
    /// KL(q || p).
    ReverseKl,
    /// KL(p || q) + KL(q || p).
    Jeffreys,
    /// a KL(p || m) + (1 - a) KL(q || m), m = a p + (1 - a) q, for a in (0, 1).
    Jsd,
    /// [`Divergence::Jsd`] / (a (1 - a)), which is KL(p || q) at a = 0 and KL(q || p) at a = 1.
    ScaledJsd,
    /// KL(p || a p + (1 - a) q), for a in (0, 1).
    SkewKl,
    /// KL(q || (1 - a) p + a q), for a in (0, 1).
    SkewReverseKl,
    /// Half the sum of |p - q|.
    Tvd,
    /// w KL(p || q) + (1 - w) KL(q || p): w is the share of sum |p - q| that falls on the head, the most probable
    /// tokens of p with cumulative probability up to a. w counts as constant in the gradient.
    AdaptiveKl,
    /// -1/(a b) sum (p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)), for a, b > 0.
    AlphaBeta,
    /// Mean of (c - mean c)^2, c = difference of the logits. Not of probabilities; takes no temperature.
    LogitMse,
}

impl Divergence {
    /// How many parameters it has.
    pub fn parameters(self) -> usize {
        match self {
            Self::Kl | Self::ReverseKl | Self::Jeffreys | Self::Tvd | Self::LogitMse => 0,
            Self::Jsd | Self::ScaledJsd | Self::SkewKl | Self::SkewReverseKl | Self::AdaptiveKl => 1,
            Self::AlphaBeta => 2,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Rows {
    kind: Divergence,
    first_row: usize,
    vocab: usize,
    temperature: f32,
    gradient: bool,
}

/// Inputs before those of [`LossInto`]: logits, lse, teacher's logits, their lse, weights, parameters.
const INPUTS: [usize; 2] = [5, 6];
/// Log-probabilities below this are probability 0, in the shader too: e^-87 is near the least normal f32.
const NEVER: f64 = -87.0;
/// Log-probabilities as near as this count as equal, lest rounding decide the sign of their difference.
const EQUAL: f64 = 1e-5;
/// Where log p and log q are further apart, the larger is the mixture's but for a constant.
const FAR: f64 = 20.0;
/// Tokens within this share of the best one count as equally probable.
const TIE: f64 = 1e-6;

/// T^2 times the divergence of each row over the chunk's vocabulary, and dz += weight * its gradient by the logits.
/// `lse` `[R]` is the chunk's [`super::log_sum_exp`] at the target's temperature T, `weights` is `[N]`; rows of weight
/// 0 have loss 0. `parameters` is f32 `[2]`, needed by what has any. [`Divergence::LogitMse`] asks for T = 1.
#[allow(clippy::too_many_arguments)]
pub fn divergence(
    g: &mut Graph,
    kind: Divergence,
    parameters: Option<Tensor>,
    chunk: Chunk,
    lse: Tensor,
    target: DenseTarget,
    weights: Tensor,
    into: LossInto,
) -> LossInto {
    target.check("divergence", chunk, weights, into);
    assert!(kind.parameters() == 0 || parameters.is_some_and(|p| p.shape.numel() == 2), "{kind:?}: {parameters:?}");
    assert!(kind != Divergence::LogitMse || target.temperature == 1.0, "divergence: logits have no temperature");
    let (first_row, vocab, temperature) = (chunk.first_row, chunk.vocab, target.temperature);
    let op = Rows { kind, first_row, vocab, temperature, gradient: into.dz.is_some() };
    let mut inputs = vec![chunk.z, lse, target.z, target.lse, weights];
    inputs.extend(parameters.filter(|_| kind.parameters() > 0));
    into.record(g, op, &inputs)
}

impl Rows {
    fn inputs(&self) -> usize {
        INPUTS[usize::from(self.kind.parameters() > 0)]
    }
}

impl Op for Rows {
    fn name(&self) -> &'static str {
        "divergence"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        in_place(self.inputs(), self.gradient)
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let (z, teacher) = (node.inputs[0].shape, node.inputs[2].shape);
        let mut binds = vec![Bind::Out(0)];
        binds.extend((0..5).map(Bind::In));
        // Without parameters nothing reads them; the weights stand in.
        binds.push(Bind::In(self.inputs() - 1));
        binds.extend(self.gradient.then_some(Bind::Out(1)));
        let mut params = Chunk::params(z.rows(), z.cols(), self.vocab, self.first_row);
        params.extend([teacher.cols() as u32, self.temperature.to_bits(), (1.0 / self.temperature).to_bits()]);
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: if self.gradient { "gradient" } else { "value" },
            constants: vec![("KIND", format!("{}u", self.kind as u32))],
            binds,
            params,
            groups: grid(z.rows(), caps),
        }])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let elements = node.inputs[0].shape.numel() as u64;
        let passes = if self.kind == Divergence::AdaptiveKl { 36 } else { 2 };
        Cost { flops: 20 * passes * elements, bytes: 4 * (2 * passes + 2) * elements }
    }
}

impl Twin for Rows {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (z, lse, teacher, teacher_lse, weights) = (io.f(0), io.f(1), io.f(2), io.f(3), io.f(4));
        let parameters = if self.inputs() > 5 { io.f(5) } else { &[F::ZERO; 2] };
        let (rows, stride, teacher_stride) = (io.in_shape(0).rows(), io.in_shape(0).cols(), io.in_shape(2).cols());
        let (losses, dz) = (io.out(0), self.gradient.then(|| io.out(1)));
        let t = F::of(f64::from(self.temperature));
        each_row((rows, stride, self.first_row), losses, dz, |r, n, loss, dz| {
            *loss = F::ZERO;
            if weights[n] == F::ZERO {
                return;
            }
            let (z, teacher) = (&z[r * stride..][..self.vocab], &teacher[r * teacher_stride..][..self.vocab]);
            let gradient = (!dz.is_empty()).then(|| &mut dz[..self.vocab]);
            *loss = if self.kind == Divergence::LogitMse {
                logit_mse(z, teacher, weights[n], gradient)
            } else {
                let row = Columns::of(F::ONE / t, (z, lse[r]), (teacher, teacher_lse[r]));
                t * t * row.loss(self.kind, parameters, t * weights[n], gradient)
            };
        });
    }
}

fn logit_mse<F: Real>(z: &[F], teacher: &[F], weight: F, dz: Option<&mut [F]>) -> F {
    let count = F::of(z.len() as f64);
    let mean = z.iter().zip(teacher).fold(F::ZERO, |sum, (&z, &v)| sum + (z - v)) / count;
    let value = z.iter().zip(teacher).fold(F::ZERO, |sum, (&z, &v)| sum + (z - v - mean) * (z - v - mean));
    if let Some(dz) = dz {
        let factor = F::of(2.0) * weight / count;
        dz.iter_mut().zip(z).zip(teacher).for_each(|((dz, &z), &v)| *dz += factor * (z - v - mean));
    }
    value / count
}

/// One row's probabilities on both sides and their logarithms.
struct Columns<F> {
    p: Vec<F>,
    q: Vec<F>,
    log_p: Vec<F>,
    log_q: Vec<F>,
}

impl<F: Real> Columns<F> {
    fn of(scale: F, (z, lse): (&[F], F), (teacher, teacher_lse): (&[F], F)) -> Columns<F> {
        let probabilities = |row: &[F], lse: F| {
            let mut values = vec![F::ZERO; row.len()];
            F::exp_into(&mut values, row, F::ONE, scale, lse);
            let never = F::of(NEVER);
            values.iter_mut().zip(row).filter(|(_, x)| scale * **x - lse < never).for_each(|(v, _)| *v = F::ZERO);
            values
        };
        let logs = |row: &[F], lse: F| row.iter().map(|&x| scale * x - lse).collect();
        Columns {
            p: probabilities(teacher, teacher_lse),
            q: probabilities(z, lse),
            log_p: logs(teacher, teacher_lse),
            log_q: logs(z, lse),
        }
    }

    /// The divergence; adds `factor` * q (f - E_q f) to `dz`, where f is its derivative by q.
    fn loss(&self, kind: Divergence, parameters: &[F], factor: F, dz: Option<&mut [F]>) -> F {
        let a = if kind == Divergence::AdaptiveKl { self.head_share(parameters[0]) } else { parameters[0] };
        let term = |j: usize| term(kind, [a, parameters[1]], [self.p[j], self.q[j]], [self.log_p[j], self.log_q[j]]);
        let (mut value, mut mean) = (F::ZERO, F::ZERO);
        for j in 0..self.p.len() {
            let (v, slope) = term(j);
            value += v;
            mean += slope;
        }
        if let Some(dz) = dz {
            dz.iter_mut().enumerate().for_each(|(j, dz)| *dz += factor * (term(j).1 - self.q[j] * mean));
        }
        value
    }

    /// How much of sum |p - q| falls on the head: the tokens whose probability, with that of all at least as probable
    /// ones, sums to `mass` or less, and always the best ones.
    fn head_share(&self, mass: F) -> F {
        let mut sorted = self.p.clone();
        sorted.sort_unstable_by(|a, b| b.f64().total_cmp(&a.f64()));
        let best = sorted.first().map_or(0.0, |p| p.f64());
        let (mut least, mut sum) = (best * (1.0 - TIE), 0.0);
        for block in sorted.chunk_by(|a, b| a == b) {
            sum += block.iter().map(|p| p.f64()).sum::<f64>();
            if sum > mass.f64() {
                break;
            }
            least = least.min(block[0].f64());
        }
        let (mut head, mut tail) = (F::ZERO, F::ZERO);
        for (&p, &q) in self.p.iter().zip(&self.q) {
            *(if p.f64() >= least { &mut head } else { &mut tail }) += (p - q).abs();
        }
        if head + tail > F::ZERO { head / (head + tail) } else { F::of(0.5) }
    }
}

/// One column's share of the value, and q times the derivative by q, up to a constant times q.
fn term<F: Real>(kind: Divergence, [a, b]: [F; 2], [p, q]: [F; 2], [log_p, log_q]: [F; 2]) -> (F, F) {
    let log_ratio = log_p - log_q;
    let (forward, reverse) = (p * log_ratio, -(q * log_ratio));
    let rest = F::ONE - a;
    match kind {
        Divergence::ReverseKl => (reverse, reverse),
        Divergence::Jeffreys => (forward + reverse, reverse - p),
        Divergence::Jsd => {
            let (to_p, to_q) = mixture(log_ratio, a);
            (-(a * p * to_p) - rest * q * to_q, -(rest * q * to_q))
        }
        Divergence::ScaledJsd if a > F::ZERO && a < F::ONE => {
            let (to_p, to_q) = mixture(log_ratio, a);
            (-(p * to_p) / rest - q * to_q / a, -(q * to_q) / a)
        }
        Divergence::ScaledJsd if a >= F::ONE => (reverse, reverse),
        Divergence::SkewKl => {
            let (m, (to_p, _)) = (a * p + rest * q, mixture(log_ratio, a));
            (-(p * to_p), if m > F::ZERO { -(rest * q * (p / m)) } else { F::ZERO })
        }
        Divergence::SkewReverseKl => {
            let (m, (_, to_q)) = (rest * p + a * q, mixture(log_ratio, rest));
            let ratio = if m > F::ZERO { q / m } else { F::ZERO };
            (-(q * to_q), -(q * (to_q + a * ratio)))
        }
        Divergence::Tvd => {
            let sign = if q > p { F::of(0.5) } else { F::of(-0.5) };
            (sign * (q - p), if log_ratio.abs() <= F::of(EQUAL) { F::ZERO } else { q * sign })
        }
        Divergence::AdaptiveKl => (a * forward + rest * reverse, rest * reverse - a * p),
        Divergence::AlphaBeta => {
            let power = |x: F| if x < F::of(NEVER) { F::ZERO } else { x.exp() };
            let (both, all_p, all_q) = (power(a * log_p + b * log_q), power((a + b) * log_p), power((a + b) * log_q));
            let value = (a * all_p + b * all_q) / (a + b) - both;
            (value / (a * b), (all_q - both) / a)
        }
        // The mean squared difference never comes here; the scaled JSD at 0 is KL.
        Divergence::Kl | Divergence::ScaledJsd | Divergence::LogitMse => (forward, -p),
    }
}

/// log m - log p and log m - log q of m = a p + (1 - a) q, from d = log p - log q. Each by itself: one from the other by
/// adding d would cancel where m is near p or q; only far from both, where e^d could overflow, it does not.
fn mixture<F: Real>(d: F, a: F) -> (F, F) {
    let far = F::of(FAR);
    if d > far {
        let to_p = log_1p((F::ONE - a) * exp_m1(-d));
        return (to_p, to_p + d);
    }
    let to_q = log_1p(a * exp_m1(d));
    (if d < -far { to_q - d } else { log_1p((F::ONE - a) * exp_m1(-d)) }, to_q)
}

/// log(1 + x) near 0 as exact as elsewhere (Kahan): what is lost in rounding 1 + x is divided out.
fn log_1p<F: Real>(x: F) -> F {
    let u = F::ONE + x;
    if u == F::ONE { x } else { u.ln() * (x / (u - F::ONE)) }
}

/// e^x - 1 in the same way.
fn exp_m1<F: Real>(x: F) -> F {
    let u = x.exp();
    let less = u - F::ONE;
    if u == F::ONE {
        x
    } else if x < F::of(-30.0) {
        less
    } else {
        less * (x / u.ln())
    }
}
