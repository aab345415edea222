//! Several teachers: weighted, or for documents of a field's values; live, recorded, on hidden states. What they teach
//! together is the weighted sum of what each teaches alone.

use crate::common::{gpu_names, novel, recipe, small_config, small_model};
use potstill::device::Device;
use potstill::distill::corpus::{CorpusOptions, read_corpus};
use potstill::distill::metrics::{self, Evaluation, Record as Line};
use potstill::distill::recipe::Teacher;
use potstill::distill::setup::Setup;
use potstill::distill::teaching::Shares;
use potstill::distill::trainer::StepReport;
use potstill::distill::{CaptureOptions, Recipe, capture, distill};
use potstill::formats::ModelFolder;
use potstill::shards::Record;
use potstill::shards::spec::LogProbType;
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;
use std::sync::Arc;

/// Two teachers of different widths and depths with one tokenizer, and a text of which documents are for `a`, `b`, or
/// no one.
fn prepare(dir: &Path) {
    small_model(&dir.join("a"), 32, 2, 8);
    small_model(&dir.join("b"), 48, 3, 9);
    let text = std::fs::read_to_string(novel(dir, "text.txt", 30_000..33_000)).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = |(i, words): (usize, &[&str])| {
        let text = serde_json::to_string(&words.join(" ")).unwrap();
        match i % 3 {
            0 => format!("{{\"text\": {text}, \"for\": \"a\"}}\n"),
            1 => format!("{{\"text\": {text}, \"for\": \"b\"}}\n"),
            _ => format!("{{\"text\": {text}}}\n"),
        }
    };
    let lines: String = words.chunks(40).enumerate().map(line).collect();
    std::fs::write(dir.join("text.jsonl"), lines).unwrap();
}

/// Top-k records of `dir/name` in `dir/name-shards`.
fn record(dir: &Path, name: &str) {
    let teacher = ModelFolder::open(dir.join(name)).unwrap();
    let options = CorpusOptions { route_field: Some("for".into()), ..CorpusOptions::new(vec![dir.join("text.jsonl")]) };
    let corpus = Arc::new(read_corpus(&teacher.tokenizer().unwrap(), &options).unwrap());
    let record = Record::TopK { k: 16, log_probs: LogProbType::DEFAULT };
    let options = CaptureOptions { record, sequence_length: 32, ..CaptureOptions::default() };
    let out = dir.join(format!("{name}-shards"));
    capture(&Device::cpu(), &teacher, &corpus, &out, &options, &mut |_| (), &mut |_| Continue(())).unwrap();
}

fn open(recipe: &Recipe) -> potstill::Result<Setup> {
    pollster::block_on(Setup::open(recipe))
}

/// A recipe as these tests vary it.
struct Plan<'a> {
    /// As they stand in YAML, but for the paths' folder, which is `DIR`.
    teachers: &'a str,
    losses: &'a str,
    /// Further keys of `dataset`.
    dataset: &'a str,
    device: &'a str,
    output: &'a str,
    /// Plain gradient descent of rate 1: what parameters lose is their gradient.
    steps: usize,
}

const PLAIN: Plan<'static> = Plan {
    teachers: "",
    losses: "{ function: kl, weight: 1 }",
    dataset: "",
    device: "cpu",
    output: "unused",
    steps: 1,
};

