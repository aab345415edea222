//! Merging: several models of one architecture become one, tensor by tensor, without training.
//!
//! [`MergeConfig`] is what the user wants (mergekit's YAML), [`Plan`] what it means for every tensor of the result, and
//! [`merge`] writes it. [`methods`] is the arithmetic.
//!
//! No tensor is ever in memory whole: inputs are mapped, a method goes over them block by block, and what it makes
//! goes to the output file in order.

mod config;
mod config_json;
#[cfg(not(target_family = "wasm"))]
mod dam;
#[cfg_attr(target_family = "wasm", path = "in_order.rs")]
mod execute;
#[cfg(all(feature = "spectrum", not(target_family = "wasm")))]
mod extract;
#[cfg_attr(target_family = "wasm", path = "journal_in_memory.rs")]
mod journal;
mod learned;
mod lora;
#[cfg(all(feature = "spectrum", not(target_family = "wasm")))]
mod low_rank;
mod making;
pub mod methods;
mod model;
mod names;
mod output;
mod plan;
mod plan_tensor;
#[cfg(not(target_family = "wasm"))]
mod pursuit;
mod reading;
mod run;
#[cfg(not(target_family = "wasm"))]
mod surgeon;
mod tokenizer;
mod trim;
mod union;
mod vocabulary;

pub use config::{
    BaseRole, ChatTemplate, Learning, MergeConfig, MethodSpec, Module, Reference, Slice, Source, TokenRow, TokenRule,
    TokenizerSource,
};

#[cfg(all(feature = "spectrum", not(target_family = "wasm")))]
pub use extract::{ExtractOptions, Extracted, extract_lora};
pub use learned::{Divergence, Learned};
#[cfg(all(feature = "spectrum", not(target_family = "wasm")))]
pub use low_rank::{LowRank, low_rank};
pub use plan::{Plan, Planned};
#[cfg(not(target_family = "wasm"))]
pub use run::merge;
#[cfg(target_family = "wasm")]
pub(crate) use run::merge_on;
pub use run::{MergeOptions, Merged, Progress, Stage};
#[cfg(not(target_family = "wasm"))]
pub use surgeon::{SurgeonOptions, Transplanted, tokensurgeon};
