//! Merging: several models of one architecture become one, tensor by tensor, without training.

pub mod methods;
