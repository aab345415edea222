//! How layers find their parameters in the graph.

use super::{Lora, Merged};
use crate::formats::Dtype;
use crate::graph::{DType, Graph, Shape, Tensor};
use std::collections::BTreeMap;

/// A parameter a model needs: its Hugging Face name and shape.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamSpec {
    /// Name as in the safetensors file.
    pub name: String,
    /// Shape as there.
    pub shape: Shape,
}

/// Names parameters of one model inside a graph that may hold several (a student and its live teacher).
#[derive(Clone, Copy)]
pub struct Params<'a> {
    /// Put before every name in the graph; empty for the student.
    pub prefix: &'a str,
    /// Whether a parameter, by its Hugging Face name, is trained.
    pub trainable: &'a dyn Fn(&str) -> bool,
    /// The adapters of linear layers, if the model has any.
    pub lora: Option<&'a Lora>,
    /// The parameters that are made of other models', if there are any.
    pub merged: Option<&'a Merged>,
    /// The matrices that stay as their file stores them, by their Hugging Face names, if there are any.
    pub packed: Option<&'a BTreeMap<String, Dtype>>,
}

impl Params<'_> {
    /// Parameters of a model that is only run, under `prefix`.
    pub fn frozen(prefix: &str) -> Params<'_> {
        Params { prefix, trainable: &|_| false, lora: None, merged: None, packed: None }
    }

    /// The tensor of parameter `name`.
    pub fn get(&self, g: &mut Graph, name: &str, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        if let Some(merged) = self.merged.and_then(|merged| merged.get(g, self.trainable, name, shape)) {
            return merged;
        }
        if let Some(&stored) = self.packed.and_then(|packed| packed.get(name)) {
            return g.external(&format!("{}{name}", self.prefix), shape, DType::Packed(stored));
        }
        g.param(&format!("{}{name}", self.prefix), shape, (self.trainable)(name))
    }
}
