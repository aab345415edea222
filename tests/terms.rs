//! The losses of a recipe in training: all of them, from records and from a live teacher; what changes over the steps.

use crate::common::{novel, recipe, small_config, small_model};
use potstill::device::Device;
use potstill::distill::corpus::{CorpusOptions, read_corpus};
use potstill::distill::metrics::{self, Record as Line};
use potstill::distill::recipe::loss_names;
use potstill::distill::setup::Setup;
use potstill::distill::trainer::StepReport;
use potstill::distill::{CaptureOptions, Event, Recipe, capture, distill};
use potstill::formats::ModelFolder;
use potstill::shards::Record;
use potstill::shards::spec::LogProbType;
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;
use std::sync::Arc;

/// A teacher, text, and records of both kinds.
fn prepare(dir: &Path) {
    small_model(&dir.join("teacher"), 32, 2, 8);
    let text = novel(dir, "text.txt", 30_000..32_000);
    let teacher = ModelFolder::open(dir.join("teacher")).unwrap();
    let corpus = Arc::new(read_corpus(&teacher.tokenizer().unwrap(), &CorpusOptions::new(vec![text])).unwrap());
    let top_k = Record::TopK { k: 16, log_probs: LogProbType::DEFAULT };
    let sampled = Record::Sampled { draws: 50, max_unique: 50, seed: 3 };
    for (name, record, temperatures) in [("top-k", top_k, vec![1.0, 2.0]), ("sampled", sampled, vec![1.0])] {
        let options = CaptureOptions { record, sequence_length: 32, temperatures, ..CaptureOptions::default() };
        let out = dir.join(name);
        capture(&Device::cpu(), &teacher, &corpus, &out, &options, &mut |_| (), &mut |_| Continue(())).unwrap();
    }
}

/// The recipe of `steps` steps with these losses; the teacher is `live` or a record folder.
fn of(dir: &Path, teacher: &str, losses: &str, steps: usize) -> Recipe {
    let kind = if teacher == "teacher" { "live" } else { "shards" };
    recipe(&format!(
        "{{ output_path: unused, device: cpu, sequence_length: 32, seed: 11, \
         model: {{ config: {}, tokenizer: {} }}, teacher: {{ kind: {kind}, path: {} }}, dataset: {{ train: {} }}, \
         loss_functions: [{losses}], training_args: {{ max_steps: {steps}, per_device_train_batch_size: 2, \
         gradient_accumulation_steps: 2, learning_rate: 2e-3, lr_scheduler_type: constant }} }}",
        small_config(32, 2),
        dir.join("teacher").display(),
        dir.join(teacher).display(),
        dir.join("text.txt").display(),
    ))
}

fn train(recipe: &Recipe, steps: usize) -> Vec<StepReport> {
    let mut trainer = pollster::block_on(async { Setup::open(recipe).await?.trainer().await }).unwrap();
    let counts: Vec<_> = (0..steps).map(|_| trainer.advance().unwrap()).collect();
    pollster::block_on(trainer.reports(&counts)).unwrap()
}

const DIVERGENCES: [&str; 11] = [
    "function: kl",
    "function: reverse_kl",
    "function: jeffreys",
    "function: jsd",
    "function: jsd, beta: 0.2, scaled: true",
    "function: skew_kl",
    "function: skew_reverse_kl",
    "function: tvd",
    "function: adaptive_kl",
    "function: alpha_beta",
    "function: taid",
];

