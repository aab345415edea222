//! What several test files need.
#![allow(dead_code)]

use potstill::device::{Choice, Device, adapters};
use safetensors::SafeTensors;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The adapters to test on: all found, but only those named by POTSTILL_TEST_ADAPTER if it is set. None is an
/// error unless POTSTILL_TEST_ADAPTER is `none`.
pub fn gpus() -> Vec<Device> {
    let only = std::env::var("POTSTILL_TEST_ADAPTER").unwrap_or_default().to_lowercase();
    if only == "none" {
        return Vec::new();
    }
    let found = pollster::block_on(adapters());
    let names: BTreeSet<String> = found.iter().map(|a| a.name.to_lowercase()).filter(|n| n.contains(&only)).collect();
    assert!(!names.is_empty(), "no GPU adapter matches `{only}`; tests/setup.sh installs a software driver");
    let open = |name: &String| pollster::block_on(Choice::Gpu(name.clone()).open()).expect("the adapter opens");
    names.iter().map(open).collect()
}

/// A folder of `tests/golden/`.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The reference model, fetched by tests/setup.sh.
pub fn smollm2() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.exists(), "{} is missing: run tests/setup.sh first", path.display());
    path
}

/// A safetensors file of golden values.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(path: &Path) -> Golden {
        Golden(std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data().to_vec()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&self.bytes(name))
    }

    pub fn f64(&self, name: &str) -> Vec<f64> {
        bytemuck::pod_collect_to_vec(&self.bytes(name))
    }

    pub fn i32(&self, name: &str) -> Vec<i32> {
        bytemuck::pod_collect_to_vec(&self.bytes(name))
    }

    pub fn names(&self) -> Vec<String> {
        SafeTensors::deserialize(&self.0).unwrap().names().into_iter().map(|n| n.to_string()).collect()
    }

    pub fn metadata(&self) -> serde_json::Value {
        let (_, header) = SafeTensors::read_metadata(&self.0).unwrap();
        serde_json::from_str(&header.metadata().as_ref().unwrap()["golden"]).unwrap()
    }
}

/// Largest absolute difference divided by the largest magnitude expected.
pub fn relative_error(expected: &[f32], found: &[f32]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let largest = expected.iter().fold(1e-30f64, |a, b| a.max(f64::from(b.abs())));
    let worst = expected
        .iter()
        .zip(found)
        .map(|(e, f)| (f64::from(*e) - f64::from(*f)).abs())
        .fold(0.0, |a, b| if b.is_nan() { f64::INFINITY } else { f64::max(a, b) });
    worst / largest
}
