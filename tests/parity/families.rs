//! The families beside Llama, and what is particular to them: windows and learned positions in decoding, matrices that
//! are stored transposed, layers that differ.

use super::{TOLERANCE, batch_of, check_gradients, check_logits, check_packed, model, step};
use crate::common::{Golden, golden, gpus, relative_error};
use potstill::device::Device;
use potstill::distill::recipe::SaveDtype;
use potstill::distill::step::provide;
use potstill::distill::student::write_folder;
use potstill::formats::{Dtype, ModelFolder, TensorSpec, Tensors, write_safetensors};
use potstill::generate::{Generator, Sampling};
use potstill::graph::{Graph, Plan, Runner, Store};
use potstill::models::{self, Decoder, LayerMap, load_parameters};
use potstill::nn::{BatchInputs, Params};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

const FAMILIES: [&str; 9] = [
    "families/mistral",
    "families/qwen2",
    "families/qwen3",
    "families/stablelm",
    "families/stablelm_parallel",
    "families/gpt2",
    "families/gemma",
    "families/gemma2",
    "families/gemma3_text",
];

/// Logits, loss and every gradient of two sequences.
fn check_family(device: &Device, name: &str, recompute: bool) {
    let what = format!("{name} on {}", device.name());
    let values = Golden::open(&golden(name).join("golden.safetensors"));
    let ids = values.i32("input_ids");
    let context = ids.len() / 2;
    let batch = batch_of(&ids, &values.i32("labels"), &vec![0; ids.len()], context);
    let mut model = model(device, name, 2, context, recompute);
    let graph = model.spec.training(device.caps()).unwrap();
    provide(&mut model.store, &graph).unwrap();
    check_logits(&mut model, &batch, &values, &what);
    let mut runner = Runner::new(Plan::new(&graph).unwrap(), &model.store, &mut Vec::new()).unwrap();
    let loss = step(&mut model, &mut runner, &batch);
    assert!(relative_error(&values.f32("loss"), &[loss]) < TOLERANCE, "{what}: loss {loss}");
    check_gradients(&model, &values, &what);
}

/// Greedy text through the cache is that of whole forward passes.
fn check_greedy(device: &Device, name: &str) {
    let values = Golden::open(&golden(name).join("golden.safetensors"));
    let unsigned = |ids: Vec<i32>| ids.into_iter().map(|id| id as u32).collect::<Vec<_>>();
    let (ids, expected) = (unsigned(values.i32("input_ids")), unsigned(values.i32("greedy")));
    let folder = ModelFolder::open(golden(name)).unwrap();
    let mut generator = Generator::new(device, &folder, 32, usize::MAX).unwrap();
    let sampling = Sampling { max_tokens: expected.len(), ..Sampling::default() };
    let found =
        pollster::block_on(generator.generate(&ids[..10], &sampling, &mut |_| ControlFlow::Continue(()))).unwrap();
    assert_eq!(found, expected, "{name} on {}", device.name());
}

#[test]
fn the_cpu_gives_the_logits_and_gradients_of_every_family() {
    for name in FAMILIES {
        check_family(&Device::cpu(), name, false);
        check_packed(&Device::cpu(), name, true);
        check_greedy(&Device::cpu(), name);
    }
}

#[test]
fn every_gpu_gives_the_logits_and_gradients_of_every_family() {
    for gpu in gpus() {
        for name in FAMILIES {
            check_family(&gpu, name, true);
            check_packed(&gpu, name, false);
            check_greedy(&gpu, name);
        }
    }
}

fn load(name: &str, changes: &[(&str, Value)]) -> (ModelFolder, Decoder) {
    let folder = ModelFolder::open(golden(name)).unwrap();
    let mut config = folder.config.clone();
    changes.iter().for_each(|(key, value)| config[*key] = value.clone());
    let decoder = models::from_config(Path::new("config.json"), &config).unwrap();
    (folder, decoder)
}

#[test]
fn a_folder_is_written_as_it_was_read() {
    let scratch = tempfile::tempdir().unwrap();
    for name in FAMILIES {
        let (folder, decoder) = load(name, &[]);
        let mut store = Store::new(&Device::cpu());
        decoder.allocate(&mut store, "", 8).unwrap();
        load_parameters(&decoder, &store, "", &folder.tensors, None).unwrap();
        let to = scratch.path().join(name);
        pollster::block_on(write_folder(&to, &decoder, &store, "", None, &Value::Null, SaveDtype::Float32)).unwrap();
        let again = ModelFolder::open(&to).unwrap();
        assert_eq!(again.config["architectures"], json!([decoder.config.architecture]));
        let names: Vec<_> = folder.tensors.names().collect();
        assert_eq!(again.tensors.names().collect::<Vec<_>>(), names);
        for tensor in names {
            assert_eq!(again.tensors.shape(tensor).unwrap(), folder.tensors.shape(tensor).unwrap(), "{tensor}");
            assert_eq!(again.tensors.read_f32(tensor).unwrap(), folder.tensors.read_f32(tensor).unwrap(), "{tensor}");
        }
    }
}

