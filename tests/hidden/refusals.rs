//! What cannot be is refused before any work, every problem at once.

use super::{Student, beginning, live, plan, record, states};
use potstill::distill::{Recipe, distill};
use potstill::shards::{LogProbType, Record, StateType};
use std::ops::ControlFlow::Continue;
use std::path::Path;

/// Nothing has been read, run or written when it is said.
fn refused(recipe: &Recipe, words: &[&str]) {
    let mut heard = 0;
    let error = distill(recipe, false, &mut |_| {
        heard += 1;
        Continue(())
    });
    let text = error.unwrap_err().to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text:?} lacks one of {words:?}");
    assert_eq!(heard, 0);
    assert!(!recipe.output_path.join("metrics.jsonl").exists());
}

fn shards(path: &Path, head: Option<&Path>) -> String {
    let head = head.map_or(String::new(), |head| format!(", head: {}", head.display()));
    format!("{{ kind: shards, path: {}{head} }}", path.display())
}

#[test]
fn losses_that_the_records_cannot_feed_are_refused() {
    let dir = beginning();
    let dir = dir.path();
    let top_k = Record::TopK { k: 8, log_probs: LogProbType::DEFAULT };
    record(dir, "top-k", top_k, &mut |_| Continue(())).unwrap();
    record(dir, "states", states(&[1], StateType::F16), &mut |_| Continue(())).unwrap();
    let (top_k, kept) = (dir.join("top-k"), dir.join("states"));
    let new = |teacher: &str, losses: &str, more: &str| {
        plan(dir, "student", Student::Layers("[0, 2, 3]"), teacher, losses, more)
    };
    let cosine = "{ function: hs_cosine, weight: 1 }";
    refused(&new(&shards(&top_k, None), cosine, ""), &["top-k", "hs_cosine", "top-k rows", "--kind hidden", "live"]);
    // The kept layers 0, 2 and the last want states 1, 3 and 4.
    refused(&new(&shards(&kept, None), cosine, ""), &["no state 3 of the teacher", "--kind hidden --layers 3"]);
    let relation = "{ function: hs_relation, weight: 1, layer_mapping: last }";
    refused(&new(&shards(&kept, None), relation, ""), &["hs_relation", "live teacher"]);
    let kl = "{ function: kl, weight: 1 }";
    refused(&new(&shards(&kept, None), kl, ""), &["teacher.head", "for kl", "captured teacher, teacher"]);
    refused(&new(&shards(&top_k, Some(&dir.join("teacher"))), kl, ""), &["teacher.head", "top-k rows", "remove"]);
    super::small_model(&dir.join("other"), 32, 4, 10);
    refused(&new(&shards(&kept, Some(&dir.join("other"))), kl, ""), &["teacher.head", "digest", "another one's head"]);
}

#[test]
fn every_problem_of_an_impossible_map_is_named() {
    let dir = beginning();
    let dir = dir.path();
    let new = |student, losses: &str, more: &str| plan(dir, "student", student, &live(dir), losses, more);
    let cosine = "{ function: hs_cosine, weight: 1 }";
    let two =
        format!("{cosine}, {{ function: hs_relation, weight: 1, relation_heads: 5, layer_mapping: [[0, 1], [1, 1]] }}");
    let more = "layer_mapping: [[3, 1], [1, 5], [1, 1], [1, 1]],";
    let problems = [
        "hs_cosine: [3, 1]: the student has states 0 to 2",
        "hs_cosine: [1, 5]: the teacher has states 0 to 4",
        "hs_cosine: [1, 1] a second time",
        "hs_relation: [0, 1]: state 0 is the embeddings",
    ];
    refused(&new(Student::Layers("[0, 3]"), &two, more), &problems);
    let heads = "{ function: hs_relation, weight: 1, relation_heads: 5, layer_mapping: last }";
    refused(&new(Student::Layers("[0, 3]"), heads, ""), &["`relation_heads` 5 does not divide", "[32, 16, 32, 16]"]);
    refused(&new(Student::Random(24, 2), cosine, ""), &["hs_cosine: no `layer_mapping`", "`last`", "`uniform`"]);
    refused(&new(Student::Random(24, 6), cosine, "layer_mapping: all,"), &["[5, 5]: the teacher has states 0 to 4"]);
}

#[test]
fn layers_that_the_teacher_lacks_are_not_captured() {
    let dir = beginning();
    let error = record(dir.path(), "states", states(&[2, 5, 9], StateType::F16), &mut |_| Continue(())).unwrap_err();
    let text = error.to_string();
    assert!(["`layers`", "to 4", "5, 9"].iter().all(|word| text.contains(word)), "{text}");
    assert!(!dir.path().join("states").exists());
}
