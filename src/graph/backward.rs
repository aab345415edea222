//! Gradients by reversal: the backward pass is more ops in the same graph.

use super::{AnyOp, Graph, Node, Recorded, Tensor};
use crate::{Error, Result};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

impl Graph {
    /// Appends the gradient ops of everything recorded so far. `seeds` are pairs of a tensor and the gradient
    /// that flows into it from outside (from a fused loss, say); a tensor may have one seed, and its gradient's memory is
    /// taken over: what else flows into the tensor is added there. Afterwards [`Graph::grad`] gives each leaf's gradient.
    pub fn backward(&mut self, seeds: &[(Tensor, Tensor)]) -> Result<()> {
        for &(tensor, grad) in seeds {
            if tensor.shape.numel() != grad.shape.numel() {
                return Err(Error::internal(format!("gradient {grad:?} for {tensor:?}")));
            }
            if let Some(first) = self.grads.insert(self.original(tensor), grad) {
                return Err(Error::internal(format!("two gradients, {first:?} and {grad:?}, for {tensor:?}")));
            }
        }
        let segments = std::mem::take(&mut self.segments);
        let mut recomputed: Option<(usize, HashMap<u32, Tensor>)> = None;
        for index in (0..self.nodes.len()).rev() {
            let Some((op, inputs, outputs, dy)) = self.grads_into(index) else { continue };
            let Some(segment) = segments.iter().position(|range| range.contains(&index)) else {
                op.backward(self, &Node { inputs: &inputs, outputs: &outputs }, &dy)?;
                continue;
            };
            if recomputed.as_ref().is_none_or(|(done, _)| *done != segment) {
                recomputed = Some((segment, self.record_again(segments[segment].clone())));
            }
            let (_, map) = recomputed.as_ref().expect("set above");
            let again = |tensors: &[Tensor]| -> Vec<Tensor> { tensors.iter().map(|t| stand_in(map, t)).collect() };
            op.backward(self, &Node { inputs: &again(&inputs), outputs: &again(&outputs) }, &dy)?;
        }
        Ok(())
    }

    /// Records what `f` records, but keeps none of its inner activations for the backward pass, which computes
    /// them again (activation checkpointing). Inside another segment it only records: the outer one recomputes.
    pub fn checkpoint<T>(&mut self, f: impl FnOnce(&mut Graph) -> T) -> T {
        if self.in_segment {
            return f(self);
        }
        let start = self.nodes.len();
        self.in_segment = true;
        let result = f(self);
        self.in_segment = false;
        self.segments.push(start..self.nodes.len());
        result
    }

    /// The gradient gathered so far for a tensor, if any, in the tensor's shape.
    pub fn grad(&self, tensor: Tensor) -> Option<Tensor> {
        let grad = self.grads.get(&self.original(tensor))?;
        Some(Tensor { shape: tensor.shape, ..*grad })
    }

    /// The gradient gathered so far, if the caller may add to it in place: no other tensor shares it
    /// and the op whose gradient is being recorded does not read it.
    pub fn grad_in_place(&self, tensor: Tensor) -> Option<Tensor> {
        let grad = self.grad(tensor)?;
        let owners = self.grads.values().filter(|g| g.id == grad.id).count();
        (owners == 1 && !self.being_read.contains(&grad.id)).then_some(grad)
    }

    /// Replaces the gradient gathered so far. Ops use [`crate::ops::add_grad`], which adds.
    pub fn set_grad(&mut self, tensor: Tensor, grad: Tensor) {
        assert_eq!(tensor.shape.numel(), grad.shape.numel(), "a gradient has its tensor's size");
        self.grads.insert(self.original(tensor), grad);
    }

    /// The op of node `index` with its tensors and its outputs' gradients, if any gradient reaches it and any
    /// input wants one. The outputs' gradients are taken: nothing earlier reads them.
    #[allow(clippy::type_complexity)]
    fn grads_into(&mut self, index: usize) -> Option<(Arc<dyn AnyOp>, Vec<Tensor>, Vec<Tensor>, Vec<Option<Tensor>>)> {
        let node = &self.nodes[index];
        if !node.inputs.iter().any(|&t| self.requires_grad(t)) {
            return None;
        }
        let (op, inputs, outputs) = (node.op.clone(), node.inputs.clone(), node.outputs.clone());
        let mut dy = Vec::new();
        for t in &outputs {
            let grad = self.grads.remove(&self.original(*t));
            dy.push(grad.map(|grad| Tensor { shape: t.shape, ..grad }));
        }
        self.being_read = dy.iter().flatten().map(|t| t.id).collect();
        dy.iter().any(Option::is_some).then_some((op, inputs, outputs, dy))
    }

    /// Records the nodes of a segment a second time and returns old tensor id -> new tensor. What nobody reads
    /// of it, the plan leaves out.
    fn record_again(&mut self, range: Range<usize>) -> HashMap<u32, Tensor> {
        let mut map: HashMap<u32, Tensor> = HashMap::new();
        for index in range {
            let node = &self.nodes[index];
            let (op, old_outputs) = (node.op.clone(), node.outputs.clone());
            let inputs = node.inputs.iter().map(|t| stand_in(&map, t)).collect();
            let mut outputs = Vec::new();
            for old in old_outputs {
                let new = self.new_tensor(old.shape, old.dtype, false, None);
                self.originals.insert(new.id, old.id);
                map.insert(old.id, new);
                outputs.push(new);
            }
            self.nodes.push(Recorded { op, inputs, outputs });
        }
        map
    }
}

/// The recomputed tensor that stands for `t`, in t's shape; `t` itself if it was not recomputed.
fn stand_in(map: &HashMap<u32, Tensor>, t: &Tensor) -> Tensor {
    map.get(&t.id).map_or(*t, |new| Tensor { shape: t.shape, ..*new })
}
