//! Recipes of DistillKit's as this crate reads them.

use super::translate;
use crate::distill::Recipe;
use crate::yaml::read_yaml;
use serde_json::{Value, json};
use std::path::Path;

const FILE: &str = "theirs.yaml";

/// The README's online example, with everything that says how it is run.
const ONLINE: &str = "
project_name: llama-distill
model: student/
teacher: { kind: hf, path: teacher/, kwargs: { torch_dtype: bfloat16, attn_implementation: flash_attention_2 } }
dataset:
  train_dataset: { disk_path: text.jsonl }
  eval_dataset: { disk_path: held.jsonl }
  seed: 7
  prepared_dataset_path: prepared/
sequence_length: 4096
output_path: out/
use_flash_attention: true
functionary_packing: true
loss_functions:
  - { function: cross_entropy, weight: 1.0 }
  - { function: kl, weight: 3.0, temperature: 2.0, missing_probability_handling: symmetric_uniform, sparse_chunk_length: 1024 }
training_args:
  num_train_epochs: 1
  per_device_train_batch_size: 1
  gradient_accumulation_steps: 8
  learning_rate: 2.0e-6
  lr_scheduler_type: cosine
  warmup_ratio: 0.025
  warmup_steps: 0
  weight_decay: 0.01
  optim: paged_adamw_32bit
  eval_strategy: steps
  eval_steps: 50
  logging_steps: 1
  bf16: true
  save_total_limit: 3
  report_to: wandb
  remove_unused_columns: false
  ddp_find_unused_parameters: false
";

fn translated(text: &str) -> Value {
    let file = Path::new(FILE);
    translate(&read_yaml(text, file).unwrap(), file).unwrap()
}

#[test]
fn an_online_recipe_is_followed_key_by_key() {
    let recipe = Recipe::parse(ONLINE, Path::new(FILE)).unwrap().to_json();
    let expected = json!({
        "project_name": "llama-distill", "output_path": "out/", "seed": 7, "sequence_length": 4096, "model": "student/",
        "teacher": {"kind": "live", "path": "teacher/"},
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&recipe[key], value, "{key}");
    }
    assert_eq!(
        (&recipe["dataset"]["train"], &recipe["dataset"]["eval"]),
        (&json!(["text.jsonl"]), &json!(["held.jsonl"]))
    );
    assert_eq!(recipe["dataset"]["train_on_inputs"], true);
    let losses = &recipe["loss_functions"];
    assert_eq!((&losses[0]["weight"], &losses[1]["weight"]), (&json!(0.25), &json!(0.75)));
    assert_eq!(losses[1]["missing_probability_handling"], "symmetric_uniform");
    let args = json!({
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "learning_rate": 2e-6,
        "lr_scheduler_type": "cosine", "warmup_ratio": 0.025, "weight_decay": 0.01, "num_train_epochs": 1.0,
        "eval_steps": 50, "logging_steps": 1, "save_total_limit": 3, "gradient_checkpointing": true,
        "save_dtype": "bfloat16",
    });
    for (key, value) in args.as_object().unwrap() {
        assert_eq!(&recipe["training_args"][key], value, "{key}");
    }
}

#[test]
fn what_a_recipe_leaves_out_is_what_distillkit_and_trl_would_take() {
    let text = "{ model: m, output_path: o, sequence_length: 64, use_flash_attention: false, \
                teacher: { kind: hf, path: t }, dataset: { train_dataset: { disk_path: a.jsonl } } }";
    let recipe = translated(text);
    let kl = json!({
        "function": "kl", "weight": 0.5, "temperature": 1.0, "missing_probability_handling": "zero",
    });
    assert_eq!(recipe["loss_functions"], json!([{"function": "cross_entropy", "weight": 0.5}, kl]));
    let args = json!({
        "learning_rate": 2e-5, "num_train_epochs": 3, "gradient_checkpointing": true, "save_dtype": "float32",
    });
    assert_eq!((&recipe["training_args"], &recipe["seed"]), (&args, &json!(42)));
}

