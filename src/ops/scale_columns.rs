//! Columns of a matrix each multiplied by a factor of its own, with bias and residual: what DoRA does to a projection.

use super::{add_grad, add_row_sums, mul, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("scale_columns");

/// Inputs: x, factors, then as there are: bias, residual.
#[derive(Debug, Clone, Copy)]
struct ScaleColumns {
    bias: bool,
    residual: bool,
}

/// y = factors * x (+ bias) (+ residual), where x [.., M], factors and bias [M], residual and y [.., M].
/// Differentiable in all.
pub fn scale_columns(
    g: &mut Graph,
    x: Tensor,
    factors: Tensor,
    bias: Option<Tensor>,
    residual: Option<Tensor>,
) -> Tensor {
    let cols = x.shape.cols();
    assert!(
        [Some(factors), bias].iter().flatten().all(|t| t.shape.numel() == cols),
        "scale_columns: {x:?} {factors:?}"
    );
    assert!(residual.is_none_or(|t| t.shape == x.shape), "scale_columns: residual {residual:?} for {x:?}");
    let op = ScaleColumns { bias: bias.is_some(), residual: residual.is_some() };
    let inputs: Vec<Tensor> = [x, factors].into_iter().chain(bias).chain(residual).collect();
    g.record(op, &inputs, [(x.shape, DType::F32)])[0]
}

impl ScaleColumns {
    /// Which input the bias and the residual are.
    fn extras(&self) -> (Option<usize>, Option<usize>) {
        (self.bias.then_some(2), self.residual.then_some(2 + usize::from(self.bias)))
    }
}

impl Op for ScaleColumns {
    fn name(&self) -> &'static str {
        "scale_columns"
    }

    fn backward(&self, g: &mut Graph, node: &Node<'_>, dy: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = dy[0] else { return Ok(()) };
        let (x, factors) = (node.inputs[0], node.inputs[1]);
        if g.requires_grad(x) {
            let dx = scale_columns(g, dy, factors, None, None);
            add_grad(g, x, dx);
        }
        if g.requires_grad(factors) {
            let products = mul(g, dy, x);
            add_row_sums(g, factors, products);
        }
        let (bias, residual) = self.extras();
        if let Some(bias) = bias.map(|i| node.inputs[i]).filter(|&t| g.requires_grad(t)) {
            add_row_sums(g, bias, dy);
        }
        if let Some(residual) = residual {
            add_grad(g, node.inputs[residual], dy);
        }
        Ok(())
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let x = node.inputs[0].shape;
        let (bias, residual) = self.extras();
        let others = [bias.unwrap_or(1), residual.unwrap_or(0)].map(Bind::In);
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: "scale",
            constants: vec![("BIAS", self.bias.to_string()), ("RESIDUAL", self.residual.to_string())],
            binds: [&[Bind::Out(0), Bind::In(0), Bind::In(1)], &others[..]].concat(),
            params: vec![x.numel() as u32, x.cols() as u32],
            groups: grid(x.numel().div_ceil(256), caps),
        }])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let n = node.outputs[0].shape.numel() as u64;
        let more = u64::from(self.residual);
        Cost { flops: (1 + u64::from(self.bias) + more) * n, bytes: (8 + 4 * more) * n }
    }
}

impl Twin for ScaleColumns {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (y, x, factors) = (io.out(0), io.f(0), io.f(1));
        let (bias, residual) = self.extras();
        let (bias, residual) = (bias.map(|i| io.f(i)), residual.map(|i| io.f(i)));
        let cols = factors.len().max(1);
        y.par_chunks_mut(cols).zip(x.par_chunks(cols)).enumerate().with_min_len(8).for_each(|(row, (y, x))| {
            y.iter_mut().zip(x).zip(factors).for_each(|((y, &x), &f)| *y = f * x);
            if let Some(bias) = bias {
                y.iter_mut().zip(bias).for_each(|(y, &b)| *y += b);
            }
            if let Some(residual) = residual {
                y.iter_mut().zip(&residual[row * cols..]).for_each(|(y, &r)| *y += r);
            }
        });
    }
}
