//! Text to teacher to records to student and back from disk: what a run leaves, that the student has learned from its
//! teacher what plain text does not teach it, and that a stopped run ends as an unbroken one.

use crate::common::{novel, recipe, small_config, small_model, small_tokenizer};
use potstill::Error;
use potstill::device::Device;
use potstill::distill::compare::Comparison;
use potstill::distill::corpus::{CorpusOptions, read_corpus};
use potstill::distill::metrics::{self, Evaluation, Record as Line};
use potstill::distill::{CaptureOptions, Event, Outcome, Recipe, capture, distill};
use potstill::formats::ModelFolder;
use potstill::score::Scorer;
use potstill::shards::Record;
use potstill::shards::spec::LogProbType;
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;
use std::sync::Arc;

const CONTEXT: usize = 64;

fn run(recipe: &Recipe) -> Outcome {
    distill(recipe, false, &mut |_| Continue(())).unwrap()
}

/// A teacher that has read 300 kB of the novel once.
fn trained_teacher(dir: &Path) -> ModelFolder {
    let (start, folder) = (dir.join("start"), dir.join("teacher"));
    small_model(&start, 64, 2, 1);
    let text = novel(dir, "long.txt", 30_000..330_000);
    run(&recipe(&format!(
        "{{ output_path: {}, device: cpu, sequence_length: {CONTEXT}, model: {}, dataset: {{ train: {} }}, \
         training_args: {{ num_train_epochs: 1, per_device_train_batch_size: 8, learning_rate: 3e-3, \
         lr_scheduler_type: cosine, warmup_steps: 20 }} }}",
        folder.display(),
        start.display(),
        text.display()
    )));
    ModelFolder::open(folder).unwrap()
}

fn record(teacher: &ModelFolder, text: &Path, out: &Path, record: Record) {
    let corpus = read_corpus(&teacher.tokenizer().unwrap(), &CorpusOptions::new(vec![text.to_owned()])).unwrap();
    let options = CaptureOptions { record, sequence_length: CONTEXT, ..CaptureOptions::default() };
    let (corpus, device) = (Arc::new(corpus), Device::cpu());
    let manifest = capture(&device, teacher, &corpus, out, &options, &mut |_| (), &mut |_| Continue(())).unwrap();
    assert_eq!(manifest.statistics.rows as usize, corpus.ids().len());
}

/// The same small student from the same weights on the same little text, several times over; only the losses differ.
fn student(dir: &Path, name: &str, teacher: Option<&Path>, losses: &str) -> Recipe {
    let teacher =
        teacher.map_or(String::new(), |path| format!("teacher: {{ kind: shards, path: {} }},", path.display()));
    recipe(&format!(
        "{{ output_path: {}, device: cpu, sequence_length: {CONTEXT}, {teacher} \
         model: {{ config: {}, init_seed: 5, tokenizer: {} }}, \
         dataset: {{ train: {}, holdout: {{ fraction: 0.1 }} }}, loss_functions: [{losses}], \
         training_args: {{ max_steps: 240, per_device_train_batch_size: 4, learning_rate: 4e-3, warmup_steps: 10, \
         lr_scheduler_type: cosine, eval_steps: 80, logging_steps: 20 }} }}",
        dir.join(name).display(),
        small_config(48, 2),
        dir.join("start").display(),
        dir.join("short.txt").display()
    ))
}

/// Measures a folder, or the teacher itself, on text that no model has seen.
fn measure(dir: &Path, teacher: &ModelFolder, folder: Option<&Path>) -> Evaluation {
    let unseen = vec![dir.join("unseen.txt")];
    let corpus = Arc::new(read_corpus(&small_tokenizer(), &CorpusOptions::new(unseen)).unwrap());
    let ranges = vec![corpus.range(0)];
    let comparison = Comparison { corpus, ranges, context: CONTEXT, batch: 4 };
    let folder = folder.map(|folder| ModelFolder::open(folder).unwrap());
    comparison.measure(&Device::cpu(), teacher, folder.as_ref()).unwrap()
}

