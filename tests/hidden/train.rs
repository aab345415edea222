//! Whole runs with hidden losses.

use super::{Student, beginning, live, plan, run, tensors, values};
use crate::common::gpu_names;
use potstill::distill::{Event, distill};
use serde_json::json;
use std::ops::ControlFlow::{Break, Continue};

#[test]
fn every_hidden_loss_falls_when_it_is_trained() {
    let dir = beginning();
    let dir = dir.path();
    // Random students: of the teacher's width and half its depth, or of another width with 4 heads of 6 and 2 of 6
    // against the teacher's 4 of 8 and 2 of 8.
    let states = "layer_mapping: uniform,";
    let block = "layer_mapping: [[2, 3]],";
    for (loss, student, map, rate) in [
        ("hs_cosine", Student::Random(32, 2), states, 1e-2),
        ("hs_mse", Student::Random(24, 2), states, 1e-2),
        ("hs_cka", Student::Random(24, 2), states, 1e-2),
        ("hs_relation", Student::Random(24, 2), block, 5e-4),
    ] {
        let mut recipe = plan(dir, loss, student, &live(dir), &format!("{{ function: {loss}, weight: 5 }}"), map);
        recipe.training_args.learning_rate = rate;
        let found = values(&run(&recipe).folder, loss);
        assert!(found.len() == 6 && found[5] > 0.0 && found[5] < 0.95 * found[0], "{loss}: {found:?}");
    }
}

#[test]
fn a_student_of_kept_layers_is_compared_with_its_own_layers() {
    // All layers kept: each state equals the teacher's, so every loss begins at 0 by the default map.
    let dir = beginning();
    let losses = ["hs_cosine", "hs_mse", "hs_cka", "hs_relation"];
    let all = losses.map(|loss| format!("{{ function: {loss}, weight: 1 }}")).join(", ");
    let student = Student::Layers("[0, 1, 2, 3]");
    let outcome = run(&plan(dir.path(), "same", student, &live(dir.path()), &all, ""));
    for loss in losses {
        // Equal inputs through equal kernels; a CKA of f32 sums is 1 but for their rounding.
        let first = values(&outcome.folder, loss)[0];
        assert!(first.abs() < 1e-5, "{loss}: {first}");
    }
}

#[test]
fn projections_are_trained_saved_apart_and_resumed_exactly() {
    let dir = beginning();
    let dir = dir.path();
    let losses = "{ function: kl, weight: 1 }, { function: hs_cosine, weight: 1 }, \
                  { function: hs_mse, weight: 1, layer_mapping: [[2, 4], [1, 2]] }";
    let new = |name: &str| plan(dir, name, Student::Random(24, 2), &live(dir), losses, "layer_mapping: uniform,");
    let whole = run(&new("whole"));
    // uniform: [1, 2] and [2, 4], which both losses share.
    let projections = tensors(&whole.folder.join("projections.safetensors"));
    let shapes: Vec<_> = projections.iter().map(|(name, shape, _)| (name.as_str(), shape.as_slice())).collect();
    assert_eq!(shapes, [("projection.1-2.weight", &[32, 24][..]), ("projection.2-4.weight", &[32, 24])]);
    // Xavier's bound, sqrt(6 / 56), plus six steps of at most the learning rate.
    let bound = (6.0f32 / 56.0).sqrt();
    for (name, _, values) in &projections {
        let largest = values.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        assert!(largest > 0.8 * bound && largest <= bound + 6.0 * 2.1e-3, "{name}: {largest}");
    }
    let student = tensors(&whole.folder.join("model.safetensors"));
    assert_eq!(student.len(), 2 + 2 * 9);
    assert!(student.iter().all(|(name, ..)| !name.contains("projection")));

    let broken = new("broken");
    for stop in [2, 4] {
        let stopped = distill(&broken, false, &mut |event| match event {
            Event::Step { report, .. } if report.step == stop => Break(()),
            _ => Continue(()),
        });
        assert!(stopped.is_err());
    }
    let resumed = run(&broken);
    assert_eq!(tensors(&resumed.folder.join("projections.safetensors")), projections);
    assert_eq!(tensors(&resumed.folder.join("model.safetensors")), student);
    for loss in ["kl", "hs_cosine", "hs_mse"] {
        assert_eq!(values(&resumed.folder, loss), values(&whole.folder, loss));
    }
}

