//! What is trained of a student: masks, adapters, averages; what that costs; and runs that stop and go on.

use crate::common::{novel, recipe, small_config, small_model};
use potstill::Error;
use potstill::device::{Device, Precision};
use potstill::distill::setup::{Measured, Setup, plan_memory};
use potstill::distill::step::StepSpec;
use potstill::distill::trained::Trained;
use potstill::distill::{Event, Recipe, distill};
use potstill::formats::{Adapter, ModelFolder};
use potstill::graph::Plan;
use potstill::models::{self, Decoder};
use std::collections::BTreeMap;
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;

const PLAIN: &str =
    "{ output_path: out, sequence_length: 24, model: m, dataset: { train: text }, training_args: { max_steps: 1 }";

fn with(extra: &str) -> Recipe {
    recipe(&format!("{PLAIN}, {extra} }}"))
}

/// Two layers; its head is its own unless `tied`.
fn decoder(tied: bool) -> Decoder {
    let mut config = small_config(16, 2);
    config["tie_word_embeddings"] = tied.into();
    models::from_config(Path::new("config.json"), &config).unwrap()
}

fn trains(extra: &str, tied: bool) -> Vec<String> {
    let decoder = decoder(tied);
    let trained = Trained::of(&with(extra), &decoder).unwrap();
    trained.parameters(&decoder).into_iter().map(|p| p.name).collect()
}

#[test]
fn masks_leave_what_they_name() {
    let all = trains("seed: 1", false);
    let left = |keep: &dyn Fn(&str) -> bool| all.iter().filter(|name| keep(name)).cloned().collect::<Vec<_>>();
    let mask = "frozen_modules: [model.layers.0, lm_head]";
    assert_eq!(trains(mask, false), left(&|n| !n.contains("layers.0.") && n != "lm_head.weight"));
    // As Python's re.search: anywhere.
    let mask = r"frozen_res: ['mlp\.(up|down)', '^model\.norm']";
    assert_eq!(
        trains(mask, false),
        left(&|n| !n.contains("mlp.up") && !n.contains("mlp.down") && n != "model.norm.weight")
    );
    // A tied head is the embedding, as in torch.
    let mask = "frozen_modules: [lm_head]";
    assert_eq!(trains(mask, true), left(&|n| !n.contains("embed") && n != "lm_head.weight"));
    let mask = "freeze_embeddings: true, freeze_head: true";
    assert_eq!(trains(mask, false), left(&|n| !n.contains("embed") && n != "lm_head.weight"));
    assert_eq!(trains(mask, true), left(&|n| !n.contains("embed") && n != "lm_head.weight"));
    // As Python's re.match: from the start.
    let mask = "unfrozen_parameters: ['^lm_head.weight$', 'model.layers.1.mlp', 'model.layers.0.self_attn.q_proj']";
    let wanted = |n: &str| n.contains("layers.1.mlp") || n.contains("layers.0.self_attn.q_proj");
    assert_eq!(trains(mask, false), left(&|n| wanted(n) || n == "lm_head.weight"));
    // A tied head is the embedding.
    assert_eq!(trains(mask, true), left(&|n| wanted(n) || n.contains("embed")));
}

#[test]
fn spectrums_file_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snr.yaml");
    let text = "unfrozen_parameters:\n- ^lm_head.weight$\n- ^model.embed_tokens.weight$\n# mlp.down_proj layers\n\
                - model.layers.1.mlp.down_proj\n";
    std::fs::write(&path, text).unwrap();
    let names = trains(&format!("unfrozen_parameters: {}", path.display()), false);
    assert_eq!(names, ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"]);
    // Its embeddings and head can be taken back.
    let extra = format!("unfrozen_parameters: {}, freeze_embeddings: true, freeze_head: true", path.display());
    assert_eq!(trains(&extra, false), ["model.layers.1.mlp.down_proj.weight"]);
    std::fs::write(&path, "unfrozen: [a]\n").unwrap();
    let error = Trained::of(&with(&format!("unfrozen_parameters: {}", path.display())), &decoder(false));
    assert!(error.unwrap_err().to_string().contains("snr.yaml: `unfrozen_parameters`: expected a list of patterns"));
}

