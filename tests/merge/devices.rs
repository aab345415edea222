//! A merge's arithmetic on a GPU against the processor's.

use super::{difference, filled, open, run, run_with};
use crate::common::{Golden, golden, gpu_names};
use potstill::device::Choice;
use potstill::merge::MergeOptions;

#[test]
fn every_method_on_a_gpu_gives_what_the_processor_gives() {
    let cases = Golden::open(&golden("merge/golden.safetensors")).metadata();
    let names = gpu_names();
    for (case, yaml) in cases.as_object().unwrap() {
        let (dir, yaml) = (tempfile::tempdir().unwrap(), filled(yaml.as_str().unwrap()));
        let cpu = dir.path().join("cpu");
        run(&yaml, &cpu).unwrap();
        for (i, name) in names.iter().enumerate() {
            let out = dir.path().join(format!("gpu{i}"));
            let options = MergeOptions { device: Choice::Gpu(name.clone()), ..MergeOptions::default() };
            run_with(&yaml, &out, &options).unwrap_or_else(|e| panic!("{case} on {name}: {e}"));
            let (expected, found) = (open(&cpu), open(&out));
            for tensor in expected.tensors.names() {
                let [e, f] = [&expected, &found].map(|model| model.tensors.read_f32(tensor).unwrap());
                let most = e.iter().fold(0f32, |most, x| most.max(x.abs()));
                // Lengths and angles come from sums of some thousand f32 products; all else from a few roundings.
                let worst = difference(&f, &e);
                assert!(worst <= 1e-5 * most, "{case} on {name}: {tensor} differs by {worst} of {most}");
            }
        }
    }
}