#[test]
fn every_loss_teaches_from_every_teacher_that_can_feed_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let of_all = |more: &[&str], handling: &str| {
        let all = DIVERGENCES.iter().map(|loss| format!("{loss}{handling}")).chain(more.iter().map(|m| m.to_string()));
        all.map(|loss| format!("{{ {loss}, weight: 0.1 }}")).collect::<Vec<_>>().join(", ")
    };
    let ranking = ["function: hinge, margin: 0.1", "function: logistic_ranking"];
    let live = of_all(&["function: logit_mse", "function: cross_entropy, label_smoothing: 0.1, z_loss: 1e-4"], "");
    let runs = [
        ("teacher", live),
        ("top-k", of_all(&ranking, "")),
        ("top-k", of_all(&[], ", missing_probability_handling: uniform, temperature: 2")),
        ("top-k", of_all(&[], ", missing_probability_handling: both_renormalised")),
    ];
    for (teacher, losses) in runs {
        let recipe = of(dir, teacher, &losses, 12);
        let reports = train(&recipe, 12);
        let names = loss_names(&recipe.loss_functions);
        assert!(names.contains(&"jsd".to_string()) && names.contains(&"jsd_2".to_string()), "{names:?}");
        let (first, last) = (&reports[0], &reports[11]);
        assert!(first.grad_norm > 0.0 && last.loss < 0.98 * first.loss, "{teacher}: {} {}", first.loss, last.loss);
        for (name, value) in names.iter().zip(&first.losses) {
            assert!(value.is_finite() && *value > 0.0, "{teacher}: {name} is {value}");
        }
        // The default t of TAID rises from 0.4.
        assert_eq!(first.scheduled, [("taid.t".to_string(), 0.4)]);
        assert!((last.scheduled[0].1 - 1.0).abs() < 1e-12);
    }
}

#[test]
fn a_schedule_is_at_each_step_the_number_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    // (scheduled, what it is at the first step)
    let pairs = [
        ("kl, weight: { schedule: linear, from: 0.5, to: 0.1 }", "kl, weight: 0.5"),
        ("kl, weight: 1, temperature: [[0, 2], [2, 1]]", "kl, weight: 1, temperature: 2"),
        ("tvd, weight: 1, temperature: [[0, 2], [2, 1]]", "tvd, weight: 1, temperature: 2"),
        ("jsd, weight: 1, beta: { schedule: cosine, from: 0.25, to: 0.75 }", "jsd, weight: 1, beta: 0.25"),
        ("taid, weight: 1", "taid, weight: 1, t: 0.4"),
        ("alpha_beta, weight: 1, alpha: [[0, 0.5], [1, 0.25]]", "alpha_beta, weight: 1, alpha: 0.5"),
    ];
    for (scheduled, constant) in pairs {
        let named = |loss: &str| format!("{{ function: {loss} }}");
        let found = train(&of(dir, "teacher", &named(scheduled), 3), 3);
        let expected = train(&of(dir, "teacher", &named(constant), 3), 3);
        // The temperature goes another way through f32, a few roundings of logits long.
        let near = |a: f64, b: f64| (a - b).abs() < 2e-5 * b.abs();
        let (one, other) = (&found[0], &expected[0]);
        assert!(near(one.loss, other.loss) && near(one.grad_norm, other.grad_norm), "{scheduled}: {one:?} {other:?}");
        assert!(!near(found[2].loss, expected[2].loss), "{scheduled} did not change");
        assert_eq!((found[0].scheduled.len(), expected[0].scheduled.len()), (1, 0), "{scheduled}");
    }
    let recipe = of(dir, "teacher", "{ function: kl, weight: { schedule: linear, from: 0.5, to: 0.1 } }", 3);
    for (report, weight) in train(&recipe, 3).iter().zip([0.5, 0.3, 0.1]) {
        assert!((report.loss - weight * report.losses[0]).abs() < 1e-12, "{report:?}");
        assert_eq!(report.scheduled[0].0, "kl.weight");
        assert!((report.scheduled[0].1 - weight).abs() < 1e-12);
    }
}

/// A run's loss and t of TAID at each step, and its weights.
fn outcome(dir: &Path) -> (Vec<(f64, f64)>, Vec<u8>) {
    let lines = metrics::read(&dir.join("metrics.jsonl")).unwrap();
    let taid = |line: &Line| match line {
        Line::Train(line) => Some((line.losses["taid"], line.scheduled["taid.t"])),
        Line::Eval(_) => None,
    };
    (lines.iter().filter_map(taid).collect(), std::fs::read(dir.join("model.safetensors")).unwrap())
}

