//! Model files: bytes to named tensors and back, and nothing else.
//!
//! [`ModelFolder`] opens a Hugging Face folder or a GGUF file; its [`Tensors`] decode weights on demand;
//! [`Tokenizer`] turns text into ids.

#[cfg(feature = "parquet")]
pub mod arrow;
#[cfg(not(target_family = "wasm"))]
mod draft;
mod dtype;
mod files;
#[cfg(feature = "parquet")]
mod flatbuffer;
mod gguf;
mod gguf_decoder;
pub mod hub;
#[cfg(feature = "hub")]
mod hub_fetch;
mod model_folder;
mod packed;
#[cfg(feature = "parquet")]
pub mod parquet;
mod peft;
mod quants;
mod safetensors_file;
mod spelling;
#[cfg(feature = "parquet")]
pub mod tables;
mod tensors;
mod tokenizer;
mod tokenizer_checks;
mod tokenizer_gguf;

#[cfg(not(target_family = "wasm"))]
pub(crate) use draft::Draft;
pub use dtype::{Dtype, Quant};
pub use files::{Bytes, claim_output_dir, read_json, read_json_if_present, write_atomically, write_json, write_text};
pub use gguf::{GgufHeader, GgufTensor, MetaValue};
pub use model_folder::{ModelFolder, write_configs};
#[cfg(all(feature = "spectrum", not(target_family = "wasm")))]
pub(crate) use peft::HEAD;
pub use peft::{Adapter, AdapterConfig, write_adapter};
#[cfg(target_family = "wasm")]
pub(crate) use safetensors_file::begin as begin_safetensors;
pub use safetensors_file::{TensorSpec, write_safetensors};
pub use tensors::Tensors;
pub use tokenizer::{DecodeStream, TokenText, Tokenizer};