/// The mean NLL of the same windows through the scorer, which shares neither the packing nor the evaluation's graph.
fn scored(dir: &Path, folder: &Path) -> f64 {
    let corpus = read_corpus(&small_tokenizer(), &CorpusOptions::new(vec![dir.join("unseen.txt")])).unwrap();
    let mut scorer = Scorer::new(&Device::cpu(), &ModelFolder::open(folder).unwrap(), 340, 0).unwrap();
    let (mut sum, mut count) = (0.0, 0);
    let ids = corpus.ids();
    for start in (0..ids.len()).step_by(CONTEXT) {
        // The last row of a window predicts the next window's first token.
        let window = &ids[start..(start + CONTEXT + 1).min(ids.len())];
        let scores = scorer.score(window).unwrap();
        sum -= scores.log_probs.iter().flatten().map(|x| f64::from(*x)).sum::<f64>();
        count += window.len() - 1;
    }
    sum / count as f64
}

#[test]
fn a_distilled_student_beats_the_same_student_trained_on_text() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let teacher = trained_teacher(dir);
    let text = novel(dir, "short.txt", 400_000..412_000);
    novel(dir, "unseen.txt", 500_000..512_000);
    let top_k = Record::TopK { k: 32, log_probs: LogProbType::DEFAULT };
    record(&teacher, &text, &dir.join("top-k"), top_k);
    record(&teacher, &text, &dir.join("sampled"), Record::Sampled { draws: 50, max_unique: 50, seed: 3 });

    let kl = "{ function: kl, weight: 1 }, { function: cross_entropy, weight: 0.1 }";
    let plain = run(&student(dir, "plain", None, "{ function: cross_entropy, weight: 1 }"));
    let plain_unseen = measure(dir, &teacher, Some(&plain.folder));
    let own = measure(dir, &teacher, None);
    for kind in ["top-k", "sampled"] {
        let outcome = run(&student(dir, &format!("student-{kind}"), Some(&dir.join(kind)), kl));
        let unseen = measure(dir, &teacher, Some(&outcome.folder));
        assert!(own.nll < unseen.nll, "{kind}: {unseen:?}, teacher {own:?}");
        assert!(unseen.nll < plain_unseen.nll - 0.1, "{kind}: {unseen:?}, plain {plain_unseen:?}");
        assert!(unseen.kld < plain_unseen.kld.map(|kld| kld / 2.0), "{kind}: {unseen:?}, plain {plain_unseen:?}");
        assert!(unseen.top1_agreement > plain_unseen.top1_agreement, "{kind}: {unseen:?}, plain {plain_unseen:?}");
        let (before, after) = (outcome.before.unwrap(), outcome.after.unwrap());
        assert!(after.nll < before.nll - 1.0 && after.nll < plain.after.unwrap().nll, "{before:?} {after:?}");
        let scored = scored(dir, &outcome.folder);
        assert!((scored / unseen.nll - 1.0).abs() < 1e-5, "{scored} {unseen:?}");
        check_folder(&outcome, &teacher, &dir.join(kind));
    }
}

/// What transformers, a reader and a browser find.
fn check_folder(outcome: &Outcome, teacher: &ModelFolder, shards: &Path) {
    let read = |name: &str| std::fs::read_to_string(outcome.folder.join(name)).unwrap();
    let config: serde_json::Value = serde_json::from_str(&read("config.json")).unwrap();
    for (key, value) in small_config(48, 2).as_object().unwrap() {
        assert_eq!(&config[key], value, "{key}");
    }
    assert_eq!(config["torch_dtype"], "float32");
    let weights = std::fs::read(outcome.folder.join("model.safetensors")).unwrap();
    let weights = safetensors::SafeTensors::deserialize(&weights).unwrap();
    // Embedding and final norm, and nine tensors a layer; the tied head is not stored.
    assert_eq!(weights.len(), 2 + 2 * 9);
    assert_eq!(weights.tensor("model.embed_tokens.weight").unwrap().shape(), [340, 48]);
    assert_eq!(weights.tensor("model.layers.1.self_attn.k_proj.weight").unwrap().shape(), [24, 48]);
    assert_eq!(ModelFolder::open(&outcome.folder).unwrap().tokenizer().unwrap().digest(), small_tokenizer().digest());

    let card = read("README.md");
    assert!(card.starts_with("---\n") && card.contains("random weights (seed 5)"), "{card}");
    for named in [&teacher.digest(), &shards.display().to_string(), "short.txt", &format!("{}", outcome.steps)] {
        assert!(card.contains(named), "the card does not name {named}:\n{card}");
    }
    let report = read("report.html");
    for external in ["<link", "<script", "src=", "@import", "url(", "href=\"http"] {
        assert!(!report.contains(external), "the report loads {external}");
    }
    assert!(report.contains("<svg") && report.contains("</html>"));
    let lines = metrics::read(&outcome.folder.join("metrics.jsonl")).unwrap();
    let evaluated: Vec<u64> = lines.iter().filter(|l| matches!(l, Line::Eval(_))).map(Line::step).collect();
    assert_eq!(evaluated, [0, 80, 160, 240]);
    assert_eq!(lines.len() - evaluated.len(), 12);
}