impl Plan<'_> {
    fn text(&self, dir: &Path) -> String {
        let folder = dir.display().to_string();
        format!(
            "{{ output_path: {folder}/{}, device: '{}', sequence_length: 32, seed: 11, \
             model: {{ config: {}, tokenizer: {folder}/a }}, teacher: {}, \
             dataset: {{ train: {folder}/text.jsonl, {} holdout: {{ fraction: 0.2 }} }}, \
             loss_functions: [{}], training_args: {{ max_steps: {}, per_device_train_batch_size: 2, \
             gradient_accumulation_steps: 2, learning_rate: 1, lr_scheduler_type: constant, optim: sgd, \
             max_grad_norm: 0, logging_steps: 1 }} }}",
            self.output,
            self.device,
            small_config(32, 2),
            self.teachers.replace("DIR", &folder),
            self.dataset,
            self.losses,
            self.steps,
        )
    }

    fn recipe(&self, dir: &Path) -> Recipe {
        recipe(&self.text(dir))
    }

    fn first(&self, dir: &Path) -> First {
        let mut trainer = pollster::block_on(async { open(&self.recipe(dir))?.trainer().await }).unwrap();
        let names =
            ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"];
        let read = |trainer: &potstill::distill::trainer::Trainer| -> Vec<f64> {
            let values = names.iter().flat_map(|name| pollster::block_on(trainer.store.read_f32(name)).unwrap());
            values.map(f64::from).collect()
        };
        let before = read(&trainer);
        let measured = pollster::block_on(trainer.evaluate()).unwrap().unwrap();
        let counts = [trainer.advance().unwrap()];
        let report = pollster::block_on(trainer.reports(&counts)).unwrap().remove(0);
        let after = read(&trainer);
        First { report, measured, gradient: before.iter().zip(&after).map(|(b, a)| b - a).collect() }
    }
}

/// The first step of a run.
struct First {
    report: StepReport,
    measured: Evaluation,
    gradient: Vec<f64>,
}

/// Whether `found` is the sum of the parts by their factors. Gradients are differences of f32 parameters of size near 1
/// (norms) after one update: 2^-24 each, and the sums' own rounding. A loss is a sum of a few hundred f32 terms.
fn assert_sum(found: &First, parts: &[(f64, &First)]) {
    for i in 0..found.report.losses.len() {
        let expected: f64 = parts.iter().map(|(factor, part)| factor * part.report.losses[i]).sum();
        let value = found.report.losses[i];
        assert!((value - expected).abs() < 2e-6 * expected.abs(), "loss {i}: {value} and {expected}");
    }
    let mut largest = 0.0f64;
    for (i, value) in found.gradient.iter().enumerate() {
        let expected: f64 = parts.iter().map(|(factor, part)| factor * part.gradient[i]).sum();
        assert!((value - expected).abs() < 3e-7, "gradient {i}: {value} and {expected}");
        largest = largest.max(value.abs());
    }
    assert!(largest > 1e-3, "gradients of {largest}");
}

const A: &str = "{ kind: live, path: DIR/a }";
const B: &str = "{ kind: live, path: DIR/b }";

#[test]
fn teachers_of_a_row_share_it_by_their_weights() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let hidden = "{ function: kl, weight: 0.7 }, { function: jsd, weight: 0.3, temperature: [[0, 2], [9, 1]] }, \
                  { function: hs_cka, weight: 0.5, layer_mapping: last }";
    for losses in [PLAIN.losses, hidden] {
        let of = |teachers: &str| Plan { teachers, losses, ..PLAIN }.first(dir);
        let (a, b) = (of(A), of(B));
        let both = of("[{ kind: live, path: DIR/a, weight: 3 }, { kind: live, path: DIR/b }]");
        assert_sum(&both, &[(0.75, &a), (0.25, &b)]);
        let kld = |first: &First| first.measured.kld.unwrap();
        assert!((kld(&both) - 0.75 * kld(&a) - 0.25 * kld(&b)).abs() < 2e-6 * kld(&both));
        let agreement = |first: &First| first.measured.top1_agreement.unwrap();
        assert!((agreement(&both) - 0.75 * agreement(&a) - 0.25 * agreement(&b)).abs() < 1e-6);
        assert_eq!(both.measured.nll, a.measured.nll);
        // A list of one is that one.
        let alone = of("[{ kind: live, path: DIR/a, weight: 5 }]");
        assert_eq!((alone.report, alone.gradient), (a.report, a.gradient));
    }
}

