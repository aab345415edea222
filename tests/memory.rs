//! What a run takes is what was planned, and two thousand steps take no more than two.
//!
//! Resident sizes are those of a process of its own: this file starts itself for them.
#![cfg(target_os = "linux")]

use crate::common::{novel, recipe, small_config, small_model};
use potstill::device::{Device, Precision};
use potstill::distill::corpus::{CorpusOptions, read_corpus};
use potstill::distill::setup::{Measured, Setup, plan_memory};
use potstill::distill::step::StepSpec;
use potstill::distill::trained::Trained;
use potstill::distill::{CaptureOptions, Recipe, capture, memory};
use potstill::formats::ModelFolder;
use potstill::models;
use potstill::optim::Settings;
use potstill::shards::Record;
use potstill::shards::spec::LogProbType;
use std::collections::BTreeMap;
use std::ops::ControlFlow::Continue;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// Of the model whose memory is measured: so many that the process's constants (threads, tokenizer, plans; 8 MB) do
/// not count.
const LAYERS: usize = 20;

/// Resident bytes of this process.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    1024 * line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
}

/// Runs one of the tests below that are no tests, in a process of its own, and returns the numbers it prints.
fn measured(name: &str) -> BTreeMap<String, f64> {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([&format!("memory::{name}"), "--exact", "--ignored", "--nocapture"])
        .env("POTSTILL_TEST_FOLDER", dir.path());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let number = |line: &str| {
        let (name, value) = line.strip_prefix("= ")?.split_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    let numbers = text.lines().filter_map(number).collect();
    println!("{name}: {numbers:?}");
    numbers
}

fn large(dir: &Path, batch: usize, extra: &str) -> Recipe {
    recipe(&format!(
        "{{ output_path: unused, device: cpu, sequence_length: 128, model: {{ config: {}, tokenizer: {} }}, \
         dataset: {{ train: {} }}, training_args: {{ max_steps: 9, per_device_train_batch_size: {batch} {extra} }} }}",
        small_config(256, LAYERS),
        dir.join("tokenizer").display(),
        dir.join("text.txt").display(),
    ))
}

fn prepare(dir: &Path, bytes: usize) {
    small_model(&dir.join("tokenizer"), 8, 1, 1);
    novel(dir, "text.txt", 30_000..30_000 + bytes);
}

/// Not a test: see [`measured`].
#[test]
#[ignore = "measures its own process"]
fn takes_memory() {
    let Some(dir) = std::env::var_os("POTSTILL_TEST_FOLDER") else { return };
    prepare(Path::new(&dir), 20_000);
    let recipe = large(Path::new(&dir), 4, "");
    let before = resident();
    let setup = pollster::block_on(Setup::open(&recipe)).unwrap();
    let (planned, device) = (setup.memory.total(), setup.device.clone());
    let mut trainer = pollster::block_on(setup.trainer()).unwrap();
    let allocated = device.allocated();
    let counts = [trainer.advance().unwrap(), trainer.advance().unwrap()];
    pollster::block_on(trainer.reports(&counts)).unwrap();
    println!("= planned {planned}\n= allocated {allocated}\n= grown {}", resident() - before);
}

#[test]
fn a_run_takes_what_was_planned() {
    let numbers = measured("takes_memory");
    assert!(numbers["planned"] > 300e6, "too small to measure: {numbers:?}");
    for what in ["allocated", "grown"] {
        let ratio = numbers[what] / numbers["planned"];
        assert!((ratio - 1.0).abs() < 0.05, "{what} is {ratio:.3} times what was planned: {numbers:?}");
    }
}

/// Not a test: see [`measured`].
#[test]
#[ignore = "measures its own process"]
fn trains_long() {
    let Some(dir) = std::env::var_os("POTSTILL_TEST_FOLDER") else { return };
    let dir = Path::new(&dir);
    prepare(dir, 4_000);
    let teacher = ModelFolder::open(dir.join("tokenizer")).unwrap();
    let text = vec![dir.join("text.txt")];
    let corpus = Arc::new(read_corpus(&teacher.tokenizer().unwrap(), &CorpusOptions::new(text)).unwrap());
    let record = Record::TopK { k: 8, log_probs: LogProbType::DEFAULT };
    let options = CaptureOptions { record, sequence_length: 16, ..CaptureOptions::default() };
    let out = dir.join("shards");
    capture(&Device::cpu(), &teacher, &corpus, &out, &options, &mut |_| (), &mut |_| Continue(())).unwrap();
    let recipe = recipe(&format!(
        "{{ output_path: unused, device: cpu, sequence_length: 16, model: {{ config: {}, tokenizer: {} }}, \
         teacher: {{ kind: shards, path: {} }}, dataset: {{ train: {}, holdout: {{ fraction: 0.1 }} }}, \
         training_args: {{ max_steps: 2000, per_device_train_batch_size: 2 }} }}",
        small_config(16, 1),
        dir.join("tokenizer").display(),
        out.display(),
        dir.join("text.txt").display()
    ));
    let setup = pollster::block_on(Setup::open(&recipe)).unwrap();
    let device = setup.device.clone();
    let mut trainer = pollster::block_on(setup.trainer()).unwrap();
    let built = device.allocated();
    for step in 1..=2000 {
        let counts = [trainer.advance().unwrap()];
        pollster::block_on(trainer.reports(&counts)).unwrap();
        assert_eq!(device.allocated(), built, "step {step}");
        if step % 100 == 0 {
            pollster::block_on(trainer.evaluate()).unwrap().expect("held-out text");
        }
        if [200, 2000].contains(&step) {
            println!("= resident_{step} {}", resident());
        }
    }
}

#[test]
fn two_thousand_steps_take_no_more_memory_than_two_hundred() {
    let numbers = measured("trains_long");
    let grown = numbers["resident_2000"] - numbers["resident_200"];
    assert!(grown < f64::from(2 << 20), "{numbers:?}");
}

#[test]
fn a_run_that_cannot_fit_is_refused_with_a_batch_that_can() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path(), 20_000);
    // Several TiB.
    let error = pollster::block_on(Setup::open(&large(dir.path(), 1 << 16, ""))).err().expect("refused").to_string();
    assert!(error.starts_with("this run: memory: expected at most "), "{error}");
    let advice = error.split("`per_device_train_batch_size: ").nth(1).expect("a batch size").to_owned();
    let batch: usize = advice.split('`').next().unwrap().parse().unwrap();
    assert!(advice.contains("` with `gradient_checkpointing: true` needs "), "{error}");
    let student = models::from_config(Path::new("config"), &small_config(256, LAYERS)).unwrap();
    let losses = large(dir.path(), 1, "").loss_functions;
    let (trained, teachers, vocabulary, context) = (Trained::default(), Vec::new(), 340, 128);
    let (shared, recompute, precision) = (false, true, Precision::F32);
    let spec =
        StepSpec { student, trained, teachers, shared, vocabulary, batch, context, recompute, precision, losses };
    let needed =
        plan_memory(&spec, &Settings::adamw(0.9, 0.999, 1e-8, 0.0, 1.0), Device::cpu().caps(), Measured::Nothing)
            .unwrap()
            .total();
    assert!(error.ends_with(&format!("needs {}", memory::binary(needed))), "{error}: {needed}");
    let available = memory::available(&Device::cpu()).unwrap();
    assert!(needed < available + (1 << 30) && 3 * needed > available, "{error}: {available} available");
}