#[test]
fn masks_that_cannot_be_meant_are_refused() {
    for (extra, tied, message) in [
        ("frozen_modules: [model.layer.0]", false, "found \"model.layer.0\"; did you mean `model.layers.0`?"),
        ("frozen_modules: [model.layers.0.mlp.up]", false, "expected names of modules"),
        ("frozen_res: [up_porj]", false, "expected a pattern that fits a parameter"),
        ("frozen_res: ['(']", false, "expected a regular expression"),
        ("unfrozen_parameters: [layers]", false, "`unfrozen_parameters`: expected a pattern that fits a parameter"),
        ("unfrozen_parameters: ['model.embed_tokens.weight[:300]']", false, "a range of rows cannot be trained alone"),
        ("freeze_head: true", true, "this model's head is its embedding"),
        ("freeze_embeddings: true", true, "`freeze_head: true` too"),
        ("frozen_modules: [model, lm_head]", false, "every parameter frozen"),
        ("frozen_res: ['.']", false, "every parameter frozen"),
    ] {
        let error = Trained::of(&with(extra), &decoder(tied)).unwrap_err().to_string();
        assert!(error.starts_with("the recipe: ") && error.contains(message), "{extra}: {error}");
    }
    for (extra, message) in [
        (
            "unfrozen_parameters: [a], frozen_res: [b]",
            "`frozen_res`: expected this or `unfrozen_parameters`: found both",
        ),
        ("lora: {}, frozen_res: [b], freeze_head: true", "`lora`: expected no frozen parameters beside adapters"),
        ("lora: { r: 0 }", "`lora.r`: expected at least 1"),
        ("lora: { lora_dropout: 0.1 }", "`lora.lora_dropout`: expected 0"),
        ("lora: { target_modules: 'a.*', layers_to_transform: 1 }", "`lora.layers_to_transform`"),
        ("lora: { rank: 3 }", "`lora.rank`: expected one of the keys r, "),
    ] {
        let error = Recipe::parse(&format!("{PLAIN}, {extra} }}"), Path::new("r.yaml")).unwrap_err().to_string();
        assert!(error.contains(message), "{extra}: {error}");
    }
    for (extra, message) in [
        ("optim: adafactor", "`training_args.optim`: expected one of adamw_torch, adamw_8bit, lion, sgd, "),
        ("optim: sgd, adam_beta1: 0.9", "`training_args.adam_beta1`: expected no such key with `optim: sgd`"),
        ("momentum: 0.9", "`training_args.momentum`: expected no such key with `optim: adamw_torch`"),
        ("ema_decay: 1", "`training_args.ema_decay`: expected a number from 0 to below 1"),
        ("layerwise_lr_decay: 0", "`training_args.layerwise_lr_decay`"),
        ("lr_multipliers: { norm: 0 }", "`training_args.lr_multipliers.norm`: expected a positive number"),
    ] {
        let text = PLAIN.replace("max_steps: 1", &format!("max_steps: 1, {extra}"));
        let error = Recipe::parse(&format!("{text} }}"), Path::new("r.yaml")).unwrap_err().to_string();
        assert!(error.contains(message), "{extra}: {error}");
    }
}

#[test]
fn only_what_is_trained_costs_work_and_memory() {
    let decoder = decoder(false);
    let plan = |trained: &Trained| {
        let spec = StepSpec {
            student: decoder.clone(),
            trained: trained.clone(),
            teachers: Vec::new(),
            shared: false,
            vocabulary: 340,
            batch: 2,
            context: 24,
            recompute: false,
            precision: Precision::F32,
            losses: with("seed: 1").loss_functions,
        };
        let settings = with("seed: 1").training_args.optimiser();
        let memory = plan_memory(&spec, &settings, Device::cpu().caps(), Measured::Nothing).unwrap();
        (Plan::new(&spec.training(Device::cpu().caps()).unwrap()).unwrap(), memory)
    };
    let count = |plan: &Plan, name: &str| plan.to_string().matches(&format!(" {name} ")).count();
    let (whole, all) = plan(&Trained::default());
    assert_eq!(all.optimiser, 12 * decoder.parameter_count() as u64);
    // Only the last block's MLP: nothing is differentiated below it.
    let last = Trained::of(&with("unfrozen_parameters: ['model.layers.1.mlp']"), &decoder).unwrap();
    let (part, memory) = plan(&last);
    assert_eq!(memory.optimiser, 12 * 3 * 16 * 48);
    assert_eq!(memory.parameters, all.parameters);
    assert!(memory.activations < all.activations, "{memory} against {all}");
    assert_eq!([count(&whole, "attention_grad"), count(&part, "attention_grad")], [2, 0]);
    // Seven products a block and the head's forward. Backward, all of it is twice that; the part has the head's dx, of
    // down_proj both, and of gate_proj and up_proj only dW, as no gradient is wanted of what they read.
    assert_eq!([count(&whole, "matmul"), count(&part, "matmul")], [3 * 15, 15 + 1 + 2 + 2]);
    assert!(part.flops() < whole.flops() * 6 / 10, "{} of {}", part.flops(), whole.flops());
    let externals: Vec<&str> = part.externals.iter().map(|(name, _)| name.as_str()).collect();
    let gradients = externals.iter().filter(|name| name.starts_with("grad:")).count();
    assert_eq!(gradients, 3, "{externals:?}");
    // Adapters of rank 2 on the two blocks.
    let lora = Trained::of(&with("lora: { r: 2, target_modules: [q_proj] }"), &decoder).unwrap();
    let (_, memory) = plan(&lora);
    assert_eq!(memory.optimiser, 12 * 2 * 2 * (16 + 16));
    assert_eq!(memory.parameters, all.parameters + 4 * 2 * 2 * (16 + 16));
}

