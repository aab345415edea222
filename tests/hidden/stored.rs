//! Recorded hidden states in the place of a live teacher.

use super::{Student, beginning, live, plan, record, run, states, tensors, values};
use potstill::Error;
use potstill::shards::{Reader, Records, StateType};
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_stopped_capture_of_states_ends_as_an_unbroken_one() {
    let dir = beginning();
    let dir = dir.path();
    let manifest = record(dir, "whole", states(&[3, 1], StateType::F16), &mut |_| Continue(())).unwrap();
    // The final state is added, and all are in order.
    let expected = states(&[1, 3, 4], StateType::F16);
    let potstill::shards::Record::Hidden { layers, .. } = &expected else { panic!() };
    let potstill::shards::Record::Hidden { layers: found, hidden_size, .. } = &manifest.spec.record else { panic!() };
    assert_eq!((found, *hidden_size), (layers, 32));
    assert!(manifest.shards.len() > 2 && manifest.version == 2);
    for stop in [100, 300, 450] {
        let stopped = record(dir, "broken", states(&[1, 3], StateType::F16), &mut |progress| {
            if progress.rows >= stop { Break(()) } else { Continue(()) }
        });
        assert!(matches!(stopped, Err(Error::Cancelled)), "{stopped:?}");
    }
    record(dir, "broken", states(&[1, 3], StateType::F16), &mut |_| Continue(())).unwrap();
    assert_eq!(files(&dir.join("broken")), files(&dir.join("whole")));
    let reader = Reader::open(&dir.join("whole")).unwrap();
    reader.verify().unwrap();
    reader.alignment().unwrap();
}

#[test]
fn both_types_hold_the_same_states_to_their_precision() {
    let dir = beginning();
    let dir = dir.path();
    let read = |kind: StateType| {
        let name = kind.name();
        record(dir, name, states(&[0, 2], kind), &mut |_| Continue(())).unwrap();
        let rows = Reader::open(&dir.join(name)).unwrap().read_rows(0, 400).unwrap();
        let Records::Hidden { states } = rows.records else { panic!() };
        states
    };
    let (half, brain) = (read(StateType::F16), read(StateType::Bf16));
    assert_eq!(half.len(), 400 * 3 * 32);
    for (a, b) in half.iter().zip(&brain) {
        // Half a unit in the last of 8 and of 11 bits; below f16's smallest normal number its steps are 2^-24.
        assert!((a - b).abs() <= a.abs() * (0.5f32.powi(8) + 0.5f32.powi(11)) * 1.01 + 1e-7, "{a} {b}");
    }
    // Final states are normed: the root of the mean square of each is 1, as the norm's weights are.
    for state in half.chunks(32).skip(2).step_by(3) {
        let mean = state.iter().map(|x| x * x).sum::<f32>() / 32.0;
        assert!((mean - 1.0).abs() < 5e-3, "{mean}");
    }
}

/// Length of the difference of two lists of tensors.
fn distance(a: &[(String, Vec<usize>, Vec<f32>)], b: &[(String, Vec<usize>, Vec<f32>)]) -> f64 {
    let squares = a.iter().zip(b).flat_map(|(a, b)| a.2.iter().zip(&b.2)).map(|(a, b)| f64::from(a - b).powi(2));
    squares.sum::<f64>().sqrt()
}

#[test]
fn stored_states_teach_what_the_live_teacher_teaches_up_to_their_rounding() {
    let dir = beginning();
    let dir = dir.path();
    record(dir, "states", states(&[2], StateType::F16), &mut |_| Continue(())).unwrap();
    let losses = "{ function: kl, weight: 1, temperature: 2 }, { function: hs_cosine, weight: 1 }, \
                  { function: hs_mse, weight: 1 }, { function: hs_cka, weight: 1 }";
    let stored =
        format!("{{ kind: shards, path: {}, head: {} }}", dir.join("states").display(), dir.join("teacher").display());
    let new = |name: &str, teacher: &str| {
        let mut recipe = plan(dir, name, Student::Random(32, 2), teacher, losses, "layer_mapping: [[1, 2], [2, 4]],");
        // AdamW with such an epsilon is gradient descent: weights follow gradients continuously.
        recipe.training_args.adam_epsilon = 1.0;
        recipe.training_args.max_grad_norm = 0.0;
        recipe.training_args.learning_rate = 0.2;
        recipe
    };
    let (a, b) = (run(&new("live", &live(dir))), run(&new("stored", &stored)));
    // Each number of a state is off by at most e = 2^-11 of itself, so t by at most e |t|. 1 - cos moves by at most the
    // angle, e. The mean square of h - t, m, moves by at most 2 sqrt(m) e |t|/sqrt(d) + (..)^2. Logits move by at most
    // e |w||t|, here 0.05 sqrt(32) sqrt(32) e = 8e-4; T^2 KL(T = 2) by T times that times the mean of |log p/q|, which
    // is below 1; CKA by at most 4 e.
    let e = 0.5f64.powi(11);
    for (loss, bound) in [("hs_cosine", e), ("hs_mse", 4.0 * e), ("kl", 2.0 * 1.6 * e), ("hs_cka", 4.0 * e)] {
        let (live, stored) = (values(&a.folder, loss), values(&b.folder, loss));
        assert!((live[0] - stored[0]).abs() <= bound && live[0] > 20.0 * bound, "{loss}: {live:?} {stored:?}");
    }
    // Gradients: that of 1 - cos is (t/|t| - cos h/|h|)/|h|, off by e against a length of sin, near 1 here; that of the
    // KL is q - p, off by 2 * 8e-4 p. All in all below one hundredth of the way that the weights have gone.
    let weights = |folder: &Path| tensors(&folder.join("model.safetensors"));
    let start = {
        let mut recipe = new("start", &stored);
        recipe.training_args.learning_rate = 1e-30;
        weights(&run(&recipe).folder)
    };
    let (live, stored) = (weights(&a.folder), weights(&b.folder));
    let (way, off) = (distance(&live, &start), distance(&live, &stored));
    assert!(way > 0.01 && off > 0.0 && off < 0.01 * way, "{off} of {way}");
    // The measurement is of whole distributions as well.
    let [live, stored] = [a, b].map(|outcome| outcome.after.unwrap());
    assert!((live.kld.unwrap() - stored.kld.unwrap()).abs() < 0.01 * live.kld.unwrap(), "{live:?} {stored:?}");
    assert!((live.top1_agreement.unwrap() - stored.top1_agreement.unwrap()).abs() < 0.02);
}

#[test]
fn without_a_head_states_serve_the_losses_on_states() {
    let dir = beginning();
    let dir = dir.path();
    record(dir, "states", states(&[], StateType::Bf16), &mut |_| Continue(())).unwrap();
    let stored = format!("{{ kind: shards, path: {} }}", dir.join("states").display());
    let losses = "{ function: cross_entropy, weight: 1 }, { function: hs_cosine, weight: 1, layer_mapping: last }";
    let outcome = run(&plan(dir, "student", Student::Random(32, 2), &stored, losses, ""));
    let found = values(&outcome.folder, "hs_cosine");
    assert!(found[5] < found[0], "{found:?}");
    assert!(outcome.after.unwrap().kld.is_none());
}
