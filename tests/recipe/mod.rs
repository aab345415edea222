//! Recipes: what is read, what is refused and how, and what is warned of.

mod refused;

use std::path::{Path, PathBuf};

use potstill::data::documents::Split;
use potstill::data::split::Holdout;
use potstill::device::Precision;
use potstill::distill::layer_map::LayerMapping;
use potstill::distill::recipe::*;
use potstill::models::FrozenWeights;

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
  bf16: true
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
            source: TeacherSource::Live { path: "teachers/smol".into(), weights: FrozenWeights::Stored },
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
            precision: Precision::Bf16,
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
  - { function: taid, weight: 1, t: { adaptive: { start: 0.2, beta: 0.9 } } }
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
    assert_eq!(of(11), (Divergence::Taid { t: Share::Scheduled(rising) }, MissingProbability::Ghost));
    let following = Adaptive { start: 0.2, end: 1.0, alpha: 5e-4, beta: 0.9 };
    assert_eq!(of(14), (Divergence::Taid { t: Share::Adaptive(following) }, MissingProbability::Ghost));
    assert_eq!(record_temperatures(&recipe.loss_functions), [1.0, 2.0]);
    assert_eq!(parse(&recipe.to_yaml().unwrap()).unwrap(), recipe);
    assert_eq!(recipe.canonical()["loss_functions[1].weight.schedule"], "\"cosine\"");
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
