//! A line of a .jsonl dataset.
#![no_main]

use libfuzzer_sys::fuzz_target;
use potstill::data::documents::Place;
use potstill::data::rows;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = rows::parse(text, &Place { file: "fuzz.jsonl".into(), line: 1 });
    }
});