/// A recipe over a tiny model in `dir`; `extra` are keys of the root and of `training_args`.
fn run(dir: &Path, name: &str, [root, args]: [&str; 2]) -> Recipe {
    recipe(&format!(
        "{{ output_path: {}, device: cpu, sequence_length: 32, model: {}, \
         dataset: {{ train: {}, holdout: {{ fraction: 0.2 }} }}, {root} \
         training_args: {{ max_steps: 6, learning_rate: 1e-2, per_device_train_batch_size: 2, save_steps: 2, \
         save_total_limit: 9, {args} }} }}",
        dir.join(name).display(),
        dir.join("base").display(),
        dir.join("text.txt").display(),
    ))
}

fn prepare(dir: &Path) {
    small_model(&dir.join("base"), 16, 2, 1);
    novel(dir, "text.txt", 30_000..36_000);
}

fn weights(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let tensors = ModelFolder::open(folder).unwrap().tensors;
    let names: Vec<String> = tensors.names().map(str::to_owned).collect();
    names.into_iter().map(|name| (name.clone(), tensors.read_f32(&name).unwrap())).collect()
}

#[test]
fn runs_that_stop_and_go_on_end_bit_for_bit_where_unbroken_ones_end() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let cases = [
        ["", "optim: adamw_8bit"],
        ["", "optim: lion, weight_decay: 0.1"],
        ["", "optim: sgd, momentum: 0.9"],
        ["", "optim: sgd"],
        ["", "ema_decay: 0.5, layerwise_lr_decay: 0.7, lr_multipliers: { norm: 2 }"],
        ["frozen_res: [mlp, embed],", "optim: adamw_8bit, ema_decay: 0.5"],
        ["lora: { r: 2, use_dora: true },", "optim: adamw_8bit, ema_decay: 0.5"],
        ["lora: { r: 2, use_rslora: true, modules_to_save: [model.norm] },", "weight_decay: 0.1"],
    ];
    for (i, keys) in cases.into_iter().enumerate() {
        let (whole, broken) = (run(dir, &format!("whole{i}"), keys), run(dir, &format!("broken{i}"), keys));
        let unbroken = distill(&whole, false, &mut |_| Continue(())).unwrap();
        // Stopped after the third step, where no checkpoint is due.
        let stopped = distill(&broken, false, &mut |event| match event {
            Event::Step { report, .. } if report.step == 4 => Break(()),
            _ => Continue(()),
        });
        assert!(matches!(stopped, Err(Error::Cancelled)), "{keys:?}");
        let resumed = distill(&broken, false, &mut |_| Continue(())).unwrap();
        assert_eq!(resumed.after, unbroken.after, "{keys:?}");
        let files = |recipe: &Recipe| {
            let file = |name: &str| std::fs::read(recipe.output_path.join(name)).unwrap();
            let adapter = recipe.lora.is_some().then(|| file("adapter/adapter_model.safetensors"));
            (file("model.safetensors"), file("samples-after.json"), adapter)
        };
        assert!(files(&whole) == files(&broken), "{keys:?}: the resumed run's files differ");
        // Trained indeed, and again from the end: nothing is left to do.
        assert!(unbroken.after.unwrap().nll < unbroken.before.unwrap().nll, "{keys:?}: {unbroken:?}");
        let before = files(&broken);
        distill(&broken, false, &mut |_| Continue(())).unwrap();
        assert!(files(&broken) == before, "{keys:?}: finishing twice changes the student");
    }
}

