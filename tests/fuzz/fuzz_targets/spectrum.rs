//! Scores of layers as Spectrum publishes them, chosen among and drawn.
#![no_main]

use libfuzzer_sys::fuzz_target;
use potstill::spectrum::{By, Choice, Results, Rounding, bars, choose};
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(results) = Results::parse(text, Path::new("snr.json")) else { return };
    let choice = Choice { top_percent: 30.0, by: By::Snr, rounding: Rounding::Up };
    if let Ok(chosen) = choose(&results, &choice) {
        let _ = chosen.yaml();
        for bars in bars(&chosen) {
            let _ = (bars.svg(0), bars.text());
        }
    }
});
