//! Merging: several models of one architecture become one, tensor by tensor, without training.
//!
//! [`MergeConfig`] is what the user wants (mergekit's YAML), [`Plan`] what it means for every tensor of the result, and
//! [`merge`] writes it. [`methods`] is the arithmetic.
//!
//! No tensor is ever in memory whole: inputs are mapped, a method goes over them block by block, and what it makes
//! goes to the output file in order.

mod config;
mod config_json;
mod lora;
pub mod methods;
mod model;
mod names;
mod output;
mod plan;
mod plan_tensor;
mod run;
mod tokenizer;

pub use config::{BaseRole, ChatTemplate, MergeConfig, MethodSpec, Module, Reference, Slice, Source, TokenizerSource};
pub use plan::{Plan, Planned};
pub use run::{MergeOptions, Merged, Progress, merge};
