//! Recipes, arguments and devices, and training that runs away.

use super::place::Place;

#[test]
fn recipe_keys_and_values_that_are_unknown() {
    let place = Place::new();
    place.distill_fails("sede: 3", &["recipe.yaml: `sede`: ", "an unknown key", "did you mean `seed`?"]);
    place.distill_fails(
        "training_args: { max_steps: 4, learning_rte: 0.1 }",
        &["`training_args.learning_rte`", "did you mean `learning_rate`?"],
    );
    place.distill_fails("seed: many", &["recipe.yaml: `seed`: expected a whole number", "the text \"many\""]);
    place.distill_fails("training_args: { max_steps: 4, learning_rate: .nan }", &["recipe.yaml", ".nan", "line"]);
    place.distill_fails("seed: 1\nseed: 2", &["recipe.yaml", "duplicate mapping key: seed"]);
    place.distill_fails("sequence_length: 100000000000000000", &["`sequence_length`", "1 to 16777216"]);
    let many = "training_args: { max_steps: 1, per_device_train_batch_size: 100000000000 }";
    place.distill_fails(many, &["`training_args.per_device_train_batch_size`", "16777216 tokens", "100000000000"]);
    place.distill_fails("model: { layers_of: model, layers: [0, 7] }", &["`model.layers`", "0 to 2", "[0, 7]"]);
    place.fails("distill nowhere.yaml", &["cannot read nowhere.yaml", "check the path"]);
    place.fails("distill model", &["cannot read model", "name a file"]);
    let line = place.fails("distill text.txt", &["text.txt: expected a mapping", "the text \"The cat"]);
    assert!(line.len() < 200, "{line}");
}

#[test]
fn everything_wrong_in_training_args_is_said_at_once() {
    let place = Place::new();
    let listed = |values: &str, expected: &[&str]| {
        place.recipe(&format!("seed: many\ntraining_args: {{ {values} }}"));
        let output = place.run("distill recipe.yaml");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        let (_, list) = text.split_once("error: ").unwrap();
        let lines: Vec<&str> = list.trim_end().lines().collect();
        // With the seed, which stands outside.
        assert_eq!(lines[0], format!("{} problems:", expected.len() + 1), "{text}");
        for (number, part) in expected.iter().enumerate() {
            let start = format!("  {}. recipe.yaml: `training_args.", number + 2);
            let line = lines[number + 2];
            assert!(line.starts_with(&start) && line.contains(part), "{part}: {line}");
        }
    };
    listed(
        "max_steps: many, learning_rate: \"1e-3\", adam_beta1: x, momentum: 0.5, save_dtype: float8, \
         lr_multipliers: { norm: fast, mlp: 2, embed: slow }, warmup_steps: 1, warmup_ratio: half",
        &[
            "adam_beta1`: expected a number",
            "momentum`: expected no such key with `optim: adamw_torch`",
            "lr_multipliers.norm`: expected a number",
            "lr_multipliers.embed`: expected a number",
            "learning_rate`: expected a number: found the text \"1e-3\"; write it without quotes",
            "warmup_ratio`: expected this or `warmup_steps`: found both",
            "warmup_ratio`: expected a number",
            "max_steps`: expected a whole number",
            "save_dtype`: expected one of float32",
        ],
    );
    // An unknown optimiser says nothing about the constants beside it.
    listed("optim: adagrad, momentum: 0.5", &["optim`: expected one of", "max_steps`: expected this or"]);
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint() {
    let place = Place::new();
    // The rate rises from 0 to a third of 3e30 at step 2: the update after it leaves nothing finite.
    let args = |rest: &str| format!("training_args: {{ max_steps: 9, logging_steps: 1, max_grad_norm: 0, {rest} }}");
    let hot = args("save_steps: 1, learning_rate: 3e30, warmup_steps: 3");
    place.recipe(&hot);
    let parts = ["not finite at step 3", "`learning_rate`", "start anew", "last good checkpoint is", "checkpoint-2"];
    place.fails("distill recipe.yaml", &parts);
    let files = place.files("out");
    assert!(files.contains(&"checkpoint-2".into()) && !files.contains(&"model.safetensors".into()), "{files:?}");
    // Whole: the run goes on from it and meets the same end.
    place.fails("distill recipe.yaml", &parts);
    // Without a checkpoint nothing is in the way of another attempt.
    place.recipe(&format!("output_path: fresh\n{}", args("save_steps: 8, learning_rate: 3e30")));
    place.fails("distill recipe.yaml", &["not finite at step 2", "no checkpoint had been saved"]);
    place.recipe("output_path: fresh");
    place.succeeds("distill recipe.yaml");
}

#[test]
fn devices_that_are_not_there() {
    let place = Place::new();
    place.recipe("");
    let parts = ["device: expected a GPU matching `nonexistent`", "found ", "`cpu`"];
    place.fails("distill recipe.yaml --device gpu:nonexistent", &parts);
    place.fails("capture model text.txt -o shards --device gpu:nonexistent", &parts);
    place.fails("generate model --prompt x --device gpu:nonexistent", &parts);
    place.distill_fails("device: nonexistent", &["recipe.yaml: `device`", "gpu:PART", "found nonexistent"]);
    assert!(!place.path("shards").exists() && !place.path("out/metrics.jsonl").exists());
}

#[test]
fn numbers_on_the_command_line_that_make_no_sense() {
    let place = Place::new();
    let capture = |rest: &str| format!("capture model text.txt -o shards --device cpu {rest}");
    place.fails(&capture(""), &["`record.k`", "1 to 59", "found 64"]);
    place.fails(&capture("--top-k 4 --batch-size 0"), &["`batch_size`", "at least 1", "found 0"]);
    place.fails(&capture("--top-k 4 --sequence-length 0"), &["`sequence_length`", "found 0"]);
    place.fails(&capture("--top-k 4 --sequence-length 100000000000"), &["`sequence_length`", "16777216"]);
    place.fails(&capture("--top-k 4 --temperatures 2"), &["`temperatures`", "1 first", "[2.0]"]);
    place.fails(&capture("--kind sampled --temperatures 1,2"), &["`temperatures`", "the one temperature"]);
    assert!(!place.path("shards").exists());
    let generate = |rest: &str| format!("generate model --prompt x --device cpu {rest}");
    place.fails(&generate("--max-tokens 0"), &["`max_tokens`", "at least 1"]);
    place.fails(&generate("--max-tokens 18446744073709551615"), &["`max_tokens`", "at most 16777216"]);
    place.fails(&generate("--temperature nan"), &["`temperature`", "NaN"]);
    place.fails(&generate("--temperature 1 --top-p 0"), &["`top_p`", "above 0"]);
    place.fails("generate model --chat x --device cpu", &["model: expected a chat template", "--prompt"]);
    for (line, parts) in [
        ("{\"text\": \"\"}", ["line.jsonl:1: ", "at least one token", "leave out"]),
        ("{\"input_ids\": [5000]}", ["line.jsonl:1: ", "below 59", "found 5000"]),
        ("{\"input_ids\": [-1]}", ["line.jsonl:1: `input_ids`", "a list of token ids", "whole numbers"]),
        ("{\"txt\": \"x\"}", ["line.jsonl:1: ", "`text` (a string)", "name the field"]),
        ("text", ["line.jsonl:1: ", "a JSON object", "one object a line"]),
    ] {
        place.write("line.jsonl", line);
        place.fails("score model line.jsonl --device cpu", &parts);
    }
    place.fails("quickstart --tokens 0", &["--tokens", "at least 512", "found 0"]);
}
