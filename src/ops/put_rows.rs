//! Gathers what chunks of rows produced into one tensor of the whole batch.

use super::shader;
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader, grid};
use crate::graph::{CpuIo, DType, Graph, Node, Op, Shape, Tensor, Twin};

pub(crate) const SHADER: Shader = shader!("put_rows");

#[derive(Debug, Clone, Copy)]
struct PutRows {
    first_row: usize,
    /// The factor of the shift, if there is one.
    factor: Option<f32>,
    /// Whether the target exists already.
    in_place: bool,
}

/// The target of [`put_rows`].
#[derive(Debug, Clone, Copy)]
pub enum RowsInto {
    /// A new tensor with this many rows; rows that nobody puts hold rubbish.
    New(usize),
    /// One that earlier calls returned.
    Old(Tensor),
}

/// Writes `a` `[R, ..]` (f32 or u32) into rows `first_row..` of a tensor `[N, ..]` and returns that.
pub fn put_rows(g: &mut Graph, into: RowsInto, first_row: usize, a: Tensor) -> Tensor {
    record(g, into, first_row, a, None)
}

/// The same with a\[r, j\] - factor * shift\[r\] for `a` `[R, ..]` (f32); `shift` is `[R]`.
pub fn put_rows_minus(
    g: &mut Graph,
    into: RowsInto,
    first_row: usize,
    a: Tensor,
    shift: Tensor,
    factor: f32,
) -> Tensor {
    assert!(a.dtype == DType::F32 && shift.shape.numel() == a.shape[0], "put_rows_minus: {a:?} {shift:?}");
    record(g, into, first_row, a, Some((shift, factor)))
}

fn record(g: &mut Graph, into: RowsInto, first_row: usize, a: Tensor, minus: Option<(Tensor, f32)>) -> Tensor {
    let op = PutRows { first_row, factor: minus.map(|(_, factor)| factor), in_place: matches!(into, RowsInto::Old(_)) };
    let mut inputs = vec![a];
    inputs.extend(minus.map(|(shift, _)| shift));
    let shape: Shape = match into {
        RowsInto::Old(old) => {
            assert_eq!(old.dtype, a.dtype, "put_rows");
            inputs.push(old);
            old.shape
        }
        RowsInto::New(rows) if a.shape.len() == 1 => [rows].into(),
        RowsInto::New(rows) => [rows, a.shape.numel() / a.shape[0].max(1)].into(),
    };
    assert!((first_row + a.shape[0]) * width(a.shape) <= shape.numel(), "put_rows: {a:?} at {first_row} of {shape:?}");
    g.record(op, &inputs, [(shape, a.dtype)])[0]
}

/// Elements of a row: the first dimension counts rows.
fn width(shape: Shape) -> usize {
    shape[1..].iter().product()
}

impl Op for PutRows {
    fn name(&self) -> &'static str {
        "put_rows"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        if self.in_place { vec![(0, 1 + self.factor.is_some() as usize)] } else { Vec::new() }
    }

    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>> {
        let a = node.inputs[0].shape;
        let mut binds = vec![Bind::Out(0), Bind::In(0)];
        binds.extend(self.factor.map(|_| Bind::In(1)));
        let (count, width) = (a.numel(), width(a));
        let factor = self.factor.unwrap_or(0.0).to_bits();
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: if self.factor.is_some() { "minus" } else { "copy" },
            constants: vec![],
            binds,
            params: vec![count as u32, width as u32, (self.first_row * width) as u32, factor],
            groups: grid(count.div_ceil(256), caps),
        }])
    }
}

impl Twin for PutRows {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let a = io.in_shape(0);
        let range = self.first_row * width(a)..self.first_row * width(a) + a.numel();
        if io.node.outputs[0].dtype == DType::U32 {
            io.out_u(0)[range].copy_from_slice(io.u(0));
            return;
        }
        let into = &mut io.out(0)[range];
        into.copy_from_slice(io.f(0));
        if let Some(factor) = self.factor {
            for (row, &shift) in into.chunks_mut(width(a)).zip(io.f(1)) {
                row.iter_mut().for_each(|x| *x -= F::of(factor as f64) * shift);
            }
        }
    }
}
