//! Real models within the limits that every WebGPU implementation grants.

use crate::common::{gpus, novel, recipe, smollm2};
use potstill::device::{Caps, Device};
use potstill::distill::setup::Setup;
use serde_json::json;
use std::sync::Arc;

/// A GPU whose limits are WebGPU's, whatever else it could do.
fn limited(gpu: Device) -> Device {
    let Device::Gpu(gpu) = gpu else { panic!("{} is no GPU", gpu.name()) };
    let gpu = Arc::into_inner(gpu).expect("just opened");
    Device::Gpu(Arc::new(gpu.with_caps(|caps| {
        *caps = Caps { tiles: caps.tiles, trusted: caps.trusted, software: caps.software, ..Caps::webgpu() };
    })))
}

/// SmolLM2-135M, live, and six of its layers, 512 tokens, over the whole vocabulary: everything that a run has is allocated
/// and every kernel is bound, within 128 MiB a binding and 2 GiB in all.
#[test]
fn a_teacher_of_135m_and_a_student_of_50m_fit_every_gpus_default_limits() {
    let dir = tempfile::tempdir().unwrap();
    let text = novel(dir.path(), "text.txt", 30_000..60_000);
    let recipe = recipe(
        &json!({
            "output_path": dir.path().join("unused"), "sequence_length": 512,
            "model": { "layers_of": smollm2(), "layers": [0, 6, 12, 18, 24, 29] },
            "teacher": { "kind": "live", "path": smollm2() },
            "dataset": { "train": text, "holdout": { "fraction": 0.1 } },
            "loss_functions": [{ "function": "kl", "weight": 1 }, { "function": "cross_entropy", "weight": 0.1 }],
            "training_args": { "max_steps": 1, "per_device_train_batch_size": 1 },
        })
        .to_string(),
    );
    for gpu in gpus() {
        let device = limited(gpu);
        let setup = Setup::open_on(&recipe, device.clone()).unwrap();
        assert_eq!(setup.origin.decoder.parameter_count(), 49_552_704);
        let planned = setup.memory.total();
        let trainer = pollster::block_on(setup.trainer()).unwrap();
        let allocated = device.usage().peak;
        assert!(planned <= 2 << 30 && allocated <= 2 << 30, "{planned} bytes planned, {allocated} allocated");
        // The plan says what is there.
        assert!(allocated.abs_diff(planned) < planned / 100, "{planned} bytes planned, {allocated} allocated");
        drop(trainer);
    }
}
