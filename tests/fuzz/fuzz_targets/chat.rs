//! A chat template over a fixed conversation.
#![no_main]

use libfuzzer_sys::fuzz_target;
use potstill::data::chat::ChatTemplate;

fuzz_target!(|data: &[u8]| {
    if let Ok(source) = std::str::from_utf8(data) {
        let _ = ChatTemplate::new("fuzz", source, Default::default(), 0);
    }
});
