//! The recorded graph: tensors, the ops between them, reversal for gradients, the plan and its replay.
//! Knows no op by name.

mod backward;
mod op;
#[cfg(any(not(target_family = "wasm"), feature = "oracle"))]
mod oracle;
mod plan;
mod runner;
mod store;
mod tensor;

pub use op::{AnyOp, Arg, ArgMut, Cost, CpuIo, Node, Op, Twin};
#[cfg(any(not(target_family = "wasm"), feature = "oracle"))]
pub use oracle::{Values, evaluate};
pub use plan::{Place, Plan, PlannedStep};
pub use runner::Runner;
pub use store::{ARENA_ALIGN, Store};
pub use tensor::{DType, Shape, Tensor};

use crate::device::Precision;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

/// A recorded computation of fixed shape. Model code calls op builders, which call [`Graph::record`].
#[derive(Default)]
pub struct Graph {
    tensors: Vec<Info>,
    nodes: Vec<Recorded>,
    /// Externals by name.
    names: HashMap<String, u32>,
    /// Gradient so far of a tensor, keyed by the tensor's id.
    grads: HashMap<u32, Tensor>,
    /// Gradients that the op whose backward is being recorded may still read.
    being_read: Vec<u32>,
    /// Node ranges whose activations are recomputed in the backward pass.
    segments: Vec<Range<usize>>,
    /// Whether such a range is being recorded.
    in_segment: bool,
    /// Recomputed tensor -> the original it stands for.
    originals: HashMap<u32, u32>,
    outputs: BTreeMap<String, Tensor>,
    /// Of the matrix products that are recorded from now on.
    precision: Precision,
}

struct Info {
    tensor: Tensor,
    requires_grad: bool,
    /// Set for tensors whose memory the caller supplies.
    external: Option<String>,
}

struct Recorded {
    op: Arc<dyn AnyOp>,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

impl Recorded {
    fn node(&self) -> Node<'_> {
        Node { inputs: &self.inputs, outputs: &self.outputs }
    }
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Graph {
        Graph::default()
    }

    /// How matrix products recorded from now on treat their factors; f32 unless told.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// What [`Graph::set_precision`] was last told.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// A tensor whose memory the caller supplies under `name` when the plan is bound to a device. Asking again
    /// for a name gives the same tensor.
    pub fn external(&mut self, name: &str, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        let shape = shape.into();
        if let Some(&id) = self.names.get(name) {
            let known = self.tensors[id as usize].tensor;
            assert_eq!((known.shape, known.dtype), (shape, dtype), "`{name}` asked for twice, differently");
            return known;
        }
        let tensor = self.new_tensor(shape, dtype, false, Some(name.to_owned()));
        self.names.insert(name.to_owned(), tensor.id);
        tensor
    }

    /// A model parameter: an external tensor. If `trainable`, its gradient accumulates into the external
    /// tensor named by [`Graph::grad_name`], which the caller clears between optimiser steps.
    pub fn param(&mut self, name: &str, shape: impl Into<Shape>, trainable: bool) -> Tensor {
        let tensor = self.external(name, shape, DType::F32);
        if trainable && !self.requires_grad(tensor) {
            self.tensors[tensor.id as usize].requires_grad = true;
            let grad = self.external(&Self::grad_name(name), tensor.shape, DType::F32);
            self.grads.insert(tensor.id, grad);
        }
        tensor
    }

    /// The external name of a parameter's gradient.
    pub fn grad_name(param: &str) -> String {
        format!("grad:{param}")
    }

    /// Marks a tensor as one to differentiate with respect to (a leaf that is no parameter).
    pub fn require_grad(&mut self, tensor: Tensor) {
        self.tensors[tensor.id as usize].requires_grad = true;
    }

    /// Whether a gradient flows into this tensor.
    pub fn requires_grad(&self, tensor: Tensor) -> bool {
        self.tensors[self.original(tensor) as usize].requires_grad
    }

    /// Records an op and returns its output tensors, which require a gradient if any input does.
    pub fn record<const N: usize>(
        &mut self,
        op: impl AnyOp,
        inputs: &[Tensor],
        outputs: [(Shape, DType); N],
    ) -> [Tensor; N] {
        let requires_grad = inputs.iter().any(|&t| self.requires_grad(t));
        let outputs =
            outputs.map(|(shape, dtype)| self.new_tensor(shape, dtype, requires_grad && dtype == DType::F32, None));
        self.nodes.push(Recorded { op: Arc::new(op), inputs: inputs.to_vec(), outputs: outputs.to_vec() });
        outputs
    }

    /// The same tensor seen with other dimensions: no work, no copy.
    pub fn reshape(&self, tensor: Tensor, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        assert_eq!(tensor.shape.numel(), shape.numel(), "reshape keeps the number of elements");
        Tensor { shape, ..tensor }
    }

    /// Keeps a tensor readable after a replay, under `name`.
    pub fn output(&mut self, name: &str, tensor: Tensor) {
        self.outputs.insert(name.to_owned(), tensor);
    }

    /// Names, shapes and dtypes of the tensors whose memory the caller supplies.
    pub fn externals(&self) -> impl Iterator<Item = (&str, Tensor)> {
        self.tensors.iter().filter_map(|info| info.external.as_deref().map(|name| (name, info.tensor)))
    }

    fn new_tensor(&mut self, shape: Shape, dtype: DType, requires_grad: bool, external: Option<String>) -> Tensor {
        let tensor = Tensor { id: self.tensors.len() as u32, shape, dtype };
        self.tensors.push(Info { tensor, requires_grad, external });
        tensor
    }

    fn original(&self, tensor: Tensor) -> u32 {
        self.originals.get(&tensor.id).copied().unwrap_or(tensor.id)
    }
}
