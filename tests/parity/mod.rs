//! Whole models against transformers: logits, every gradient and ten optimiser steps of tiny random Llamas that use
//! every option of the family; logits, gradients and greedy text of the other families. Golden tensors and the scripts
//! that made them are in tests/golden/.

mod families;

use crate::common::{Golden, golden, gpus, relative_error};
use potstill::data::packing::{Batch, IGNORE};
use potstill::data::tokens::NO_ROUTE;
use potstill::device::{Device, Precision};
use potstill::distill::batch::{write_training_batch, write_weights};
use potstill::distill::recipe::LossFunction;
use potstill::distill::step::{StepSpec, provide};
use potstill::distill::trained::Trained;
use potstill::formats::ModelFolder;
use potstill::graph::{Graph, Plan, Runner, Store};
use potstill::models::{self, Decoder, load_parameters};
use potstill::nn::{BatchInputs, Params};
use potstill::optim::{Optimiser, RING_AT, Settings};

const CASES: [&str; 10] = [
    "mha_tied",
    "gqa_untied",
    "head_dim",
    "biases",
    "rope_llama3",
    "rope_linear",
    "rope_yarn",
    "stored_bf16",
    "stored_f16",
    "two_shards",
];
/// The bound for f32; torch's own f32 is within 2e-6 of its f64 on these models.
const TOLERANCE: f64 = 1e-4;

/// Sequences of `golden` as one flat batch; `documents` numbers each row's document within its sequence.
fn batch_of(ids: &[i32], labels: &[i32], documents: &[i32], context: usize) -> Batch {
    let n = ids.len();
    let document = |row: usize| (row / context, documents[row]);
    let first = |row: usize| (0..=row).rev().take_while(|&r| document(r) == document(row)).last().unwrap() as u32;
    let end = |row: usize| (row..n).take_while(|&r| document(r) == document(row)).last().unwrap() as u32 + 1;
    Batch {
        tokens: ids.iter().map(|&id| id as u32).collect(),
        positions: (0..n).map(|row| row as u32 - first(row)).collect(),
        labels: labels.iter().map(|&label| if label < 0 { IGNORE } else { label as u32 }).collect(),
        query_range: (0..n).map(|row| [first(row), row as u32 + 1]).collect(),
        key_range: (0..n).map(|row| [row as u32, end(row)]).collect(),
        row_id: (0..n as u64).collect(),
        route: vec![NO_ROUTE; n],
        valid: labels.iter().filter(|&&label| label >= 0).count(),
        valid_bytes: None,
    }
}

struct Model {
    decoder: Decoder,
    store: Store,
    optimiser: Optimiser,
    spec: StepSpec,
}

fn model(device: &Device, name: &str, batch: usize, context: usize, recompute: bool) -> Model {
    let folder = ModelFolder::open(golden(name)).unwrap();
    let decoder = models::from_config(folder.path(), &folder.config).unwrap();
    let mut store = Store::new(device);
    let trained = Trained::default();
    let groups = trained.allocate(&decoder, &mut store, context).unwrap();
    load_parameters(&decoder, &store, "", &folder.tensors, None).unwrap();
    let optimiser = Optimiser::new(Settings::adamw(0.9, 0.95, 1e-8, 0.1, 1.0), &mut store, &groups).unwrap();
    let losses = vec![LossFunction::cross_entropy(1.0)];
    let vocabulary = decoder.config.vocab_size;
    let spec = StepSpec {
        student: decoder.clone(),
        trained,
        teachers: Vec::new(),
        shared: false,
        vocabulary,
        batch,
        context,
        recompute,
        precision: Precision::F32,
        losses,
    };
    Model { decoder, store, optimiser, spec }
}

/// Runs the training graph once and returns the loss.
fn step(model: &mut Model, runner: &mut Runner, batch: &Batch) -> f32 {
    let store = &model.store;
    store.write(RING_AT, &[0u32]).unwrap();
    store.write("metrics.0", &[0f32; 64]).unwrap();
    write_training_batch(store, "train", batch).unwrap();
    write_weights(store, "train", batch, 1.0 / batch.valid as f64).unwrap();
    runner.run().unwrap();
    pollster::block_on(store.read_f32("metrics.0")).unwrap()[0]
}

fn check_logits(model: &mut Model, batch: &Batch, golden: &Golden, what: &str) {
    let mut g = Graph::new();
    let inputs = BatchInputs::declare(&mut g, "train", batch.tokens.len(), model.spec.context, true);
    let params = Params::frozen("");
    let hidden = model.decoder.forward(&mut g, &params, &inputs, false).unwrap();
    let logits = model.decoder.logits(&mut g, &params, hidden);
    g.output("logits", logits);
    provide(&mut model.store, &g).unwrap();
    write_training_batch(&model.store, "train", batch).ok();
    let mut runner = Runner::new(Plan::new(&g).unwrap(), &model.store, &mut Vec::new()).unwrap();
    runner.run().unwrap();
    let found = pollster::block_on(runner.read_f32("logits")).unwrap();
    let error = relative_error(&golden.f32("logits"), &found);
    assert!(error < TOLERANCE, "{what}: logits are off by {error:e}");
}

