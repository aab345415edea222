//! A shard set's manifest, sealed again, so that what lies behind its digest is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use potstill::shards::Manifest;
use sha2::{Digest, Sha256};
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let digest: String = Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect();
    let sealed = [data, format!("  \"manifest_sha256\": \"{digest}\"\n}}\n").as_bytes()].concat();
    if let Ok(manifest) = Manifest::parse(&sealed, Path::new("manifest.json")) {
        let _ = manifest.locate(0, manifest.spec.rows);
    }
});
