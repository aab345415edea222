//! GGUF: header, every tensor, tokenizer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use potstill::formats::{Bytes, ModelFolder};
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let Ok(model) = ModelFolder::from_gguf(Path::new("fuzz.gguf"), Bytes::Owned(data.to_vec())) else { return };
    for name in model.tensors.names() {
        let _ = model.tensors.read_f32(name);
    }
    let _ = potstill::models::from_config(model.path(), &model.config);
    if let Ok(tokenizer) = model.tokenizer() {
        let _ = tokenizer.encode("a still, 123", true).map(|ids| tokenizer.decode(&ids, false));
    }
});
