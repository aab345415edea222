//! RMSNorm and LayerNorm over the last dimension. One kernel serves both: RMSNorm is LayerNorm with the mean taken
//! as 0.

use super::{add_row_sums, norm_grad, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("norm");

/// What both norms and their gradients need to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Norm {
    /// LayerNorm: subtract the mean.
    pub center: bool,
    /// Gemma's RMSNorm: multiply by 1 + weight.
    pub plus_one: bool,
    pub eps: f32,
}

/// y = weight * x / sqrt(mean(x^2) + eps) over the last dimension d (Zhang & Sennrich 2019); x is [.., d], weight [d].
pub fn rms_norm(g: &mut Graph, x: Tensor, weight: Tensor, eps: f32) -> Tensor {
    assert_eq!(&weight.shape[..], [x.shape.cols()], "rms_norm");
    g.record(Norm { center: false, plus_one: false, eps }, &[x, weight], [(x.shape, DType::F32)])[0]
}

/// y = (1 + weight) * x / sqrt(mean(x^2) + eps), as the Gemma models store their weights; shapes as in [`rms_norm`].
pub fn rms_norm_1p(g: &mut Graph, x: Tensor, weight: Tensor, eps: f32) -> Tensor {
    assert_eq!(&weight.shape[..], [x.shape.cols()], "rms_norm_1p");
    g.record(Norm { center: false, plus_one: true, eps }, &[x, weight], [(x.shape, DType::F32)])[0]
}

/// y = weight * (x - mean) / sqrt(variance + eps) + bias over the last dimension d, the variance being the mean squared
/// deviation (Ba et al. 2016); x is [.., d], weight and bias [d].
pub fn layer_norm(g: &mut Graph, x: Tensor, weight: Tensor, bias: Option<Tensor>, eps: f32) -> Tensor {
    let inputs: Vec<Tensor> = [Some(x), Some(weight), bias].into_iter().flatten().collect();
    assert!(inputs[1..].iter().all(|t| t.shape[..] == [x.shape.cols()]), "layer_norm");
    g.record(Norm { center: true, plus_one: false, eps }, &inputs, [(x.shape, DType::F32)])[0]
}

impl Norm {
    /// What a stored weight multiplies by.
    pub fn factor<F: Real>(&self, weight: F) -> F {
        if self.plus_one { F::ONE + weight } else { weight }
    }

    /// Writes the normalised row, before weight and bias, and returns its mean and 1 / sqrt(variance + eps).
    pub fn normalise<F: Real>(&self, row: &[F], out: &mut [F]) -> (F, F) {
        let n = F::of(row.len() as f64);
        let mean = if self.center { F::sum_of(row) / n } else { F::ZERO };
        out.iter_mut().zip(row).for_each(|(o, &x)| *o = x - mean);
        let inv = F::ONE / (F::dot(out, out) / n + F::of(self.eps as f64)).sqrt();
        out.iter_mut().for_each(|o| *o *= inv);
        (mean, inv)
    }
}

impl Op for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn backward(&self, g: &mut Graph, node: &Node<'_>, dy: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = dy[0] else { return Ok(()) };
        norm_grad::record(g, *self, dy, node.inputs[0], node.inputs[1]);
        if let Some(&bias) = node.inputs.get(2).filter(|t| g.requires_grad(**t)) {
            add_row_sums(g, bias, dy);
        }
        Ok(())
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let x = node.inputs[0].shape;
        let bias = node.inputs.get(2).map_or(1, |_| 2);
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: "forward",
            constants: vec![
                ("CENTER", self.center.to_string()),
                ("PLUS_ONE", self.plus_one.to_string()),
                ("BIAS", (bias == 2).to_string()),
            ],
            binds: vec![Bind::Out(0), Bind::In(0), Bind::In(1), Bind::In(bias)],
            params: vec![x.rows() as u32, x.cols() as u32, self.eps.to_bits()],
            groups: grid(x.rows(), caps),
        }])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let n = node.outputs[0].shape.numel() as u64;
        Cost { flops: 6 * n, bytes: 8 * n }
    }
}

impl Twin for Norm {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (y, x, weight) = (io.out(0), io.f(0), io.f(1));
        let bias = io.inputs.get(2).map(|_| io.f(2));
        let cols = weight.len().max(1);
        y.par_chunks_mut(cols).zip(x.par_chunks(cols)).with_min_len(8).for_each(|(y, x)| {
            self.normalise(x, y);
            match bias {
                None => y.iter_mut().zip(weight).for_each(|(y, &w)| *y *= self.factor(w)),
                Some(b) => y.iter_mut().zip(weight).zip(b).for_each(|((y, &w), &b)| *y = *y * w + b),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Values, evaluate};
    use std::collections::HashMap;

    const RMS: [f64; 8] = [
        0.5297385987658,
        -0.5297385987658,
        -2.383823694446,
        0.5297385987658,
        -0.1116179879649,
        0.8929439037193,
        0.0,
        1.785887807439,
    ];
    const LAYER: [f64; 8] = [
        0.2105255382266,
        -0.4868393837931,
        -2.499992613153,
        0.8596496411823,
        -0.9824640597569,
        0.9959449342599,
        0.7553707430227,
        1.654976039838,
    ];

    /// Both norms of [[1, -2, 3, 0.5], [-0.25, 4, 0, 2]] with eps = 1e-3, against torch.nn.functional in f64.
    #[test]
    fn the_oracle_agrees_with_torch() {
        let mut g = Graph::new();
        let x = g.external("x", [2, 4], DType::F32);
        let (w, b) = (g.external("w", [4], DType::F32), g.external("b", [4], DType::F32));
        let wanted = [rms_norm(&mut g, x, w, 1e-3), layer_norm(&mut g, x, w, Some(b), 1e-3)];
        let values = [
            ("x", vec![1.0, -2.0, 3.0, 0.5, -0.25, 4.0, 0.0, 2.0]),
            ("w", vec![1.0, 0.5, -1.5, 2.0]),
            ("b", vec![0.0, 0.25, -0.5, 1.0]),
        ];
        let mut values: HashMap<_, _> = values.into_iter().map(|(k, v)| (k.to_owned(), Values::F(v))).collect();
        for (found, expected) in evaluate(&g, &mut values, &wanted).unwrap().iter().zip([RMS, LAYER]) {
            for (found, expected) in found.floats().iter().zip(expected) {
                // eps is the f32 nearest to 1e-3, which moves the results by 2e-11 at most.
                assert!((found - expected).abs() < 1e-10, "{found} {expected}");
            }
        }
    }
}