#[test]
fn losses_maps_and_masks_keep_their_names() {
    let text = "{ model: m, output_path: o, sequence_length: 64, teacher: { kind: hf, path: t }, \
                dataset: { train_dataset: { disk_path: a.jsonl } }, layer_mapping: [[1, 2], [3, 6]], \
                force_hidden_state_projection: true, frozen_modules: [model.embed_tokens], frozen_res: [norm], \
                loss_functions: [{ function: hs_cosine, weight: 2 }, { function: hinge, weight: 1, margin: 0.1 }, \
                { function: jsd, weight: 1, temperature: 1 }, { function: tvd, weight: 0, temperature: 1 }], \
                training_args: { max_steps: 5, optim: paged_adamw_8bit, assistant_only_loss: true, max_length: 32 } }";
    let recipe = translated(text);
    assert_eq!(recipe["layer_mapping"], json!([[1, 2], [3, 6]]));
    assert_eq!(recipe["force_hidden_state_projection"], true);
    assert_eq!((&recipe["frozen_modules"], &recipe["frozen_res"]), (&json!(["model.embed_tokens"]), &json!(["norm"])));
    let losses = json!([
        {"function": "hs_cosine", "weight": 0.5},
        {"function": "hinge", "weight": 0.25, "margin": 0.1},
        {"function": "jsd", "weight": 0.25, "temperature": 1, "missing_probability_handling": "zero"},
    ]);
    assert_eq!(recipe["loss_functions"], losses);
    assert_eq!(
        (&recipe["training_args"]["optim"], &recipe["training_args"]["max_steps"]),
        (&json!("adamw_8bit"), &json!(5))
    );
    assert_eq!((&recipe["dataset"]["train_on_inputs"], &recipe["sequence_length"]), (&json!(false), &json!(32)));
}

#[test]
fn recorded_teachers_are_shard_sets() {
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("train");
    std::fs::create_dir_all(&set).unwrap();
    let text = format!(
        "{{ model: m, output_path: o, sequence_length: 64, dataset: {{ train_dataset: {{ disk_path: {}, split: train }}, \
         prepacked: true }}, teacher: {{ kind: dataset, legacy_logit_compression: {{ k: 32, exact_k: 32, \
         polynomial_degree: 0, vocab_size: 129280 }} }}, training_args: {{ max_steps: 1 }} }}",
        dir.path().display()
    );
    let file = Path::new(FILE);
    let error = Recipe::parse(&text, file).unwrap_err().to_string();
    let hint = format!("potstill convert {} SHARDS --tokenizer MODEL --config theirs.yaml", set.display());
    assert!(error.contains("dataset.train_dataset") && error.contains(&hint), "{error}");
    for name in ["manifest.json", "tokens.jsonl"] {
        std::fs::write(set.join(name), "").unwrap();
    }
    let recipe = Recipe::parse(&text, file).unwrap().to_json();
    assert_eq!(recipe["teacher"], json!({"kind": "shards", "path": set}));
    assert_eq!(recipe["dataset"]["train"], json!([set.join("tokens.jsonl")]));
    // The codec is read strictly.
    let error = Recipe::parse(&text.replace("exact_k", "exact"), file).unwrap_err().to_string();
    assert!(error.contains("teacher.legacy_logit_compression.exact"), "{error}");
}

#[test]
fn every_key_that_cannot_be_followed_is_named_at_once() {
    let text = "{ model: m, output_path: o, sequence_length: 64, resize_embeddings_to_multiple_of: 64, temprature: 1, \
                model_auto_class: AutoModelForImageTextToText, model_kwargs: { quantization_config: {} }, \
                teacher: { kind: hf, top_k: 64, path: t, kwargs: { load_in_4bit: true } }, \
                dataset: { train_dataset: { repo_id: a/b }, num_samples: 9, eos_label_token_ids: [1] }, \
                loss_functions: [{ function: kl, weight: 1, temprature: 2 }], \
                training_args: { optim: adafactor, eval_strategy: epoch, neftune_noise_alpha: 5, made_up: 1, \
                label_smoothing_factor: 0.0 } }";
    let error = Recipe::parse(text, Path::new(FILE)).unwrap_err().to_string();
    let keys = [
        "resize_embeddings_to_multiple_of",
        "temprature",
        "model_auto_class",
        "model_kwargs.quantization_config",
        "teacher.top_k",
        "teacher.kwargs.load_in_4bit",
        "dataset.train_dataset",
        "dataset.num_samples",
        "dataset.eos_label_token_ids",
        "loss_functions[0].temprature`: unknown; did you mean `temperature`",
        "loss_functions[0].temperature",
        "training_args.optim",
        "training_args.eval_strategy",
        "training_args.neftune_noise_alpha",
        "training_args.made_up",
    ];
    for key in keys {
        assert!(error.contains(&format!("`{key}")), "{key}: {error}");
    }
    assert!(!error.contains("label_smoothing_factor"), "{error}");
    let server = "{ model: m, output_path: o, sequence_length: 64, teacher: { kind: vllm, base_url: u }, \
                  dataset: { train_dataset: { disk_path: a.jsonl } } }";
    assert!(Recipe::parse(server, Path::new(FILE)).unwrap_err().to_string().contains("--endpoint"));
}
