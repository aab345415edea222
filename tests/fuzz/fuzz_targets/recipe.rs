//! A recipe, and what it says of itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use potstill::distill::Recipe;
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(recipe) = Recipe::parse(text, Path::new("fuzz.yaml")) {
        let written = recipe.to_yaml().expect("a recipe can be written");
        let again = Recipe::parse(&written, Path::new("again.yaml")).expect("and read again");
        assert_eq!(recipe, again);
    }
});