fn observed(dir: &Path, name: &str) -> Recipe {
    let (teacher, text) = (dir.join("teacher"), dir.join("text.txt"));
    let (teacher, text, output) = (teacher.display(), text.display(), dir.join(name));
    recipe(&format!(
        "{{ output_path: {}, device: cpu, sequence_length: 32, model: {{ layers_of: {teacher}, layers: [0, 2] }}, \
         teacher: {{ kind: live, path: {teacher} }}, dataset: {{ train: {text}, holdout: {{ fraction: 0.1 }} }}, \
         training_args: {{ max_steps: 30, per_device_train_batch_size: 2, gradient_accumulation_steps: 2, \
         learning_rate: 1e-3, eval_steps: 10, logging_steps: 5, save_steps: 15 }} }}",
        output.display()
    ))
}

fn left(folder: &Path) -> (Vec<u8>, Vec<Line>, Vec<String>) {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let lines = metrics::read(&folder.join("metrics.jsonl")).unwrap();
    let lines = lines.iter().map(Line::without_timing).collect();
    let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    (weights, lines, vec![read("samples-before.json"), read("samples-after.json"), read("config.json")])
}

#[test]
fn an_observer_hears_a_run_and_stops_it_anywhere_without_a_trace_in_the_result() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    small_model(&dir.join("teacher"), 32, 3, 9);
    novel(dir, "text.txt", 30_000..36_000);

    let mut heard = Vec::new();
    let outcome = distill(&observed(dir, "whole"), false, &mut |event| {
        heard.push(match event {
            Event::Planned { memory, .. } if memory.total() > 0 => "planned".to_owned(),
            Event::Started { step, total } => format!("started {step} of {total}"),
            Event::Step { report, done, .. } if report.loss.is_finite() => {
                // Scalars are read back once a stretch of five steps.
                assert_eq!(done, report.step.next_multiple_of(5));
                format!("step {}", report.step)
            }
            Event::Evaluated { step, evaluation } if evaluation.kld.is_some() => format!("evaluated {step}"),
            Event::Saved { step, path } if path.is_dir() => format!("saved {step}"),
            other => panic!("{other:?}"),
        });
        Continue(())
    });
    assert_eq!(outcome.unwrap().steps, 30);
    let mut expected = vec!["planned".to_owned(), "started 0 of 30".to_owned(), "evaluated 0".to_owned()];
    for step in 1..=30 {
        expected.push(format!("step {step}"));
        expected.extend((step % 10 == 0).then(|| format!("evaluated {step}")));
        expected.extend((step % 15 == 0).then(|| format!("saved {step}")));
    }
    assert_eq!(heard, expected);

    let broken = observed(dir, "broken");
    // Before anything, at a step that is evaluated, in the middle of a stretch, at the last step.
    for stop in [0, 10, 12, 30] {
        let mut saved = None;
        let stopped = distill(&broken, false, &mut |event| {
            match event {
                Event::Started { .. } if stop == 0 => return Break(()),
                Event::Step { report, .. } if report.step == stop => return Break(()),
                Event::Saved { step, .. } => saved = Some(step),
                _ => {}
            }
            Continue(())
        });
        assert!(matches!(stopped, Err(Error::Cancelled)), "{stopped:?}");
        // A stretch that has begun is finished.
        assert_eq!(saved, (stop > 0).then_some((stop).next_multiple_of(5)));
    }
    run(&broken);
    let ((weights, lines, texts), whole) = (left(&dir.join("broken")), left(&dir.join("whole")));
    assert!(weights == whole.0, "the weights differ");
    assert_eq!((lines, texts), (whole.1, whole.2));
}
