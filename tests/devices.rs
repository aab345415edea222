//! The same twenty training steps everywhere: losses agree between devices, and a device agrees with itself bit for
//! bit. What browsers test with is made here too.

use crate::common::{Golden, golden, gpu_names, novel, recipe, small_config, small_model};
use potstill::device::Device;
use potstill::distill::corpus::{CorpusOptions, read_corpus};
use potstill::distill::setup::Setup;
use potstill::distill::trainer::StepReport;
use potstill::distill::{CaptureOptions, capture};
use potstill::formats::ModelFolder;
use potstill::shards::Record;
use potstill::shards::spec::LogProbType;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::ControlFlow::Continue;
use std::path::Path;
use std::sync::Arc;

/// Teacher, text and records that the steps learn from; the CPU makes them for all.
fn prepare(dir: &Path) {
    small_model(&dir.join("teacher"), 32, 2, 8);
    let text = novel(dir, "text.txt", 30_000..36_000);
    let teacher = ModelFolder::open(dir.join("teacher")).unwrap();
    let corpus = Arc::new(read_corpus(&teacher.tokenizer().unwrap(), &CorpusOptions::new(vec![text])).unwrap());
    let record = Record::TopK { k: 16, log_probs: LogProbType::DEFAULT };
    let options =
        CaptureOptions { record, sequence_length: 32, temperatures: vec![1.0, 2.0], ..CaptureOptions::default() };
    let out = dir.join("shards");
    capture(&Device::cpu(), &teacher, &corpus, &out, &options, &mut |_| (), &mut |_| Continue(())).unwrap();
}

/// Twenty steps from random weights on `device`, from what [`prepare`] made.
fn recipe_in(dir: &Path, device: &str) -> String {
    format!(
        "{{ output_path: unused, device: '{device}', sequence_length: 32, seed: 11, \
         model: {{ config: {}, tokenizer: {} }}, teacher: {{ kind: shards, path: {} }}, dataset: {{ train: {} }}, \
         loss_functions: [{{ function: kl, weight: 0.8, temperature: 2 }}, {{ function: cross_entropy, weight: 0.5 }}], \
         training_args: {{ max_steps: 20, per_device_train_batch_size: 2, gradient_accumulation_steps: 2, \
         learning_rate: 2e-3, weight_decay: 0.1, warmup_steps: 3 }} }}",
        small_config(32, 2),
        dir.join("teacher").display(),
        dir.join("shards").display(),
        dir.join("text.txt").display(),
    )
}

/// Twenty steps from the same weights on `device`: their scalars, and the bits of every parameter after them.
fn train(dir: &Path, device: &str) -> (Vec<StepReport>, Vec<u32>) {
    let recipe = recipe(&recipe_in(dir, device));
    let mut trainer = pollster::block_on(async { Setup::open(&recipe).await?.trainer().await }).unwrap();
    let counts: Vec<_> = (0..20).map(|_| trainer.advance().unwrap()).collect();
    let reports = pollster::block_on(trainer.reports(&counts)).unwrap();
    let mut names: Vec<String> = trainer.store.names().map(str::to_owned).collect();
    names.retain(|name| name.starts_with("model."));
    assert_eq!(names.len(), 2 + 2 * 9);
    let bits = |name: &String| pollster::block_on(trainer.store.read_u32(name)).unwrap();
    (reports, names.iter().flat_map(bits).collect())
}

fn check_twice(dir: &Path, device: &str) -> Vec<StepReport> {
    let (reports, parameters) = train(dir, device);
    let (again, parameters_again) = train(dir, device);
    assert_eq!(reports, again, "{device}: scalars of two runs");
    assert!(parameters == parameters_again, "{device}: parameters of two runs differ");
    reports
}

#[test]
fn the_cpu_trains_the_same_twice() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let reports = check_twice(dir.path(), "cpu");
    assert!(reports[19].loss < 0.95 * reports[0].loss, "{reports:?}");
}

