//! Recipes that are refused, and the whole of what is said.

use super::{FULL, LEAST, parse};

/// (what is replaced in FULL, by what, the whole message)
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "route_field: subject",
        "route_field: tools",
        "`dataset.route_field`: expected a field beside the document: found tools; name the field that says which \
         teacher a document is for",
    ),
    (
        "temperature: 2",
        "temprature: 2",
        "`loss_functions[0].temprature`: expected one of the keys function, weight, label_smoothing, z_loss, \
         temperature, missing_probability_handling, beta, scaled, alpha, mu, t, margin, layer_mapping, relation_heads: found an unknown key; did you \
         mean `temperature`?",
    ),
    (
        "seed: 7",
        "sed: 7",
        "`sed`: expected one of the keys project_name, output_path, seed, device, sequence_length, model, teacher, \
         dataset, loss_functions, layer_mapping, force_hidden_state_projection, frozen_modules, frozen_res, \
         unfrozen_parameters, freeze_embeddings, freeze_head, lora, training_args: found an unknown key; did you mean \
         `seed`?",
    ),
    (
        "seed: 7",
        "functionary_packing: true",
        "`functionary_packing`: expected one of the keys project_name, output_path, seed, device, sequence_length, \
         model, teacher, dataset, loss_functions, layer_mapping, force_hidden_state_projection, frozen_modules, \
         frozen_res, unfrozen_parameters, freeze_embeddings, freeze_head, lora, training_args: found an unknown key; \
         DistillKit reads this key, potstill does not: remove it",
    ),
    (
        "layer_mapping: [[1, 2], [-1, -1]]",
        "layer_mapping: every",
        "`layer_mapping`: expected one of all, last, uniform: found the text \"every\"",
    ),
    (
        "layer_mapping: [[1, 2], [-1, -1]]",
        "layer_mapping: [[1, 2], [3]]",
        "`layer_mapping[1]`: expected two whole numbers, [student's state, teacher's state]: found [3]",
    ),
    ("relation_heads: 6", "relation_heads: 0", "`loss_functions[3].relation_heads`: expected at least 1: found 0"),
    (
        "function: hs_cosine",
        "relation_heads: 2, function: hs_cosine",
        "`loss_functions[2].relation_heads`: expected no such key for hs_cosine: found one; remove the key",
    ),
    (
        "learning_rate: 5e-4",
        "learning_rate: \"5e-4\"",
        "`training_args.learning_rate`: expected a number: found the text \"5e-4\"; write it without quotes",
    ),
    ("learning_rate: 5e-4", "learning_rate: 0", "`training_args.learning_rate`: expected a positive number: found 0"),
    (
        "eval_steps: 20",
        "eval_steps: 2.5",
        "`training_args.eval_steps`: expected a whole number, 0 or more: found the number 2.5",
    ),
    ("seed: 7", "seed: -1", "`seed`: expected a whole number, 0 or more: found the number -1"),
    ("shuffle: false", "shuffle: no", "`dataset.shuffle`: expected true or false: found the text \"no\""),
    (
        "function: kl",
        "function: revers_kl",
        "`loss_functions[0].function`: expected one of cross_entropy, kl, reverse_kl, jeffreys, jsd, skew_kl, \
         skew_reverse_kl, tvd, adaptive_kl, alpha_beta, taid, logit_mse, hinge, logistic_ranking, hs_mse, hs_cosine, hs_cka, hs_relation: found \"revers_kl\"; \
         did you mean `reverse_kl`?",
    ),
    (
        "function: cross_entropy",
        "function: cross_entropy, temperature: 2",
        "`loss_functions[1].temperature`: expected no such key for cross_entropy: found one; cross_entropy is \
         always at temperature 1: remove the key",
    ),
    (
        "function: kl",
        "function: kl, mu: 0.5",
        "`loss_functions[0].mu`: expected no such key for kl: found one; remove the key",
    ),
    (
        "function: kl, weight: 0.9",
        "function: jsd, beta: 0, weight: 0.9",
        "`loss_functions[0].beta`: expected a number between 0 and 1: found 0; beta 0 is nothing without a scale: use \
         `kl` for it and `reverse_kl` for 1, or add `scaled: true`",
    ),
    (
        "weight: 0.9",
        "weight: { schedule: linear, from: 1, too: 0 }",
        "`loss_functions[0].weight.too`: expected one of the keys schedule, from, to, steps: found an unknown key; did \
         you mean `to`?",
    ),
    (
        "function: kl",
        "function: taid, t: { adaptive: { speed: 2 } }",
        "`loss_functions[0].t.adaptive.speed`: expected one of the keys start, end, alpha, beta: found an unknown key; \
         remove it",
    ),
    (
        "function: kl",
        "function: taid, t: { adaptive: { start: 0.8, end: 0.5 } }",
        "`loss_functions[0].t.adaptive.end`: expected a number from `start` to 1: found 0.5",
    ),
    (
        "weight: 0.9",
        "weight: [[5, 1], [5, 0]]",
        "`loss_functions[0].weight`: expected steps that rise: found [[5,1],[5,0]]",
    ),
    (
        "weight: 0.9",
        "weight: much",
        "`loss_functions[0].weight`: expected a number, {schedule, from, to, steps} or [[step, value], ...]: found the \
         text \"much\"",
    ),
    (
        "missing_probability_handling: zero",
        "missing_probability_handling: uniforme",
        "`loss_functions[0].missing_probability_handling`: expected one of symmetric_uniform, ghost, zero, uniform, \
         both_renormalised: found the text \"uniforme\"; did you mean `uniform`?",
    ),
    (
        "lr_scheduler_type: cosine",
        "lr_scheduler_type: cosin",
        "`training_args.lr_scheduler_type`: expected one of constant, linear, cosine, constant_with_warmup: found \
         the text \"cosin\"; did you mean `cosine`?",
    ),
    (
        "warmup_ratio: 0.1",
        "warmup_ratio: 0.1\n  warmup_steps: 3",
        "`training_args.warmup_ratio`: expected this or `warmup_steps`: found both; remove one",
    ),
    (
        "num_train_epochs: 1.5",
        "num_train_epochs: null",
        "`training_args.max_steps`: expected this or `num_train_epochs`: found neither; say how long to train by one \
         of them",
    ),
    (
        "kind: hf",
        "kind: dataset",
        "`teacher.kind`: expected shards or live: found the text \"dataset\"; record a teacher with `potstill \
         capture` and name the shards here",
    ),
    (
        "weight: 0.9",
        "weight: -0.9",
        "`loss_functions[0].weight`: expected a positive number: found -0.9; remove the loss to leave it out",
    ),
    (
        "{ documents: 0.05 }",
        "{ documents: 1 }",
        "`dataset.holdout.documents`: expected a number between 0 and 1: found 1; 0.05 is usual",
    ),
    (
        "{ documents: 0.05 }",
        "{ fraction: 0.05, sequences: 3 }",
        "`dataset.holdout`: expected exactly one of fraction, sequences, documents: found several",
    ),
    (
        "layers: [0, 1, 14, 29]",
        "layers: [0, 1, 1]",
        "`model.layers`: expected layer numbers, each larger: found [0, 1, 1]; list them in ascending order, none \
         twice",
    ),
    (
        "layers: [0, 1, 14, 29]",
        "layers: [0, one]",
        "`model.layers[1]`: expected a whole number, 0 or more: found the text \"one\"",
    ),
    ("output_path: out/cat", "", "`output_path`: expected the folder to write to: found nothing; add `output_path`"),
    (
        "train: [text/a.txt, text/b]",
        "train: []",
        "`dataset.train`: expected a list of at least one item: found a list of 0",
    ),
    ("save_total_limit: 3", "save_total_limit: 0", "`training_args.save_total_limit`: expected at least 1: found 0"),
];

