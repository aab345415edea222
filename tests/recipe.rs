//! Recipes: what is read, what is refused and how, and what is warned of.

use std::path::{Path, PathBuf};

use potstill::data::documents::Split;
use potstill::data::split::Holdout;
use potstill::distill::layer_map::LayerMapping;
use potstill::distill::recipe::*;

const FULL: &str = r#"
project_name: ship's cat
output_path: out/cat
seed: 7
device: gpu:llvmpipe
sequence_length: 256
model: { layers_of: teachers/smol, layers: [0, 1, 14, 29] }
teacher: { kind: hf, path: teachers/smol, route: [chemistry, physics] }
dataset:
  train: [text/a.txt, text/b]
  split: { marker: "\n***\n" }
  holdout: { documents: 0.05 }
  train_on_inputs: true
  append_eos: false
  shuffle: false
  route_field: subject
  long_documents: refuse
loss_functions:
  - { function: kl, weight: 0.9, temperature: 2, missing_probability_handling: zero }
  - { function: cross_entropy, weight: 1e-1 }
  - { function: hs_cosine, weight: 2 }
  - { function: hs_relation, weight: 1, layer_mapping: last, relation_heads: 6 }
layer_mapping: [[1, 2], [-1, -1]]
force_hidden_state_projection: true
frozen_modules: [model.norm]
frozen_res: [mlp]
freeze_embeddings: true
freeze_head: true
training_args:
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 2
  learning_rate: 5e-4
  lr_scheduler_type: cosine
  warmup_ratio: 0.1
  min_lr_ratio: 0.05
  weight_decay: 0.01
  adam_beta1: 0.8
  adam_beta2: 0.95
  adam_epsilon: 1e-6
  optim: adamw_8bit
  layerwise_lr_decay: 0.9
  lr_multipliers: { norm: 0.5, 'layers\.\d': 2 }
  ema_decay: 0.999
  max_grad_norm: 0.5
  num_train_epochs: 1.5
  eval_steps: 20
  eval_samples: 24
  logging_steps: 5
  save_steps: 50
  save_total_limit: 3
  gradient_checkpointing: true
  save_dtype: bfloat16
"#;

const LEAST: &str = "output_path: out\nsequence_length: 64\nmodel: student\ndataset: { train: a.txt }\n\
                     training_args: { max_steps: 10 }\n";

fn parse(text: &str) -> potstill::Result<Recipe> {
    Recipe::parse(text, Path::new("r.yaml"))
}

fn hidden(
    weight: f64,
    kind: HiddenKind,
    layer_mapping: Option<LayerMapping>,
    relation_heads: Option<usize>,
) -> LossFunction {
    let function = Function::Hidden(Hidden { kind, layer_mapping, relation_heads });
    LossFunction { weight: weight.into(), function }
}

fn full() -> Recipe {
    Recipe {
        project_name: Some("ship's cat".into()),
        output_path: "out/cat".into(),
        seed: 7,
        device: "gpu:llvmpipe".into(),
        sequence_length: 256,
        model: Student::Layers { layers_of: "teachers/smol".into(), layers: vec![0, 1, 14, 29] },
        teachers: vec![Teacher {
            source: TeacherSource::Live { path: "teachers/smol".into() },
            weight: 1.0,
            routes: vec!["chemistry".into(), "physics".into()],
        }],
        dataset: Dataset {
            train: vec!["text/a.txt".into(), "text/b".into()],
            eval: vec![],
            split: Split::Marker("\n***\n".into()),
            holdout: Holdout::Documents { fraction: 0.05, seed: 7 },
            train_on_inputs: true,
            append_eos: false,
            shuffle: false,
            route_field: Some("subject".into()),
            long_documents: LongDocuments::Refuse,
        },
        loss_functions: vec![
            LossFunction {
                weight: 0.9.into(),
                function: Function::Divergence {
                    divergence: Divergence::Kl,
                    temperature: 2.0.into(),
                    missing: MissingProbability::Zero,
                },
            },
            LossFunction::cross_entropy(0.1),
            hidden(2.0, HiddenKind::Cosine, None, None),
            hidden(1.0, HiddenKind::Relation, Some(LayerMapping::Last), Some(6)),
        ],
        layer_mapping: Some(LayerMapping::Pairs(vec![[1, 2], [-1, -1]])),
        force_hidden_state_projection: true,
        masks: Masks {
            frozen_modules: vec!["model.norm".into()],
            frozen_res: vec!["mlp".into()],
            unfrozen_parameters: None,
            freeze_embeddings: true,
            freeze_head: true,
        },
        lora: None,
        training_args: TrainingArgs {
            per_device_train_batch_size: 4,
            gradient_accumulation_steps: 2,
            learning_rate: 5e-4,
            lr_scheduler_type: SchedulerType::Cosine,
            warmup: Warmup::Ratio(0.1),
            min_lr_ratio: 0.05,
            weight_decay: 0.01,
            adam_beta1: 0.8,
            adam_beta2: 0.95,
            adam_epsilon: 1e-6,
            optim: Optim::AdamW8Bit,
            momentum: 0.0,
            layerwise_lr_decay: 0.9,
            lr_multipliers: vec![("norm".into(), 0.5), (r"layers\.\d".into(), 2.0)],
            ema_decay: 0.999,
            max_grad_norm: 0.5,
            length: Length::Epochs(1.5),
            eval_steps: Some(20),
            eval_samples: Some(24),
            logging_steps: 5,
            save_steps: 50,
            save_total_limit: 3,
            gradient_checkpointing: true,
            save_dtype: SaveDtype::Bfloat16,
        },
    }
}

