//! tokenizer.json, and text through what it made.
#![no_main]

use libfuzzer_sys::fuzz_target;
use potstill::formats::Tokenizer;
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_json(Path::new("fuzz.json"), data.to_vec(), Default::default()) {
        let _ = tokenizer.encode("ab<e>b 12", true).map(|ids| tokenizer.decode(&ids, true));
    }
});