fn check_gradients(model: &Model, golden: &Golden, what: &str) {
    let names: Vec<_> = golden.names().into_iter().filter_map(|n| n.strip_prefix("grad.").map(str::to_owned)).collect();
    assert_eq!(names.len(), model.decoder.parameters().len(), "{what}: one gradient a parameter");
    for spec in model.decoder.parameters() {
        let name = &spec.name;
        let found = pollster::block_on(model.store.read_f32(&Graph::grad_name(name))).unwrap();
        let found = model.decoder.stored_values(&spec, found);
        let error = relative_error(&golden.f32(&format!("grad.{name}")), &found);
        assert!(error < TOLERANCE, "{what}: the gradient of {name} is off by {error:e}");
    }
}

fn check_case(device: &Device, name: &str, recompute: bool) {
    let what = format!("{name} on {}", device.name());
    let values = Golden::open(&golden(name).join("golden.safetensors"));
    let (ids, labels) = (values.i32("input_ids"), values.i32("labels"));
    let context = ids.len() / 2;
    let batch = batch_of(&ids, &labels, &vec![0; ids.len()], context);
    let mut model = model(device, name, 2, context, recompute);
    let graph = model.spec.training(device.caps()).unwrap();
    provide(&mut model.store, &graph).unwrap();
    check_logits(&mut model, &batch, &values, &what);
    let mut runner = Runner::new(Plan::new(&graph).unwrap(), &model.store, &mut Vec::new()).unwrap();
    for (i, expected) in values.f32("step_losses").into_iter().enumerate() {
        let loss = step(&mut model, &mut runner, &batch);
        let error = relative_error(&[expected], &[loss]);
        assert!(error < TOLERANCE, "{what}: loss {i} is {loss}, not {expected}");
        if i == 0 {
            check_gradients(&model, &values, &what);
        }
        let learning_rate = values.metadata()["optimizer"]["lr"].as_f64().unwrap();
        model.optimiser.update(&model.store, i as u64 + 1, learning_rate).unwrap();
    }
}

fn check_packed(device: &Device, name: &str, recompute: bool) {
    let what = format!("{name}, packed, on {}", device.name());
    let values = Golden::open(&golden(name).join("packed.safetensors"));
    let ids = values.i32("input_ids");
    let batch = batch_of(&ids, &values.i32("labels"), &values.i32("document_ids"), ids.len());
    let positions: Vec<u32> = values.i32("position_ids").into_iter().map(|p| p as u32).collect();
    assert_eq!(batch.positions, positions);
    let mut model = model(device, name, 1, ids.len(), recompute);
    let graph = model.spec.training(device.caps()).unwrap();
    provide(&mut model.store, &graph).unwrap();
    check_logits(&mut model, &batch, &values, &what);
    let mut runner = Runner::new(Plan::new(&graph).unwrap(), &model.store, &mut Vec::new()).unwrap();
    let loss = step(&mut model, &mut runner, &batch);
    assert!(relative_error(&values.f32("loss"), &[loss]) < TOLERANCE, "{what}: loss {loss}");
    check_gradients(&model, &values, &what);
}

#[test]
fn the_cpu_gives_the_logits_gradients_and_step_losses_of_transformers() {
    CASES.iter().for_each(|name| check_case(&Device::cpu(), name, false));
}

/// Rounding a factor to bfloat16 moves it by 2^-9 at most. Between the loss and a gradient lie some 30 products of two
/// rounded factors each; errors of random sign add up to sqrt(60) * 2^-9 = 1.5e-2, the largest of a matrix of thousands to
/// four times that.
#[test]
fn products_of_bfloat16_stay_near_the_gradients_of_transformers() {
    let device = Device::cpu();
    if device.check_precision(Precision::Bf16, "this test").is_err() {
        return;
    }
    let name = CASES[0];
    let values = Golden::open(&golden(name).join("golden.safetensors"));
    let (ids, labels) = (values.i32("input_ids"), values.i32("labels"));
    let context = ids.len() / 2;
    let batch = batch_of(&ids, &labels, &vec![0; ids.len()], context);
    let mut model = model(&device, name, 2, context, false);
    model.spec.precision = Precision::Bf16;
    let graph = model.spec.training(device.caps()).unwrap();
    provide(&mut model.store, &graph).unwrap();
    let mut runner = Runner::new(Plan::new(&graph).unwrap(), &model.store, &mut Vec::new()).unwrap();
    let loss = step(&mut model, &mut runner, &batch);
    assert!(relative_error(&values.f32("step_losses")[..1], &[loss]) < 2e-3, "{loss}");
    let mut least = f64::INFINITY;
    for spec in model.decoder.parameters() {
        let found = pollster::block_on(model.store.read_f32(&Graph::grad_name(&spec.name))).unwrap();
        let found = model.decoder.stored_values(&spec, found);
        let error = relative_error(&values.f32(&format!("grad.{}", spec.name)), &found);
        assert!(error < 6e-2, "the gradient of {} is off by {error:e}", spec.name);
        least = least.min(error);
    }
    assert!(least > 1e-5, "nothing was rounded: {least:e}");
}

#[test]
fn recomputed_activations_give_the_same() {
    check_case(&Device::cpu(), "gqa_untied", true);
}

#[test]
fn packed_documents_do_not_see_each_other() {
    check_packed(&Device::cpu(), "gqa_untied", false);
}

#[test]
fn every_gpu_gives_the_logits_gradients_and_step_losses_of_transformers() {
    for gpu in gpus() {
        CASES.iter().for_each(|name| check_case(&gpu, name, *name == "head_dim"));
        check_packed(&gpu, "gqa_untied", false);
    }
}