#[test]
fn an_adaptive_taid_follows_its_loss_and_goes_on_from_a_checkpoint() {
    const STEPS: usize = 12;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    // The first step is at the start; the line from .2 to .9 is overtaken at once, and the end reached before the last.
    let (start, end, alpha, beta) = (0.2f64, 0.9f64, 0.75f64, 0.5f64);
    let rule = format!("{{ adaptive: {{ start: {start}, end: {end}, alpha: {alpha}, beta: {beta} }} }}");
    let new = |name: &str, t: &str| {
        let losses = format!("{{ function: taid, weight: 1, t: {t} }}, {{ function: cross_entropy, weight: 0.1 }}");
        let mut recipe = of(dir, "top-k", &losses, STEPS);
        recipe.output_path = dir.join(name);
        recipe.training_args.logging_steps = 1;
        recipe
    };
    let whole = new("whole", &rule);
    distill(&whole, false, &mut |_| Continue(())).unwrap();
    let (found, weights) = outcome(&whole.output_path);
    // The paper's rule in f64, from the losses that were reported.
    let (mut t, mut momentum) = (start, 0.0);
    for (step, &(loss, at)) in found.iter().enumerate() {
        assert!((at - t).abs() < 1e-5, "step {step}: {at} for {t}");
        if step > 0 {
            let before = found[step - 1].0;
            momentum = beta * momentum + (1.0 - beta) * (before - loss) / before;
            t += alpha / (1.0 + f64::exp(-momentum)) * (1.0 - t);
        }
        let line = start + (end - start) * (step + 1) as f64 / (STEPS - 1) as f64;
        t = t.max(line).min(end);
    }
    let risen = |pair: &[(f64, f64)]| pair[1].1 > pair[0].1;
    assert!(found.windows(2).take(4).all(risen) && (found[STEPS - 1].1 - end).abs() < 1e-6, "{found:?}");
    // These are the numbers that the loss is made with: named as a schedule they give the same run.
    let points: Vec<String> = found.iter().enumerate().map(|(step, (_, t))| format!("[{step}, {t}]")).collect();
    let told = new("told", &format!("[{}]", points.join(", ")));
    distill(&told, false, &mut |_| Continue(())).unwrap();
    assert!(outcome(&told.output_path) == (found.clone(), weights.clone()));
    // Stopped in the middle, where no checkpoint is due, and resumed.
    let broken = new("broken", &rule);
    let stopped = distill(&broken, false, &mut |event| match event {
        Event::Step { report, .. } if report.step == 5 => Break(()),
        _ => Continue(()),
    });
    assert!(stopped.is_err());
    distill(&broken, false, &mut |_| Continue(())).unwrap();
    assert!(outcome(&broken.output_path) == (found, weights));
}

#[test]
fn losses_at_two_stored_temperatures_each_get_their_own_records() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let (cold, hot) = ("{ function: kl, weight: 1 }", "{ function: kl, weight: 1, temperature: 2 }");
    let first = |losses: &str| train(&of(dir, "top-k", losses, 1), 1).remove(0).losses;
    let both = first(&format!("{cold}, {hot}"));
    assert_eq!(both, [first(cold), first(hot)].concat());
    assert!(both[0] != both[1]);
}

#[test]
fn random_draws_refuse_what_they_make_infinite_and_warn_of_bias() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let losses = "{ function: reverse_kl, weight: 1 }, { function: kl, weight: 1 }, { function: jeffreys, weight: 1 }";
    let Err(error) = pollster::block_on(Setup::open(&of(dir, "sampled", losses, 1))) else { panic!("opened") };
    let error = error.to_string();
    for part in ["2 problems:", "top-k records for reverse_kl", "top-k records for jeffreys", "capture with `--top-k`"]
    {
        assert!(error.contains(part), "{error}");
    }
    let setup = pollster::block_on(Setup::open(&of(
        dir,
        "sampled",
        "{ function: kl, weight: 1 }, { function: tvd, weight: 1 }",
        1,
    )))
    .unwrap();
    let warnings = setup.warnings.join("\n");
    assert!(warnings.contains("not that of tvd") && !warnings.contains("not that of kl"), "{warnings}");
    let hot = of(dir, "top-k", "{ function: jsd, weight: 1, temperature: 3 }", 1);
    let Err(error) = pollster::block_on(Setup::open(&hot)) else { panic!("opened") };
    assert!(error.to_string().contains("capture again with `--temperatures 1,3`"), "{error}");
}
