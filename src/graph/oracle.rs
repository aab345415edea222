//! The graph run directly in f64, one allocation a tensor: what the tests measure everything else against.

use super::{Arg, ArgMut, CpuIo, DType, Graph, Tensor};
use crate::{Error, Result};
use std::collections::HashMap;

/// A tensor's values in the oracle.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Floats.
    F(Vec<f64>),
    /// Unsigned integers.
    U(Vec<u32>),
}

impl Values {
    /// The floats; empty if it holds integers.
    pub fn floats(&self) -> &[f64] {
        match self {
            Values::F(values) => values,
            Values::U(_) => &[],
        }
    }
}

/// Runs every recorded op in f64 from the externals' values and returns the values of `wanted`, in order.
/// Externals that an op updates in place are updated in `externals` too.
pub fn evaluate(graph: &Graph, externals: &mut HashMap<String, Values>, wanted: &[Tensor]) -> Result<Vec<Values>> {
    let mut values: HashMap<u32, Values> = HashMap::new();
    for (name, tensor) in graph.externals() {
        let given = externals.get(name).ok_or_else(|| Error::internal(format!("no value for `{name}`")))?;
        values.insert(tensor.id, given.clone());
    }
    // Tensors that an in-place update ends: their last value is what readers before it saw.
    for node in &graph.nodes {
        let in_place = node.op.in_place();
        let mut outputs: Vec<Values> = node.outputs.iter().map(empty).collect();
        for &(output, input) in &in_place {
            outputs[output] = values[&node.inputs[input].id].clone();
        }
        let mut inputs = Vec::new();
        for (i, tensor) in node.inputs.iter().enumerate() {
            let taken_over = in_place.iter().any(|&(_, input)| input == i);
            inputs.push(match &values[&tensor.id] {
                Values::F(_) if taken_over => Arg::F(&[]),
                Values::U(_) if taken_over => Arg::U(&[]),
                Values::F(values) => Arg::F(values),
                Values::U(values) => Arg::U(values),
            });
        }
        let arguments = outputs.iter_mut().map(|v| match v {
            Values::F(values) => ArgMut::F(values),
            Values::U(values) => ArgMut::U(values),
        });
        let mut io = CpuIo { node: node.node(), inputs, outputs: arguments.collect() };
        node.op.run_f64(&mut io);
        for (tensor, value) in node.outputs.iter().zip(outputs) {
            values.insert(tensor.id, value);
        }
        for (output, input) in in_place {
            if let Some(name) = &graph.tensors[node.inputs[input].id as usize].external {
                externals.insert(name.clone(), values[&node.outputs[output].id].clone());
            }
        }
    }
    Ok(wanted.iter().map(|t| values[&t.id].clone()).collect())
}

/// Poison where an op must write: a twin that forgets an element shows.
fn empty(tensor: &Tensor) -> Values {
    match tensor.dtype {
        DType::F32 => Values::F(vec![f64::NAN; tensor.shape.numel()]),
        DType::U32 | DType::Packed(_) => Values::U(vec![u32::MAX; tensor.bytes() as usize / 4]),
    }
}