#[test]
fn recorded_and_live_teachers_teach_together() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    record(dir, "a");
    record(dir, "b");
    let losses = "{ function: kl, weight: 1 }, { function: cross_entropy, weight: 0.5 }";
    let of = |teachers: &str| Plan { teachers, losses, ..PLAIN }.first(dir);
    let (a, b) = (of("{ kind: shards, path: DIR/a-shards }"), of("{ kind: shards, path: DIR/b-shards }"));
    let live = of(B);
    let sets = of("[{ kind: shards, path: DIR/a-shards }, { kind: shards, path: DIR/b-shards }]");
    assert_sum(&sets, &[(0.5, &a), (0.5, &b)]);
    let agreement = |first: &First| first.measured.top1_agreement.unwrap();
    assert!((agreement(&sets) - 0.5 * (agreement(&a) + agreement(&b))).abs() < 1e-6);
    let mixed = of("[{ kind: shards, path: DIR/a-shards, weight: 0.4 }, { kind: live, path: DIR/b, weight: 0.6 }]");
    assert_sum(&mixed, &[(0.4, &a), (0.6, &live)]);
    assert!((agreement(&mixed) - 0.4 * agreement(&a) - 0.6 * agreement(&live)).abs() < 1e-6);
}

#[test]
fn documents_go_to_the_teachers_that_their_field_names() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let dataset = "route_field: for,";
    let of = |teachers: &str| Plan { teachers, dataset, ..PLAIN }.first(dir);
    let whole = Plan { teachers: A, ..PLAIN }.first(dir);
    let a_on = |route: &str| of(&format!("{{ kind: live, path: DIR/a, route: {route} }}"));
    let (a_on_a, a_on_b, a_on_both) = (a_on("a"), a_on("b"), a_on("[a, b]"));
    let b_on_b = of("{ kind: live, path: DIR/b, route: b }");
    assert_sum(&a_on_both, &[(1.0, &a_on_a), (1.0, &a_on_b)]);
    // A third of the documents has no teacher there.
    let share = a_on_both.report.losses[0] / whole.report.losses[0];
    assert!((0.05..0.95).contains(&share), "{share}");
    let routed = of("[{ kind: live, path: DIR/a, route: a, weight: 7 }, { kind: live, path: DIR/b, route: b }]");
    assert_sum(&routed, &[(1.0, &a_on_a), (1.0, &b_on_b)]);
    // Both teach `b`; one alone `a`.
    let shared = of("[{ kind: live, path: DIR/a, route: [a, b], weight: 3 }, { kind: live, path: DIR/b, route: b }]");
    assert_sum(&shared, &[(1.0, &a_on_a), (0.75, &a_on_b), (0.25, &b_on_b)]);
    // Measured are the tokens that have a teacher: a mean of the parts' means, with weights that sum to 1.
    let kld = |first: &First| first.measured.kld.unwrap();
    let part = (kld(&routed) - kld(&b_on_b)) / (kld(&a_on_a) - kld(&b_on_b));
    assert!((0.2..0.8).contains(&part), "{part}");
    let again = (kld(&a_on_both) - kld(&a_on_b)) / (kld(&a_on_a) - kld(&a_on_b));
    assert!((part - again).abs() < 1e-4 * part, "{part} and {again}");
    assert_eq!(routed.measured.nll, whole.measured.nll);
}

#[test]
fn the_share_of_every_route_sums_to_one_or_nothing() {
    let teacher = |weight: f64, routes: &[&str]| Teacher {
        weight,
        routes: routes.iter().map(|route| route.to_string()).collect(),
        ..Teacher::from(potstill::distill::recipe::TeacherSource::Live {
            path: "t".into(),
            weights: Default::default(),
        })
    };
    let teachers = [teacher(3.0, &["x"]), teacher(1.0, &["x", "y"]), teacher(4.0, &["z"])];
    let routes = ["w", "x", "y", "z"].map(String::from);
    let shares = Shares::new(&teachers, &[true; 3], &routes);
    let nobody = [0.0; 3];
    let of = |route: u32| shares.of(route).to_vec();
    assert_eq!([of(0), of(1), of(2)], [nobody.to_vec(), vec![0.75, 0.25, 0.0], vec![0.0, 1.0, 0.0]]);
    assert_eq!([of(3), of(u32::MAX)], [vec![0.0, 0.0, 1.0], nobody.to_vec()]);
    assert!(!shares.taught(0) && shares.taught(1) && !shares.taught(u32::MAX));
    // One that cannot measure leaves its share to the others.
    let measuring = Shares::new(&teachers, &[false, true, true], &routes);
    assert_eq!(measuring.of(1), [0.0, 1.0, 0.0]);
    let everywhere = Shares::new(&[teacher(1.0, &[]), teacher(1.0, &["x"])], &[true; 2], &routes);
    assert_eq!((everywhere.of(1), everywhere.of(u32::MAX)), (&[0.5, 0.5][..], &[1.0, 0.0][..]));
}

