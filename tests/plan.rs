//! The plan of a training step as text, compared with the one that is kept beside the tests: a change of the ops, of
//! their order or of the memory's layout shows in the diff. `POTSTILL_UPDATE=1` writes it anew.

use crate::common::golden;
use potstill::device::{Caps, Precision};
use potstill::distill::recipe::LossFunction;
use potstill::distill::step::StepSpec;
use potstill::distill::trained::Trained;
use potstill::formats::read_json;
use potstill::graph::Plan;
use potstill::models;

/// The training graph of `tests/golden/gqa_untied` for one sequence of `context` tokens.
fn plan(context: usize, recompute: bool) -> Plan {
    let config = read_json(&golden("gqa_untied/config.json")).unwrap();
    let student = models::from_config(&golden("gqa_untied"), &config).unwrap();
    let vocabulary = student.config.vocab_size;
    let losses = vec![LossFunction::cross_entropy(1.0)];
    let (trained, teachers, shared, precision) = (Trained::default(), Vec::new(), false, Precision::F32);
    let spec =
        StepSpec { student, trained, teachers, shared, vocabulary, batch: 1, context, recompute, precision, losses };
    Plan::new(&spec.training(&Caps::webgpu()).unwrap()).unwrap()
}

#[test]
fn the_plan_of_a_training_step_is_the_one_on_record() {
    let (found, path) = (plan(8, false).to_string(), golden("plan.txt"));
    if std::env::var_os("POTSTILL_UPDATE").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    let differs = expected.lines().zip(found.lines()).find(|(e, f)| e != f);
    assert!(
        differs.is_none(),
        "the record and the plan first differ in\n{differs:?}\nPOTSTILL_UPDATE=1 records it anew"
    );
    assert_eq!(expected.lines().count(), found.lines().count(), "POTSTILL_UPDATE=1 records it anew");
}

#[test]
fn a_step_stays_within_its_memory_and_recomputing_needs_less() {
    let (kept, recomputed) = (plan(64, false), plan(64, true));
    // What was needed when this was written, rounded up: less is welcome.
    assert!(kept.own_bytes() <= 540_000 && recomputed.own_bytes() <= 250_000, "{kept}\n{recomputed}");
    // The one chunk of logits; above all no [T x T] scores, which would be three times as large.
    assert_eq!(kept.largest_tensor().unwrap().0, 64 * 131 * 4);
    let work = recomputed.flops() as f64 / kept.flops() as f64;
    assert!((1.05..1.35).contains(&work), "{work} times the work");
}
