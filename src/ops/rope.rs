//! Rotary position embedding.

use super::{add_grad, shader};
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{Cost, CpuIo, DType, Graph, Node, Op, Tensor, Twin};
use crate::platform::parallel::*;

pub(crate) const SHADER: Shader = shader!("rope");

#[derive(Debug, Clone, Copy)]
struct Rope {
    /// Turn back: the transpose of the rotation, which is its gradient even where the table carries a scale.
    back: bool,
}

/// Turns the pairs (i, i + R/2) of every head of x [N, H, D] by the angles of `table` [P, R] at `positions` u32 [N] (Su
/// et al. 2021, in the "rotate half" layout of Hugging Face checkpoints). A row of the table is R/2 cosines, then R/2
/// sines; R is even and at most D, and the dimensions from R on pass through. Positions past the table take its last
/// row.
pub fn rope(g: &mut Graph, x: Tensor, positions: Tensor, table: Tensor) -> Tensor {
    assert!(x.shape.len() == 3 && positions.shape[..] == x.shape[..1] && positions.dtype == DType::U32, "rope: {x:?}");
    let r = table.shape.cols();
    assert!(r >= 2 && r.is_multiple_of(2) && r <= x.shape[2] && table.shape.rows() > 0, "rope: {table:?} for {x:?}");
    g.record(Rope { back: false }, &[x, positions, table], [(x.shape, DType::F32)])[0]
}

impl Op for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn backward(&self, g: &mut Graph, node: &Node<'_>, dy: &[Option<Tensor>]) -> Result<()> {
        let Some(dy) = dy[0] else { return Ok(()) };
        let inputs = [dy, node.inputs[1], node.inputs[2]];
        let dx = g.record(Rope { back: !self.back }, &inputs, [(dy.shape, DType::F32)])[0];
        add_grad(g, node.inputs[0], dx);
        Ok(())
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let (x, table) = (node.inputs[0].shape, node.inputs[2].shape);
        let (heads, dim, half) = (x[1], x[2], table.cols() / 2);
        let count = x.rows() * (dim - half);
        let direction: f32 = if self.back { -1.0 } else { 1.0 };
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: "rope",
            constants: vec![("HEADS", format!("{heads}u")), ("DIM", format!("{dim}u")), ("HALF", format!("{half}u"))],
            binds: vec![Bind::Out(0), Bind::In(0), Bind::In(1), Bind::In(2)],
            params: vec![count as u32, table.rows() as u32, direction.to_bits()],
            groups: grid(count.div_ceil(256), caps),
        }])
    }

    fn cost(&self, node: &Node<'_>) -> Cost {
        let n = node.outputs[0].shape.numel() as u64;
        Cost { flops: 3 * n, bytes: 8 * n }
    }
}

impl Twin for Rope {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (y, x, positions, table) = (io.out(0), io.f(0), io.u(1), io.f(2));
        let (shape, r) = (io.in_shape(0), io.in_shape(2).cols());
        let (dim, half, last) = (shape[2], r / 2, io.in_shape(2).rows() - 1);
        let row = (shape[1] * dim).max(1);
        let direction = if self.back { -F::ONE } else { F::ONE };
        let rows = y.par_chunks_mut(row).zip(x.par_chunks(row)).zip(positions);
        rows.with_min_len(8).for_each(|((y, x), &position)| {
            let at = (position as usize).min(last) * r;
            let (cos, sin) = table[at..at + r].split_at(half);
            for (y, x) in y.chunks_exact_mut(dim).zip(x.chunks_exact(dim)) {
                let (y, y_rest) = y.split_at_mut(r);
                let (x, x_rest) = x.split_at(r);
                y_rest.copy_from_slice(x_rest);
                let ((ya, yb), (a, b)) = (y.split_at_mut(half), x.split_at(half));
                let turned = a.iter().zip(b).zip(cos.iter().zip(sin));
                for ((ya, yb), ((&a, &b), (&c, &s))) in ya.iter_mut().zip(yb).zip(turned) {
                    let s = direction * s;
                    *ya = a * c - b * s;
                    *yb = b * c + a * s;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Values, evaluate};
    use std::collections::HashMap;

    /// One head of 5 with 4 rotary dimensions, at a quarter and an eighth turn, by hand.
    #[test]
    fn pairs_are_halves_apart_and_the_rest_passes() {
        let mut g = Graph::new();
        let x = g.external("x", [2, 1, 5], DType::F32);
        let (at, table) = (g.external("at", [2], DType::U32), g.external("table", [2, 4], DType::F32));
        let y = rope(&mut g, x, at, table);
        let root = 0.5f64.sqrt();
        let mut values: HashMap<_, _> = HashMap::from([
            ("x".to_owned(), Values::F(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0])),
            ("at".to_owned(), Values::U(vec![1, 0])),
            ("table".to_owned(), Values::F(vec![1.0, 1.0, 0.0, 0.0, 0.0, root, 1.0, root])),
        ]);
        let y = evaluate(&g, &mut values, &[y]).unwrap().swap_remove(0);
        let expected = [-3.0, -2.0 * root, 1.0, 6.0 * root, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];
        assert!(y.floats().iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15), "{y:?}");
    }
}