#[test]
fn a_checkpoint_without_the_base_models_prefix_loads() {
    let scratch = tempfile::tempdir().unwrap();
    let (folder, decoder) = load("families/gpt2", &[]);
    // As the first GPT-2 checkpoints are: no `transformer.` before any name.
    let spec = |name: &str| {
        let shape = folder.tensors.shape(name).unwrap().to_vec();
        TensorSpec { name: name.strip_prefix("transformer.").unwrap().to_owned(), dtype: Dtype::F32, shape }
    };
    let specs: Vec<TensorSpec> = folder.tensors.names().map(spec).collect();
    let file = scratch.path().join("model.safetensors");
    let fill =
        async |spec: &TensorSpec| Ok(Cow::Owned(folder.tensors.read_f32(&format!("transformer.{}", spec.name))?));
    pollster::block_on(write_safetensors(&file, &specs, &BTreeMap::new(), fill)).unwrap();
    let bare = Tensors::open_safetensors(&[file]).unwrap();
    let mut store = Store::new(&Device::cpu());
    decoder.allocate(&mut store, "bare:", 8).unwrap();
    decoder.allocate(&mut store, "", 8).unwrap();
    load_parameters(&decoder, &store, "bare:", &bare, None).unwrap();
    load_parameters(&decoder, &store, "", &folder.tensors, None).unwrap();
    for spec in decoder.parameters() {
        let read = |name: &str| pollster::block_on(store.read_f32(name)).unwrap();
        assert_eq!(read(&format!("bare:{}", spec.name)), read(&spec.name), "{}", spec.name);
    }
}

#[test]
fn chosen_layers_keep_their_kind() {
    // Every third layer of this gemma3_text has full attention. By that rule a student of two layers would have none.
    let (folder, whole) = load("families/gemma3_text", &[]);
    let map = LayerMap::new(&[0, 2], 4).unwrap();
    let config = map.config(&whole.config.source);
    assert_eq!(config["layer_types"], json!(["sliding_attention", "full_attention"]));
    let student = models::from_config(folder.path(), &config).unwrap();
    assert_eq!(student.config.layers, [whole.config.layers[0], whole.config.layers[2]]);

    let (folder, whole) = load("families/gpt2", &[]);
    let map = LayerMap::new(&[1], 2).unwrap();
    let student = models::from_config(folder.path(), &map.config(&whole.config.source)).unwrap();
    let mut store = Store::new(&Device::cpu());
    student.allocate(&mut store, "", 8).unwrap();
    load_parameters(&student, &store, "", &folder.tensors, Some(&map)).unwrap();
    for spec in student.parameters() {
        let values = pollster::block_on(store.read_f32(&spec.name)).unwrap();
        let source = spec.name.replace("transformer.h.0.", "transformer.h.1.");
        assert_eq!(student.stored_values(&spec, values), folder.tensors.read_f32(&source).unwrap(), "{source}");
    }
}

#[test]
fn options_that_are_not_implemented_are_refused_by_name() {
    let refused = [
        ("families/stablelm", "qk_layernorm", json!(true)),
        ("families/gpt2", "scale_attn_by_inverse_layer_idx", json!(true)),
        ("families/gpt2", "activation_function", json!("silu")),
        ("families/gemma2", "use_bidirectional_attention", json!(true)),
        ("families/gemma2", "sliding_window", Value::Null),
        ("families/gemma2", "final_logit_softcapping", json!(1e-60)),
        ("families/gemma3_text", "layer_types", json!(["full_attention"])),
        ("families/qwen3", "head_dim", json!(258)),
        ("families/stablelm", "partial_rotary_factor", json!(1.5)),
    ];
    for (name, key, value) in refused {
        let mut config = ModelFolder::open(golden(name)).unwrap().config;
        config[key] = value;
        let error = models::from_config(Path::new("config.json"), &config).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`")), "{name}: {error}");
    }
}

#[test]
fn learned_positions_end_where_the_table_does() {
    let (_, decoder) = load("families/gpt2", &[]);
    let record = |context: usize| {
        let mut g = Graph::new();
        let batch = BatchInputs::declare(&mut g, "t", context, context, false);
        decoder.forward(&mut g, &Params::frozen(""), &batch, false).map(|_| ())
    };
    assert!(record(40).is_ok());
    let error = record(41).unwrap_err().to_string();
    assert!(error.contains("at most 40 tokens") && error.contains("41 tokens"), "{error}");
}

#[test]
fn a_window_as_long_as_the_context_is_none() {
    let (_, decoder) = load("families/mistral", &[("sliding_window", json!(24))]);
    let ranges = |context: usize| {
        let mut g = Graph::new();
        let batch = BatchInputs::declare(&mut g, "t", context, context, true);
        decoder.forward(&mut g, &Params::frozen(""), &batch, false).unwrap();
        g.externals().filter(|(name, _)| name.ends_with("_range.24")).count()
    };
    assert_eq!((ranges(24), ranges(25)), (0, 2));
}

#[test]
fn random_weights_begin_as_transformers_begins() {
    for (name, norm, shrunk) in
        [("families/gemma2", 0.0, 1.0), ("families/gpt2", 1.0, 0.5), ("families/qwen3", 1.0, 1.0)]
    {
        let (_, decoder) = load(name, &[]);
        let mut store = Store::new(&Device::cpu());
        decoder.allocate(&mut store, "", 8).unwrap();
        models::random_parameters(&decoder, &store, "", 5).unwrap();
        for spec in decoder.parameters() {
            let values = pollster::block_on(store.read_f32(&spec.name)).unwrap();
            if spec.shape.len() == 1 {
                let expected = if spec.name.ends_with("bias") { 0.0 } else { norm };
                assert!(values.iter().all(|x| *x == expected), "{}", spec.name);
                continue;
            }
            // 2 layers: the matrices that write to GPT-2's residual stream start at 0.02 / sqrt(4).
            let out = [decoder.config.names.out, decoder.config.names.down].iter().any(|n| spec.name.contains(n));
            let expected = 0.02 * if out { shrunk } else { 1.0 };
            let n = values.len() as f64;
            let deviation = (values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n).sqrt();
            // The deviation of n normal numbers is itself within 4 of its standard errors, 1 / sqrt(2n).
            assert!((deviation / expected - 1.0).abs() < 4.0 / (2.0 * n).sqrt(), "{}: {deviation}", spec.name);
        }
    }
}