#[test]
fn equal_widths_are_projected_only_on_request_and_cka_and_relations_never() {
    let dir = beginning();
    let dir = dir.path();
    let cosine = "{ function: hs_cosine, weight: 1 }, { function: hs_cka, weight: 1, layer_mapping: last }";
    let plain = run(&plan(dir, "plain", Student::Layers("[0, 3]"), &live(dir), cosine, ""));
    assert!(!plain.folder.join("projections.safetensors").exists());
    let more = "force_hidden_state_projection: true,";
    let forced = run(&plan(dir, "forced", Student::Layers("[0, 3]"), &live(dir), cosine, more));
    let names: Vec<String> =
        tensors(&forced.folder.join("projections.safetensors")).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["projection.1-1.weight", "projection.2-4.weight"]);
    let relations = "{ function: hs_relation, weight: 1, layer_mapping: last }";
    let outcome = run(&plan(dir, "relations", Student::Random(24, 2), &live(dir), relations, more));
    assert!(!outcome.folder.join("projections.safetensors").exists());
}

#[test]
fn recomputed_blocks_give_the_same_losses() {
    let dir = beginning();
    let dir = dir.path();
    let losses = "{ function: hs_cosine, weight: 1 }, { function: hs_relation, weight: 1 }";
    let new = |name: &str, recompute: bool| {
        let mut recipe = plan(dir, name, Student::Layers("[0, 3]"), &live(dir), losses, "");
        recipe.training_args.gradient_checkpointing = recompute;
        recipe
    };
    let (kept, recomputed) = (run(&new("kept", false)), run(&new("recomputed", true)));
    for loss in ["hs_cosine", "hs_relation"] {
        assert_eq!(values(&kept.folder, loss), values(&recomputed.folder, loss));
    }
}

#[test]
fn a_student_of_another_family_learns_from_a_llama() {
    let dir = beginning();
    let dir = dir.path();
    // LayerNorm, partial rotary positions, no grouped heads, another width and depth.
    let config = json!({
        "architectures": ["StableLmForCausalLM"], "model_type": "stablelm", "hidden_act": "silu", "bos_token_id": 0,
        "eos_token_id": 0, "vocab_size": 340, "max_position_embeddings": 1024, "hidden_size": 24,
        "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
        "layer_norm_eps": 1e-5, "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "use_qkv_bias": true,
        "initializer_range": 0.05, "tie_word_embeddings": false,
    });
    let losses = "{ function: kl, weight: 1 }, { function: hs_cosine, weight: 1 }, { function: hs_mse, weight: 1 }, \
                  { function: hs_cka, weight: 1 }, { function: hs_relation, weight: 1, layer_mapping: [[2, 3]] }";
    let recipe = plan(dir, "stablelm", Student::Config(config), &live(dir), losses, "layer_mapping: uniform,");
    let outcome = run(&recipe);
    for loss in ["kl", "hs_cosine", "hs_mse"] {
        let found = values(&outcome.folder, loss);
        assert!(found.iter().all(|x| x.is_finite()) && found[5] < found[0], "{loss}: {found:?}");
    }
    let names: Vec<String> =
        tensors(&outcome.folder.join("projections.safetensors")).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["projection.1-1.weight", "projection.2-3.weight", "projection.3-4.weight"]);
}

#[test]
fn every_gpu_computes_the_hidden_losses_of_the_cpu() {
    let dir = beginning();
    let dir = dir.path();
    let names = ["kl", "hs_cosine", "hs_mse", "hs_cka", "hs_relation"];
    let losses = names.map(|loss| format!("{{ function: {loss}, weight: 1 }}")).join(", ");
    let on = |name: &str, device: &str| {
        let more = "layer_mapping: [[1, 2], [2, 4]],";
        let mut recipe = plan(dir, name, Student::Random(24, 2), &live(dir), &losses, more);
        recipe.device = device.to_owned();
        run(&recipe).folder
    };
    let cpu = on("cpu", "cpu");
    for (i, gpu) in gpu_names().into_iter().enumerate() {
        let folder = on(&format!("gpu-{i}"), &format!("gpu:{gpu}"));
        for loss in names {
            let (expected, found) = (values(&cpu, loss), values(&folder, loss));
            // Sums in another order: some hundred roundings at first, which six steps of AdamW may multiply.
            for (step, (e, f)) in expected.iter().zip(&found).enumerate() {
                let allowed = if step == 0 { 1e-4 } else { 1e-2 };
                assert!((e - f).abs() <= allowed * e.abs(), "{loss} at step {step} on {gpu}: {f}, not {e}");
            }
        }
    }
}
