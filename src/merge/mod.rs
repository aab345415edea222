//! Merging: several models of one architecture become one, tensor by tensor, without training.
//!
//! [`MergeConfig`] is what the user wants (mergekit's YAML), [`Plan`] what it means for every tensor of the result, and
//! [`merge`] writes it. [`methods`] is the arithmetic.
//!
//! No tensor is ever in memory whole: inputs are mapped, a method goes over them block by block, and what it makes
//! goes to the output file in order.

mod config;
mod config_json;
mod dam;
mod execute;
#[cfg(feature = "spectrum")]
mod extract;
mod lora;
#[cfg(feature = "spectrum")]
mod low_rank;
pub mod methods;
mod model;
mod names;
mod output;
mod plan;
mod plan_tensor;
mod pursuit;
mod reading;
mod run;
mod surgeon;
mod tokenizer;
mod trim;
mod union;
mod vocabulary;

pub use config::{
    BaseRole, ChatTemplate, Learning, MergeConfig, MethodSpec, Module, Reference, Slice, Source, TokenRow, TokenRule,
    TokenizerSource,
};

pub use dam::{Divergence, Learned};
#[cfg(feature = "spectrum")]
pub use extract::{ExtractOptions, Extracted, extract_lora};
#[cfg(feature = "spectrum")]
pub use low_rank::{LowRank, low_rank};
pub use plan::{Plan, Planned};
pub use run::{MergeOptions, Merged, Progress, Stage, merge};
pub use surgeon::{SurgeonOptions, Transplanted, tokensurgeon};