#[test]
fn every_key_is_read() {
    assert_eq!(parse(FULL).unwrap(), full());
}

#[test]
fn what_is_left_out_has_its_documented_default() {
    let recipe = parse(LEAST).unwrap();
    assert_eq!((recipe.seed, recipe.device.as_str(), recipe.teachers), (42, "auto", Vec::new()));
    assert_eq!(recipe.model, Student::Pretrained("student".into()));
    assert_eq!(recipe.dataset.train, [PathBuf::from("a.txt")]);
    assert_eq!((recipe.dataset.split, recipe.dataset.holdout), (Split::File, Holdout::Nothing));
    assert_eq!(recipe.loss_functions, [LossFunction::cross_entropy(1.0)]);
    let args = &recipe.training_args;
    assert_eq!((args.per_device_train_batch_size, args.gradient_accumulation_steps), (8, 1));
    assert_eq!((args.learning_rate, args.max_grad_norm, args.warmup), (5e-5, 1.0, Warmup::Steps(0)));
    assert_eq!((args.length, args.save_dtype), (Length::Steps(10), SaveDtype::Float32));

    let taught = parse(&format!("{LEAST}teacher: {{ kind: shards, path: s }}\n")).unwrap();
    assert_eq!(taught.loss_functions, [LossFunction::kl(1.0), LossFunction::cross_entropy(0.1)]);
}