#[test]
fn frozen_parameters_keep_their_bits() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let recipe = run(dir.path(), "out", ["frozen_res: ['layers.0', embed],", ""]);
    distill(&recipe, false, &mut |_| Continue(())).unwrap();
    let (before, after) = (weights(&dir.path().join("base")), weights(&recipe.output_path));
    for (name, values) in &before {
        let frozen = name.contains("layers.0") || name.contains("embed");
        assert_eq!(*values == after[name], frozen, "{name}");
    }
}

#[test]
fn the_average_is_measured_and_saved() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let recipe = run(dir.path(), "out", ["", "optim: sgd, ema_decay: 0.5"]);
    let outcome = distill(&recipe, false, &mut |_| Continue(())).unwrap();
    let saved = weights(&recipe.output_path);
    // The last checkpoint holds both the weights and their average.
    let checkpoint = potstill::distill::checkpoint::latest(&recipe.output_path.join("checkpoints")).unwrap().unwrap();
    for (name, values) in &saved {
        assert_eq!(&checkpoint.read(&format!("ema:{name}")).unwrap(), values, "{name}");
        assert_ne!(&checkpoint.read(name).unwrap(), values, "{name}");
    }
    // A run without training steps left measures the same folder the same.
    let again = run(dir.path(), "again", ["", "optim: sgd"]);
    let again = Recipe {
        model: potstill::distill::recipe::Student::Pretrained(recipe.output_path.display().to_string()),
        ..again
    };
    let mut first = None;
    let _ = distill(&again, false, &mut |event| match event {
        Event::Evaluated { step: 0, evaluation } => {
            first = Some(*evaluation);
            Break(())
        }
        _ => Continue(()),
    });
    assert_eq!(first.map(|e| e.nll), outcome.after.map(|e| e.nll));
}

#[test]
fn an_adapter_is_saved_with_the_merged_student_or_alone() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let lora = "lora: { r: 2, lora_alpha: 4, target_modules: [q_proj, down_proj], use_dora: true },";
    let recipe = run(dir.path(), "out", [lora, ""]);
    distill(&recipe, false, &mut |_| Continue(())).unwrap();
    let adapter = Adapter::open(&recipe.output_path.join("adapter")).unwrap();
    assert_eq!(adapter.config.base_model_name_or_path, Some(dir.path().join("base").display().to_string()));
    assert_eq!((adapter.config.r, adapter.config.lora_alpha, adapter.config.use_dora), (2, 4.0, true));
    let (base, merged) = (weights(&dir.path().join("base")), weights(&recipe.output_path));
    for (name, values) in &base {
        let adapted = name.contains("q_proj") || name.contains("down_proj");
        assert_eq!(*values != merged[name], adapted, "{name}");
    }
    // Merged when it is loaded, it gives the merged student, number for number.
    let again =
        format!("{{ path: {}, adapter: {}/adapter }}", dir.path().join("base").display(), recipe.output_path.display());
    let loaded = crate::common::recipe(&format!(
        "{{ output_path: {}, device: cpu, sequence_length: 32, model: {again}, dataset: {{ train: {} }}, \
         training_args: {{ max_steps: 1 }} }}",
        dir.path().join("unused").display(),
        dir.path().join("text.txt").display()
    ));
    let trainer = pollster::block_on(async { Setup::open(&loaded).await?.trainer().await }).unwrap();
    for (name, values) in &merged {
        assert_eq!(&pollster::block_on(trainer.store.read_f32(name)).unwrap(), values, "{name}");
    }
    let alone = run(dir.path(), "alone", [&lora.replace("r: 2", "save_merged: false, r: 2"), ""]);
    distill(&alone, false, &mut |_| Continue(())).unwrap();
    assert!(!alone.output_path.join("model.safetensors").exists());
    let file = |recipe: &Recipe| std::fs::read(recipe.output_path.join("adapter/adapter_model.safetensors")).unwrap();
    assert!(file(&alone) == file(&recipe));
}

#[test]
fn another_list_of_unfrozen_parameters_is_another_run() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let list = dir.path().join("snr.yaml");
    let recipe = run(dir.path(), "out", [&format!("unfrozen_parameters: {},", list.display()), ""]);
    std::fs::write(&list, "unfrozen_parameters: [model.layers.1]\n").unwrap();
    let _ = distill(&recipe, false, &mut |event| match event {
        Event::Step { report, .. } if report.step == 2 => Break(()),
        _ => Continue(()),
    });
    std::fs::write(&list, "unfrozen_parameters: [model.layers.0]\n").unwrap();
    let error = distill(&recipe, false, &mut |_| Continue(())).unwrap_err().to_string();
    assert!(error.contains("SHA-256 of the unfrozen_parameters"), "{error}");
}
