//! Parameters that are weighted sums of several models', column by column: what DAM learns (arXiv:2410.08371).

use crate::graph::{Graph, Shape, Tensor};
use crate::ops;
use std::collections::BTreeMap;

/// Which parameters of a model are made of others', and how: W = sum_i W_i diag(c_i), the W_i of the models and the
/// coefficients c_i parameters of their own. The weight is recorded as ops, so that its gradient reaches the c_i.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// The prefixes of the models' parameters.
    pub models: Vec<String>,
    /// By parameter, how many coefficients each model has: the columns that it is cut into. A norm's weight is one
    /// row, so that each element has its own coefficient; with 1 all of it has one.
    pub columns: BTreeMap<String, usize>,
}

impl Merged {
    /// The name of the coefficients, f32 [columns], of the model of this prefix for the parameter `name`.
    pub fn coefficients(model: &str, name: &str) -> String {
        format!("{model}{name}.coefficients")
    }

    /// Records parameter `name`, if it is a merged one.
    pub(super) fn get(
        &self,
        g: &mut Graph,
        trainable: &dyn Fn(&str) -> bool,
        name: &str,
        shape: Shape,
    ) -> Option<Tensor> {
        let columns = *self.columns.get(name)?;
        let mut sum: Option<Tensor> = None;
        for model in &self.models {
            let weight = g.param(&format!("{model}{name}"), shape, false);
            let weight = g.reshape(weight, [shape.numel() / columns, columns]);
            let coefficients = Merged::coefficients(model, name);
            let factors = g.param(&coefficients, [columns], trainable(&coefficients));
            sum = Some(ops::scale_columns(g, weight, factors, None, sum));
        }
        sum.map(|sum| g.reshape(sum, shape))
    }
}