#[test]
fn students_are_folders_configurations_or_layers() {
    let student = |model: &str| parse(&LEAST.replace("model: student", &format!("model: {model}")));
    let random = |config, init_seed, tokenizer: Option<&str>| Student::Random {
        config,
        init_seed,
        tokenizer: tokenizer.map(String::from),
    };
    let by_path = random(Config::Path("c/config.json".into()), 42, None);
    assert_eq!(student("{ config: c/config.json }").unwrap().model, by_path);
    let Student::Random { config: Config::Inline(map), init_seed: 3, tokenizer: Some(from) } =
        student("{ config: { hidden_size: 64, rope_theta: 1e4, tie: true }, init_seed: 3, tokenizer: t }")
            .unwrap()
            .model
    else {
        panic!("an inline configuration")
    };
    assert_eq!(serde_json::Value::Object(map).to_string(), r#"{"hidden_size":64,"rope_theta":10000.0,"tie":true}"#);
    assert_eq!(from, "t");
    let error = student("{ config: { hidden_size: 64 } }").unwrap_err().to_string();
    assert_eq!(
        error,
        "r.yaml: `model.tokenizer`: expected a model whose tokenizer to use: found nothing; name the teacher's \
         folder or hub id here"
    );
}

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
fn every_loss_is_read_and_written() {
    let losses = "
  - { function: cross_entropy, weight: 0.1, label_smoothing: 0.1, z_loss: 1e-4 }
  - { function: kl, weight: { schedule: cosine, from: 1, to: 0, steps: 50 }, missing_probability_handling: ghost }
  - { function: kl, weight: { schedule: constant, from: 0.5 }, temperature: 2 }
  - { function: reverse_kl, weight: [[0, 1], [10, 0.5]], missing_probability_handling: uniform }
  - { function: jeffreys, weight: 1, missing_probability_handling: both_renormalised }
  - { function: jsd, weight: 1, beta: { schedule: linear, from: 0, to: 1 }, scaled: true }
  - { function: skew_kl, weight: 1 }
  - { function: skew_reverse_kl, weight: 1, alpha: 0.2 }
  - { function: tvd, weight: 1, missing_probability_handling: zero }
  - { function: adaptive_kl, weight: 1, mu: 0.4 }
  - { function: alpha_beta, weight: 1 }
  - { function: taid, weight: 1 }
  - { function: hinge, weight: 1, margin: 0.05 }
  - { function: logistic_ranking, weight: 1 }
";
    let recipe = parse(&format!("{LEAST}teacher: {{ kind: shards, path: s }}\nloss_functions:{losses}")).unwrap();
    let names = loss_names(&recipe.loss_functions);
    assert_eq!(&names[..3], ["cross_entropy", "kl", "kl_2"]);
    assert_eq!(recipe.loss_functions[2].weight, Scheduled::Constant(0.5));
    let of = |i: usize| match &recipe.loss_functions[i].function {
        Function::Divergence { divergence, missing, .. } => (divergence.clone(), *missing),
        other => panic!("{other:?}"),
    };
    assert_eq!(of(1), (Divergence::Kl, MissingProbability::Ghost));
    assert_eq!(of(3), (Divergence::ReverseKl, MissingProbability::Uniform));
    assert_eq!(of(6), (Divergence::SkewKl { alpha: 0.1.into() }, MissingProbability::Ghost));
    assert_eq!(of(10), (Divergence::AlphaBeta { alpha: 0.2.into(), beta: 0.7.into() }, MissingProbability::Ghost));
    let rising = Scheduled::Ramp { shape: Ramp::Linear, from: 0.4, to: 1.0, steps: None };
    assert_eq!(of(11), (Divergence::Taid { t: rising }, MissingProbability::Ghost));
    assert_eq!(record_temperatures(&recipe.loss_functions), [1.0, 2.0]);
    assert_eq!(parse(&recipe.to_yaml().unwrap()).unwrap(), recipe);
    assert_eq!(recipe.canonical()["loss_functions[1].weight.schedule"], "\"cosine\"");
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

#[test]
fn a_recipe_written_out_reads_as_itself() {
    for recipe in [full(), parse(LEAST).unwrap(), parse(&format!("{LEAST}project_name: 'no'\n")).unwrap()] {
        assert_eq!(parse(&recipe.to_yaml().unwrap()).unwrap(), recipe);
        assert_eq!(parse(&recipe.to_json().to_string()).unwrap(), recipe);
    }
}

#[test]
fn the_canonical_form_has_what_a_resumed_run_may_not_change() {
    let canonical = full().canonical();
    assert_eq!(canonical["training_args.learning_rate"], "0.0005");
    assert_eq!(canonical["loss_functions[0].temperature"], "2.0");
    assert_eq!(canonical["model.layers"], "[0,1,14,29]");
    let free = Recipe { device: "cpu".into(), output_path: "elsewhere".into(), project_name: None, ..full() };
    assert_eq!(free.canonical(), canonical);
    let mut other = full();
    other.training_args.adam_beta2 = 0.950_000_000_000_000_1;
    assert_ne!(other.canonical(), canonical);
}

#[test]
fn steps_and_warm_up_follow_from_epochs() {
    // 1.5 epochs of 7 micro-batches are 11, in steps of 2 micro-batches 6, of which ceil(0.1 * 6) = 1 warms up.
    let args = full().training_args;
    assert_eq!(args.total_steps(7), 6);
    assert_eq!(args.schedule(6).warmup_steps, 1);
}

#[test]
fn recipes_known_to_teach_badly_are_warned_of() {
    let with = |losses: &str| {
        let text = format!("{LEAST}teacher: {{ kind: shards, path: s }}\nloss_functions: {losses}\n");
        parse(&text.replace("a.txt", "a.txt, holdout: { sequences: 4 }")).unwrap()
    };
    let ghost = with("[{ function: kl, weight: 1 }]");
    assert!(ghost.warnings(Some(0.16), &[])[0].contains("16% of the probability"));
    assert!(ghost.warnings(Some(0.05), &[]).is_empty() && ghost.warnings(None, &[]).is_empty());
    let mixed = with("[{ function: kl, weight: 0.9 }, { function: cross_entropy, weight: 0.1 }]");
    assert!(mixed.warnings(Some(0.16), &[]).is_empty());
    let zero = with("[{ function: kl, weight: 1, missing_probability_handling: zero }]");
    assert!(zero.warnings(Some(0.01), &[])[0].contains("over-confident"));
    let hot = with("[{ function: kl, weight: 1, temperature: 2 }]");
    assert!(hot.warnings(Some(0.01), &[1.0])[0].contains("log-partition at temperature 2"));
    assert!(hot.warnings(Some(0.01), &[1.0, 2.0]).is_empty() && hot.warnings(None, &[]).is_empty());
    assert!(parse(LEAST).unwrap().warnings(None, &[])[0].contains("nothing is held out"));
}

#[test]
fn the_commented_example_is_a_recipe_without_warnings() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/recipe.yaml");
    let recipe = Recipe::load(path).unwrap();
    // A tail mass as in the quickstart.
    assert_eq!(recipe.warnings(Some(0.11), &[1.0]), Vec::<String>::new());
}