#[test]
fn every_loss_without_its_teacher_is_named() {
    let text = FULL.replacen("teacher: { kind: hf, path: teachers/smol, route: [chemistry, physics] }", "", 1);
    let text = text.replacen("route_field: subject", "", 1);
    let problem = |number: usize, loss: usize, name: &str| {
        format!(
            "\n  {number}. r.yaml: `loss_functions[{loss}].function`: expected a `teacher` for {name}: found none; add a \
             teacher, or train on text with cross_entropy alone"
        )
    };
    let problems = [problem(1, 0, "kl"), problem(2, 2, "hs_cosine"), problem(3, 3, "hs_relation")].concat();
    assert_eq!(parse(&text).unwrap_err().to_string(), format!("3 problems:{problems}"));
}

#[test]
fn what_is_wrong_is_refused_by_name() {
    for (old, new, message) in REFUSED {
        assert!(FULL.contains(old), "{old}");
        let error = parse(&FULL.replacen(old, new, 1)).expect_err(message).to_string();
        assert_eq!(error, format!("r.yaml: {message}"));
    }
}

#[test]
fn every_problem_is_named_at_once() {
    let losses = "loss_functions:\n  - { function: reverse_kl, weight: 1, missing_probability_handling: zero }\n  \
                  - { function: logit_mse, weight: 0 }\n  \
                  - { function: kl, weight: 1, temperature: [[0, 2], [9, 1]] }\n";
    let shards = "teacher: { kind: shards, path: s }\n";
    let error = parse(&format!("{LEAST}{shards}{losses}device: tpu\n")).unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines[0], "5 problems:", "{error}");
    let expected = [
        "  1. r.yaml: `device`: expected auto, cpu, gpu or gpu:PART-OF-ITS-NAME: found tpu",
        "  2. r.yaml: `loss_functions[0].missing_probability_handling`: expected another than zero for reverse_kl: found \
         zero; the student's probability of a token that has none would cost infinitely much: use symmetric_uniform",
        "  3. r.yaml: `loss_functions[1].weight`: expected a positive number: found 0; remove the loss to leave it out",
        "  4. r.yaml: `loss_functions[1].function`: expected a live teacher for logit_mse: found shards, which hold no \
         logits; use `teacher: { kind: live, ... }`, or another loss: kl",
        "  5. r.yaml: `loss_functions[2].temperature`: expected one number for a teacher of shards: found 2 at 0, 1 at 9; \
         records hold the temperatures they were captured with and no other",
    ];
    for (line, expected) in lines[1..].iter().zip(expected) {
        assert_eq!(*line, expected);
    }
    // So are values of a wrong type, each of its own part, and every unknown key.
    let wrong = LEAST.replace("sequence_length: 64", "sequence_length: long, seed: -1").replace(", seed", "\nseed");
    let error = parse(&wrong.replace("max_steps: 10", "max_stepz: 10, epocs: 1")).unwrap_err().to_string();
    for part in ["4 problems:", "`seed`", "`sequence_length`", "`training_args.max_stepz`", "`training_args.epocs`"] {
        assert!(error.contains(part), "{error}");
    }
    // Without a holdout neither key has a meaning.
    let error = parse(&FULL.replacen("holdout: { documents: 0.05 }", "", 1)).unwrap_err().to_string();
    assert!(error.starts_with("2 problems:") && error.contains("`training_args.eval_samples`"), "{error}");
    let ranked = "loss_functions: [{ function: hinge, margin: 0.1, weight: 1 }]\n";
    let error = parse(&format!("{LEAST}teacher: {{ kind: live, path: t }}\n{ranked}")).unwrap_err().to_string();
    assert!(error.contains("recorded tokens to rank for hinge: found a live teacher"), "{error}");
}

#[test]
fn what_is_no_yaml_is_refused_with_its_line() {
    for (text, line) in [("a: 1\nb: [1,\n", ""), ("seed: 1\nseed: 2\n", "line 2")] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.starts_with("r.yaml: expected YAML") && error.contains(line), "{error}");
    }
    let error = parse("").unwrap_err().to_string();
    assert_eq!(error, "r.yaml: expected a mapping: found nothing");
}