#[test]
fn every_gpu_trains_the_same_twice_and_as_the_cpu_does() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let (expected, _) = train(dir.path(), "cpu");
    for name in gpu_names() {
        let found = check_twice(dir.path(), &format!("gpu:{name}"));
        let mut worst = 0.0f64;
        for (e, f) in expected.iter().zip(&found) {
            assert_eq!((e.step, e.valid_tokens, e.tokens), (f.step, f.valid_tokens, f.tokens));
            let pairs = e.losses.iter().zip(&f.losses).chain([(&e.loss, &f.loss), (&e.grad_norm, &f.grad_norm)]);
            for (e, f) in pairs {
                worst = worst.max((e - f).abs() / e.abs());
            }
        }
        println!("{name}: scalars within {worst:.1e}");
        assert!(worst < 1e-3, "{name}: off by {worst:e}\n{expected:?}\n{found:?}");
    }
}

/// What the training in a browser works on, and what came of the same recipe here.
#[test]
#[ignore = "tests/browser.sh runs it: writes the folder POTSTILL_BROWSER_ASSETS"]
fn assets_for_the_browser() {
    let dir = std::env::var_os("POTSTILL_BROWSER_ASSETS").expect("the folder to write");
    let dir = Path::new(&dir);
    prepare(dir);
    let recipe = recipe(&recipe_in(Path::new(""), "gpu")).to_json();
    std::fs::write(dir.join("recipe.json"), recipe.to_string()).unwrap();
    let (reports, _) = train(dir, "cpu");
    let scalars = |r: &StepReport| [&r.losses[..], &[r.loss, r.grad_norm]].concat();
    let scalars: Vec<Vec<f64>> = reports.iter().map(scalars).collect();
    std::fs::write(dir.join("scalars.json"), serde_json::to_vec(&scalars).unwrap()).unwrap();
    // The configurations of tests/golden/merge as objects, as which a browser takes them.
    let golden = Golden::open(&golden("merge/golden.safetensors")).metadata();
    let object = |yaml: &Value| serde_saphyr::from_str::<Value>(yaml.as_str().unwrap()).unwrap();
    let merges: BTreeMap<&String, Value> =
        golden.as_object().unwrap().iter().map(|(k, yaml)| (k, object(yaml))).collect();
    std::fs::write(dir.join("merges.json"), serde_json::to_vec(&merges).unwrap()).unwrap();
}

/// Factors rounded to 16-bit floats, gradients by their own power of two: the losses of every step stay within a few
/// roundings (2^-10 each) of those in f32, and the run ends where that ends.
#[test]
fn every_gpu_with_16_bit_floats_trains_with_them_as_without() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let half = |device: &str| recipe_in(dir.path(), device).replace("max_steps: 20", "fp16: true, max_steps: 20");
    let Err(error) = pollster::block_on(Setup::open(&recipe(&half("cpu")))) else { panic!("a CPU takes fp16") };
    let error = error.to_string();
    assert!(["`training_args.fp16`", "16-bit floats", "f32"].iter().all(|part| error.contains(part)), "{error}");

    let (expected, _) = train(dir.path(), "cpu");
    for name in gpu_names() {
        let recipe = recipe(&half(&format!("gpu:{name}")));
        let setup = match pollster::block_on(Setup::open(&recipe)) {
            Ok(setup) => setup,
            Err(error) if error.to_string().contains("shader-f16") => {
                println!("{name} has no 16-bit floats: {error}");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let mut trainer = pollster::block_on(setup.trainer()).unwrap();
        let counts: Vec<_> = (0..20).map(|_| trainer.advance().unwrap()).collect();
        let found = pollster::block_on(trainer.reports(&counts)).unwrap();
        let off = expected.iter().zip(&found).map(|(e, f)| (e.loss - f.loss).abs() / e.loss);
        let worst = off.fold(0.0, f64::max);
        println!("{name}: losses within {worst:.1e} of those in f32");
        assert!(worst > 0.0 && worst < 4.0 / 1024.0, "{name}: off by {worst:e}");
    }
}