#[test]
fn each_teacher_has_projections_of_its_own_and_a_stopped_run_goes_on_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let plan = Plan {
        teachers: "[{ kind: live, path: DIR/a, route: a }, { kind: live, path: DIR/b, route: [b] }]",
        losses: "{ function: kl, weight: 1 }, { function: hs_mse, weight: 0.01, layer_mapping: uniform }",
        dataset: "route_field: for,",
        steps: 4,
        output: "whole",
        ..PLAIN
    };
    let with = |plan: &Plan<'_>| {
        let text = plan.text(dir).replace("loss_functions", "force_hidden_state_projection: true, loss_functions");
        recipe(&text.replace("learning_rate: 1,", "learning_rate: 0.05, save_steps: 2,"))
    };
    distill(&with(&plan), false, &mut |_| Continue(())).unwrap();
    let stopped = with(&Plan { output: "stopped", ..plan });
    let mut steps = 0;
    let stop = distill(&stopped, false, &mut |event| {
        steps += usize::from(matches!(event, potstill::distill::Event::Step { .. }));
        if steps == 2 { Break(()) } else { Continue(()) }
    });
    assert!(matches!(stop, Err(potstill::Error::Cancelled)), "{stop:?}");
    distill(&stopped, false, &mut |_| Continue(())).unwrap();
    for file in ["model.safetensors", "projections.safetensors"] {
        let [one, other] = ["whole", "stopped"].map(|folder| std::fs::read(dir.join(folder).join(file)).unwrap());
        assert!(one == other, "{file} differs");
    }
    let bytes = std::fs::read(dir.join("whole/projections.safetensors")).unwrap();
    let projections = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| projections.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).shape().to_vec();
    assert_eq!(shape("projection.1-1.weight"), [32, 32]);
    assert_eq!(shape("projection2.2-3.weight"), [48, 32]);
    // The card and the report name both.
    let card = std::fs::read_to_string(dir.join("whole/README.md")).unwrap();
    for name in ["a", "b"] {
        let digest = ModelFolder::open(dir.join(name)).unwrap().digest();
        assert!(card.contains(&format!("| Teacher | {} | `{digest}` |", dir.join(name).display())), "{card}");
    }
    let lines = metrics::read(&dir.join("whole/metrics.jsonl")).unwrap();
    assert!(lines.iter().any(|line| matches!(line, Line::Eval(eval) if eval.evaluation.kld.is_some())));
}

