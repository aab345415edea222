//! Twenty training steps from recorded teacher rows, on WebGPU and on the browser's CPU, beside the same steps natively
//! (`assets_for_the_browser` in tests/devices.rs, whose folder is compiled in); then the student is saved, opened again
//! and asked for text.

use potstill::device::Device;
use potstill::distill::Recipe;
use potstill::distill::recipe::SaveDtype;
use potstill::distill::setup::Setup;
use potstill::distill::student::write_folder;
use potstill::distill::trainer::{StepReport, Trainer};
use potstill::formats::{ModelFolder, Tokenizer};
use potstill::generate::{Generator, Sampling};
use potstill::models;
use potstill::platform::fs;
use std::ops::ControlFlow;
use std::path::Path;
use wasm_bindgen_test::wasm_bindgen_test;

macro_rules! asset {
    ($name:literal) => {
        ($name, include_bytes!(concat!(env!("POTSTILL_BROWSER_ASSETS"), "/", $name)).as_slice())
    };
}

const FILES: [(&str, &[u8]); 6] = [
    asset!("teacher/tokenizer.json"),
    asset!("teacher/tokenizer_config.json"),
    asset!("shards/manifest.json"),
    asset!("shards/00000.shard"),
    asset!("text.txt"),
    asset!("recipe.json"),
];
const SCALARS: &[u8] = asset!("scalars.json").1;

/// Largest relative difference of a loss or gradient norm between devices, as between native ones (tests/devices.rs).
const TOLERANCE: f64 = 1e-3;

/// Puts everything into the tree; the recipe for `device`.
pub fn put_files_of(device: &str) -> String {
    for (name, bytes) in FILES {
        fs::write(name, bytes.to_vec());
    }
    let text = fs::read_to_string("recipe.json").unwrap();
    let recipe = Recipe { device: device.into(), ..Recipe::parse(&text, Path::new("recipe.json")).unwrap() };
    recipe.to_json().to_string()
}

fn recipe(device: &str) -> Recipe {
    Recipe::parse(&put_files_of(device), Path::new("recipe.json")).unwrap()
}

/// All steps on `device`, checked.
async fn train(device: &str) -> (Trainer, Tokenizer) {
    let setup = Setup::open(&recipe(device)).await.unwrap();
    let tokenizer = setup.tokenizer.clone();
    let mut trainer = setup.trainer().await.unwrap();
    let mut counts = Vec::new();
    for _ in 0..20 {
        counts.push(trainer.advance().unwrap());
        trainer.store.device().catch_up().await.unwrap();
    }
    let found = trainer.reports(&counts).await.unwrap();
    let scalars = |r: &StepReport| [&r.losses[..], &[r.loss, r.grad_norm]].concat();
    let found: Vec<f64> = found.iter().flat_map(scalars).collect();
    let expected: Vec<Vec<f64>> = serde_json::from_slice(SCALARS).unwrap();
    let expected = expected.concat();
    assert_eq!(expected.len(), found.len());
    let worst = expected.iter().zip(&found).map(|(e, f)| (e - f).abs() / e.abs()).fold(0.0, f64::max);
    assert!(worst < TOLERANCE, "{device}: off by {worst:e}\n{expected:?}\n{found:?}");
    (trainer, tokenizer)
}

#[wasm_bindgen_test]
async fn the_cpu_trains_as_natively() {
    train("cpu").await;
}

#[wasm_bindgen_test]
async fn webgpu_trains_as_natively_and_its_student_is_saved_and_speaks() {
    let (trainer, tokenizer) = train("gpu").await;
    let recipe = recipe("gpu");
    let potstill::distill::recipe::Student::Random { config, .. } = &recipe.model else { panic!("another student") };
    let potstill::distill::recipe::Config::Inline(config) = config else { panic!("another config") };
    let decoder = models::from_config(Path::new("config"), &config.clone().into()).unwrap();
    let (folder, none) = (Path::new("student"), serde_json::Value::Null);
    let saved = write_folder(folder, &decoder, &trainer.store, "", Some(&tokenizer), &none, SaveDtype::Float32).await;
    saved.unwrap();
    let student = ModelFolder::open(folder).unwrap();
    for name in student.tensors.names() {
        let (stored, trained) = (student.tensors.read_f32(name).unwrap(), trainer.store.read_f32(name).await.unwrap());
        assert!(stored == trained, "{name}");
    }
    let prompt = tokenizer.encode("Call me", false).unwrap();
    let sampling = Sampling { max_tokens: 12, ..Sampling::default() };
    let mut texts = Vec::new();
    for device in [trainer.store.device().clone(), Device::cpu()] {
        let mut generator = Generator::new(&device, &student, 64, tokenizer.vocab_size()).unwrap();
        let mut heard = 0;
        let mut on_token = |_| {
            heard += 1;
            ControlFlow::Continue(())
        };
        texts.push(generator.generate(&prompt, &sampling, &mut on_token).await.unwrap());
        assert_eq!(heard, 12);
    }
    assert_eq!(texts[0], texts[1]);
    fs::remove("student");
    assert!(!fs::exists(folder));
}
