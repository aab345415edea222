//! Safetensors: header and every tensor.
#![no_main]

use libfuzzer_sys::fuzz_target;
use potstill::formats::{Bytes, Tensors};

fuzz_target!(|data: &[u8]| {
    let Ok(tensors) = Tensors::from_safetensors(vec![("fuzz.safetensors".into(), Bytes::Owned(data.to_vec()))]) else {
        return;
    };
    for name in tensors.names() {
        let _ = tensors.read_f32(name);
    }
});
