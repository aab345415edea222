//! What an op must be able to say about itself. The graph, the plan and the devices know ops only through
//! these traits.

use super::{Graph, Shape, Tensor};
use crate::Result;
use crate::device::{Caps, Dispatch, Real};
use std::fmt::Debug;

/// An operation between tensors: its gradient, its GPU dispatches, its cost. The value type itself holds the
/// op's parameters (an epsilon, a transpose flag) and nothing else.
pub trait Op: Debug + Send + Sync + 'static {
    /// The op's name: its file in `src/ops/` and `shaders/`.
    fn name(&self) -> &'static str;

    /// Pairs (output, input) where the output takes over the input's memory: it is updated, not written
    /// anew. Nothing recorded later may read the old value.
    fn in_place(&self) -> Vec<(usize, usize)> {
        Vec::new()
    }

    /// Emits the ops that turn the outputs' gradients into the inputs' gradients and hands each on with
    /// [`crate::ops::add_grad`]. `dy[i]` is `None` where nothing downstream used output `i`.
    /// Called only when some input requires a gradient.
    fn backward(&self, g: &mut Graph, node: &Node<'_>, dy: &[Option<Tensor>]) -> Result<()> {
        let _ = (g, node, dy);
        Err(crate::Error::internal(format!("`{}` has no gradient", self.name())))
    }

    /// The kernel launches, in order, for tensors of these shapes.
    fn dispatches(&self, node: &Node<'_>, caps: &Caps) -> Result<Vec<Dispatch>>;

    /// Arithmetic and traffic, for cutting submissions and for printing.
    fn cost(&self, node: &Node<'_>) -> Cost {
        let elements = |tensors: &[Tensor]| tensors.iter().map(|t| t.shape.numel() as u64).sum::<u64>();
        let moved = elements(node.inputs) + elements(node.outputs);
        Cost { flops: 4 * elements(node.outputs), bytes: 4 * moved }
    }
}

/// The op in plain Rust, generic over f32 (to work) and f64 (as the oracle).
pub trait Twin {
    /// Computes the outputs from the inputs.
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>);
}

/// An op with its twin, made usable as a trait object. Implemented for everything that is both.
pub trait AnyOp: Op {
    /// [`Twin::run`] in f32.
    fn run_f32(&self, io: &mut CpuIo<'_, f32>);
    /// [`Twin::run`] in f64.
    #[cfg(any(not(target_family = "wasm"), feature = "oracle"))]
    fn run_f64(&self, io: &mut CpuIo<'_, f64>);
}

impl<T: Op + Twin> AnyOp for T {
    fn run_f32(&self, io: &mut CpuIo<'_, f32>) {
        self.run(io);
    }
    #[cfg(any(not(target_family = "wasm"), feature = "oracle"))]
    fn run_f64(&self, io: &mut CpuIo<'_, f64>) {
        self.run(io);
    }
}

/// The tensors one recorded op reads and writes.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// What it reads.
    pub inputs: &'a [Tensor],
    /// What it writes.
    pub outputs: &'a [Tensor],
}

/// Estimated work of one op.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

/// One input of a twin.
#[derive(Clone, Copy)]
pub enum Arg<'a, F> {
    /// Floats.
    F(&'a [F]),
    /// Unsigned integers.
    U(&'a [u32]),
}

/// One output of a twin.
pub enum ArgMut<'a, F> {
    /// Floats.
    F(&'a mut [F]),
    /// Unsigned integers.
    U(&'a mut [u32]),
    /// Taken by the twin already.
    Taken,
}

/// Inputs and outputs of a twin as slices, with their shapes. An input whose memory an output took over
/// (`Op::in_place`) is empty: its old value is what the output holds on entry. Other outputs hold rubbish on entry.
pub struct CpuIo<'a, F> {
    /// The tensors (for shapes).
    pub node: Node<'a>,
    /// Input data.
    pub inputs: Vec<Arg<'a, F>>,
    /// Output data.
    pub outputs: Vec<ArgMut<'a, F>>,
}

impl<'a, F> CpuIo<'a, F> {
    /// Float input `i`.
    pub fn f(&self, i: usize) -> &'a [F] {
        match self.inputs[i] {
            Arg::F(values) => values,
            Arg::U(_) => panic!("input {i} holds integers"),
        }
    }

    /// Integer input `i`.
    pub fn u(&self, i: usize) -> &'a [u32] {
        match self.inputs[i] {
            Arg::U(values) => values,
            Arg::F(_) => panic!("input {i} holds floats"),
        }
    }

    /// Takes float output `i`; a twin takes each output once.
    pub fn out(&mut self, i: usize) -> &'a mut [F] {
        match std::mem::replace(&mut self.outputs[i], ArgMut::Taken) {
            ArgMut::F(values) => values,
            _ => panic!("output {i} does not hold floats"),
        }
    }

    /// Takes integer output `i`.
    pub fn out_u(&mut self, i: usize) -> &'a mut [u32] {
        match std::mem::replace(&mut self.outputs[i], ArgMut::Taken) {
            ArgMut::U(values) => values,
            _ => panic!("output {i} does not hold integers"),
        }
    }

    /// Shape of input `i`.
    pub fn in_shape(&self, i: usize) -> Shape {
        self.node.inputs[i].shape
    }

    /// Shape of output `i`.
    pub fn out_shape(&self, i: usize) -> Shape {
        self.node.outputs[i].shape
    }
}
