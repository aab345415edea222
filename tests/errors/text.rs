//! Datasets.

use super::place::Place;
use std::fs;

#[test]
fn datasets_that_are_empty_missing_or_malformed() {
    let place = Place::new();
    place.write("blank.txt", "  \n\n ");
    place.write("empty.jsonl", "");
    fs::create_dir(place.path("folder")).unwrap();
    let dataset = |train: &str| format!("dataset: {{ train: {train} }}");
    let parts = ["blank.txt: ", "at least one document", "found none", "the dataset is empty"];
    place.distill_fails(&dataset("blank.txt"), &parts);
    place.distill_fails(&dataset("empty.jsonl"), &["empty.jsonl: ", "the dataset is empty"]);
    place.distill_fails(&dataset("folder"), &["folder: ", ".txt or .jsonl file", "found none"]);
    place.distill_fails(&dataset("none.txt"), &["none.txt: expected a .txt", "nothing of this name", "check the path"]);
    place.distill_fails(&dataset("recipe.yaml"), &["recipe.yaml", "the extension \"yaml\"", "rename"]);
    place.fails("capture model blank.txt -o shards --top-k 4", &["the dataset is empty"]);
    place.fails("capture model text.txt -o shards --top-k 4 --limit-tokens 0", &["at least 1", "found 0"]);
    for (row, parts) in [
        ("{\"txt\": \"x\"}", ["rows.jsonl:1: ", "`text`", "found txt"]),
        ("{\"text\": 1}", ["rows.jsonl:1: text", "a string", "found 1"]),
        ("{\"input_ids\": [1, 999]}", ["rows.jsonl:1: token 1", "below 59", "another tokenizer"]),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}", ["rows.jsonl:1", "chat template", "instruct"]),
    ] {
        place.write("rows.jsonl", row);
        place.distill_fails(&dataset("rows.jsonl"), &parts);
    }
    let parts = ["held-out split", "tokens on both sides", "sequences of 4096", "shorter sequences"];
    place.distill_fails("sequence_length: 4096", &parts);
    assert!(!place.path("shards").exists());
}

#[test]
fn a_document_longer_than_the_context_is_split_or_refused_by_choice() {
    let place = Place::new();
    let refuse = "dataset: { train: text.txt, long_documents: refuse }";
    // 20 lines of 47 characters, a token each, and the end-of-text token.
    place.distill_fails(refuse, &["text.txt:1: ", "at most 32 tokens", "found 941 tokens", "be split"]);
    place.recipe("dataset: { train: text.txt }");
    place.succeeds("distill recipe.yaml");
    place.write("long.jsonl", &format!("{{\"input_ids\": [{}]}}", vec!["5"; 300].join(",")));
    let parts = ["long.jsonl:1: ", "at most 256 tokens", "300 tokens", "windows"];
    place.fails("score model long.jsonl --device cpu", &parts);
}

#[test]
fn text_that_the_shards_do_not_hold_is_measured_without_the_teacher() {
    let place = Place::new();
    place.write("other.txt", "The dog looked on the mat, and the cat sat on.\n".repeat(6).as_str());
    place.succeeds("capture model text.txt -o shards --top-k 16 --sequence-length 32 --device cpu");
    let measured = |lines: &str| -> Vec<(bool, bool)> {
        place.recipe(&format!("teacher: {{ kind: shards, path: shards }}\n{lines}"));
        place.succeeds("distill recipe.yaml --overwrite");
        let metrics = fs::read_to_string(place.path("out/metrics.jsonl")).unwrap();
        let lines = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let evals = lines.filter(|line| line["kind"] == "eval");
        evals.map(|line| (line["nll"].is_number(), line["kld"].is_number())).collect()
    };
    assert_eq!(measured("dataset: { train: text.txt, eval: other.txt }"), [(true, false); 2]);
    let warned = place.run("distill recipe.yaml --overwrite");
    assert!(String::from_utf8_lossy(&warned.stderr).contains("the shards hold nothing of `dataset.eval`"));
    assert_eq!(measured("dataset: { train: text.txt, holdout: { fraction: 0.1 } }"), [(true, true); 2]);
}