#[test]
fn what_cannot_be_shared_is_refused_and_every_problem_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let routed = "route_field: for,";
    let parse = |teachers: &str, dataset: &str| {
        let text = Plan { teachers, dataset, ..PLAIN }.text(dir);
        Recipe::parse(&text, Path::new("r.yaml")).unwrap_err().to_string()
    };
    for (teachers, dataset, message) in [
        (
            "{ kind: live, path: DIR/a, weight: 2 }",
            "",
            "r.yaml: `teacher.weight`: expected no such key for the only teacher: found one; weight the losses: \
             `loss_functions[i].weight`",
        ),
        (
            "[{ kind: live, path: DIR/a, weight: 0 }, { kind: live, path: DIR/b }]",
            "",
            "r.yaml: `teacher[0].weight`: expected a positive number: found 0",
        ),
        (
            "[{ kind: live, path: DIR/a, route: a }, { kind: live, path: DIR/b }]",
            "",
            "r.yaml: `dataset.route_field`: expected a field, for `teacher[0].route`: found none; name the field of the \
             text's JSON lines that routes them",
        ),
        (
            A,
            routed,
            "r.yaml: `dataset.route_field`: expected a teacher with a `route`: found none; give teachers the values they \
             are for, or remove the key",
        ),
        ("[]", "", "r.yaml: `teacher`: expected a list of at least one item: found a list of 0"),
    ] {
        assert_eq!(parse(teachers, dataset), message);
    }
    let error = parse("[{ kind: live, path: DIR/a, weigth: 1 }, { kind: lives, path: DIR/b }]", "");
    for part in ["2 problems:", "did you mean `weight`?", "`teacher[1].kind`: expected shards or live"] {
        assert!(error.contains(part), "{error}");
    }
    // Ranking takes records; which teacher has none is said.
    let ranks = Plan { losses: "{ function: hinge, weight: 1, margin: 0.1 }", ..PLAIN };
    let text = Plan { teachers: "[{ kind: shards, path: s }, { kind: live, path: DIR/b }]", ..ranks }.text(dir);
    let error = Recipe::parse(&text, Path::new("r.yaml")).unwrap_err().to_string();
    assert!(error.contains("recorded tokens to rank for hinge: found a live teacher (`teacher[1]`)"), "{error}");
    let refused = |teachers: &str, losses: &str, dataset: &str| {
        let Err(error) = open(&Plan { teachers, losses, dataset, ..PLAIN }.recipe(dir)) else { panic!("opened") };
        error.to_string()
    };
    let misspelt = "[{ kind: live, path: DIR/a, route: [a, bb] }, { kind: live, path: DIR/b, route: B }]";
    let error = refused(misspelt, PLAIN.losses, routed);
    for part in [
        "2 problems:",
        "the recipe's `teacher[0].route`: expected a value of `for` in the text: a, b: found bb; did you mean `b`?",
        "the recipe's `teacher[1].route`: expected a value of `for` in the text: a, b: found B",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let absent = refused("[{ kind: live, path: DIR/no }, { kind: shards, path: DIR/none }]", PLAIN.losses, "");
    assert!(absent.contains("2 problems:") && absent.contains("/no") && absent.contains("/none"), "{absent}");
    // A map that only one of them can follow: its states are not the other's.
    let pairs = "{ function: hs_mse, weight: 1, layer_mapping: [[2, 3]] }";
    let error = refused(&format!("[{A}, {B}]"), pairs, "");
    assert!(error.contains("/a: `hidden losses`") || error.contains("/a: hidden losses"), "{error}");
    assert!(!error.contains("problems:"), "{error}");
    // What no teacher is for is said, and learned as text.
    let warned = Plan { teachers: "{ kind: live, path: DIR/a, route: a }", dataset: routed, ..PLAIN };
    let warnings = open(&warned.recipe(dir)).unwrap().warnings.join("\n");
    assert!(warnings.contains("documents are for no teacher"), "{warnings}");
}

#[test]
fn every_gpu_shares_rows_as_the_cpu_does() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    record(dir, "a");
    let plan = Plan {
        teachers: "[{ kind: shards, path: DIR/a-shards, route: [a, b] }, { kind: live, path: DIR/b, route: b, weight: 2 }]",
        losses: "{ function: kl, weight: 1 }, { function: cross_entropy, weight: 0.1 }",
        dataset: "route_field: for,",
        ..PLAIN
    };
    let expected = plan.first(dir);
    for gpu in gpu_names() {
        let device = format!("gpu:{gpu}");
        let found = Plan { device: &device, ..plan }.first(dir);
        for (found, expected) in found.report.losses.iter().zip(&expected.report.losses) {
            assert!((found - expected).abs() < 1e-4 * expected, "{device}: {found} and {expected}");
        }
        let error = (found.report.grad_norm - expected.report.grad_norm).abs();
        assert!(error < 1e-3 * expected.report.grad_norm, "{device}: gradient norms differ by {error}");
        let [a, b] = [&found, &expected].map(|first| first.measured.kld.unwrap());
        assert!((a - b).abs() < 1e-4 * b, "{device}: {a} and {b}");
    }
}
