//! Adapters against PEFT: logits and gradients of LoRA, rsLoRA and DoRA on a tiny Llama, and files that go both ways.
//! Golden adapters and the script that made them are in tests/golden/.

use crate::common::{Golden, golden, gpus, recipe, relative_error};
use potstill::data::packing::{Batch, IGNORE};
use potstill::data::tokens::NO_ROUTE;
use potstill::device::{Device, Precision};
use potstill::distill::Recipe;
use potstill::distill::batch::{write_training_batch, write_weights};
use potstill::distill::recipe::LossFunction;
use potstill::distill::step::{StepSpec, provide};
use potstill::distill::student::Origin;
use potstill::distill::trained::Trained;
use potstill::formats::{Adapter, ModelFolder};
use potstill::graph::{Graph, Plan, Runner, Store};
use potstill::models::{self, Decoder, load_parameters};
use potstill::nn::{BatchInputs, Params};
use potstill::ops::{self, Layout};
use potstill::optim::{Optimiser, RING_AT, Settings};

/// The issue's bound for f32.
const TOLERANCE: f64 = 1e-4;

/// Each adapter's folder and the recipe's `lora` that trains one like it.
const CASES: [(&str, &str); 3] = [
    ("lora", "{ r: 4, lora_alpha: 6 }"),
    ("rslora", "{ r: 3, lora_alpha: 5, use_rslora: true, target_modules: [q_proj, v_proj, mlp.down_proj] }"),
    ("dora", "{ r: 4, lora_alpha: 8, use_dora: true, modules_to_save: [lm_head, model.embed_tokens] }"),
];

fn with_lora(lora: &str) -> Recipe {
    recipe(&format!(
        "{{ output_path: out, sequence_length: 24, model: {}, dataset: {{ train: text }}, lora: {lora}, \
         training_args: {{ max_steps: 1 }} }}",
        golden("biases").display()
    ))
}

fn folder(name: &str) -> std::path::PathBuf {
    golden("lora").join(name)
}

/// The batch of biases/golden.safetensors: whole sequences of `context` rows.
fn batch(values: &Golden, context: usize) -> Batch {
    let (ids, labels) = (values.i32("input_ids"), values.i32("labels"));
    let first = |row: usize| (row / context * context) as u32;
    Batch {
        tokens: ids.iter().map(|&id| id as u32).collect(),
        positions: (0..ids.len()).map(|row| row as u32 - first(row)).collect(),
        labels: labels.iter().map(|&label| if label < 0 { IGNORE } else { label as u32 }).collect(),
        query_range: (0..ids.len()).map(|row| [first(row), row as u32 + 1]).collect(),
        key_range: (0..ids.len()).map(|row| [row as u32, first(row) + context as u32]).collect(),
        row_id: (0..ids.len() as u64).collect(),
        route: vec![NO_ROUTE; ids.len()],
        valid: labels.iter().filter(|&&label| label >= 0).count(),
        valid_bytes: None,
    }
}

/// Logits of `decoder` with what is in `store`, adapted if `trained` has adapters.
fn logits(decoder: &Decoder, store: &mut Store, trained: &Trained, batch: &Batch, context: usize) -> Vec<f32> {
    let mut g = Graph::new();
    let inputs = BatchInputs::declare(&mut g, "train", batch.tokens.len(), context, true);
    let params = Params { lora: trained.lora.as_ref(), ..Params::frozen("") };
    let hidden = decoder.forward(&mut g, &params, &inputs, false).unwrap();
    let weight = decoder.head_weight(&mut g, &params);
    let logits = ops::matmul(&mut g, Layout::NT, hidden, weight);
    g.output("logits", logits);
    provide(store, &g).unwrap();
    write_training_batch(store, "train", batch).ok();
    let mut runner = Runner::new(Plan::new(&g).unwrap(), store, &mut Vec::new()).unwrap();
    runner.run().unwrap();
    pollster::block_on(runner.read_f32("logits")).unwrap()
}

fn check(device: &Device, name: &str, lora: &str, recompute: bool) {
    let what = format!("{name} on {}", device.name());
    let (adapter, expected) =
        (Adapter::open(&folder(name)).unwrap(), Golden::open(&folder(name).join("golden.safetensors")));
    let batch = batch(&Golden::open(&golden("biases/golden.safetensors")), 24);
    let base = ModelFolder::open(golden("biases")).unwrap();
    let decoder = models::from_config(base.path(), &base.config).unwrap();
    let trained = Trained::of(&with_lora(lora), &decoder).unwrap();
    let mut store = Store::new(device);
    let groups = trained.allocate(&decoder, &mut store, 24).unwrap();
    load_parameters(&decoder, &store, "", &base.tensors, None).unwrap();
    // What the recipe trains is what PEFT trains, name for name and shape for shape.
    let params = trained.parameters(&decoder);
    let mut names: Vec<String> = params.iter().map(|p| Adapter::stored(&p.name)).collect();
    names.sort();
    assert_eq!(names, adapter.tensors.names().collect::<Vec<_>>(), "{what}");
    for p in &params {
        adapter.tensors.expect_shape(&Adapter::stored(&p.name), &p.shape).unwrap();
        store.write(&p.name, &adapter.tensors.read_f32(&Adapter::stored(&p.name)).unwrap()).unwrap();
    }
    Optimiser::new(Settings::adamw(0.9, 0.95, 1e-8, 0.0, 1.0), &mut store, &groups).unwrap();
    let losses = vec![LossFunction::cross_entropy(1.0)];
    let spec = StepSpec {
        student: decoder.clone(),
        trained: trained.clone(),
        teachers: Vec::new(),
        shared: false,
        vocabulary: decoder.config.vocab_size,
        batch: 2,
        context: 24,
        recompute,
        precision: Precision::F32,
        losses,
    };
    let graph = spec.training(device.caps()).unwrap();
    provide(&mut store, &graph).unwrap();
    let found = logits(&decoder, &mut store, &trained, &batch, 24);
    let error = relative_error(&expected.f32("logits"), &found);
    assert!(error < TOLERANCE, "{what}: logits are off by {error:e}");
    write_training_batch(&store, "train", &batch).unwrap();
    write_weights(&store, "train", &batch, 1.0 / batch.valid as f64).unwrap();
    store.write(RING_AT, &[0u32]).unwrap();
    Runner::new(Plan::new(&graph).unwrap(), &store, &mut Vec::new()).unwrap().run().unwrap();
    for p in &params {
        let found = pollster::block_on(store.read_f32(&Graph::grad_name(&p.name))).unwrap();
        let error = relative_error(&expected.f32(&format!("grad.{}", Adapter::stored(&p.name))), &found);
        assert!(error < TOLERANCE, "{what}: the gradient of {} is off by {error:e}", p.name);
    }
    let gradients = store.names().filter(|name| name.starts_with("grad:")).count();
    assert_eq!(gradients, params.len(), "{what}: no others get a gradient");
}

#[test]
fn the_cpu_gives_the_logits_and_gradients_of_peft() {
    CASES.iter().for_each(|(name, lora)| check(&Device::cpu(), name, lora, false));
    CASES.iter().for_each(|(name, lora)| check(&Device::cpu(), name, lora, true));
}

#[test]
fn every_gpu_gives_the_logits_and_gradients_of_peft() {
    for gpu in gpus() {
        CASES.iter().for_each(|(name, lora)| check(&gpu, name, lora, *name == "dora"));
    }
}

#[test]
fn an_adapter_merged_into_its_model_gives_the_logits_of_peft() {
    let batch = batch(&Golden::open(&golden("biases/golden.safetensors")), 24);
    for (name, _) in CASES {
        let model = format!("{{ path: {}, adapter: {} }}", golden("biases").display(), folder(name).display());
        let recipe = recipe(&format!(
            "{{ output_path: out, sequence_length: 24, model: {model}, dataset: {{ train: text }}, \
             training_args: {{ max_steps: 1 }} }}"
        ));
        let origin = Origin::open(&recipe.model).unwrap();
        let mut store = Store::new(&Device::cpu());
        origin.decoder.allocate(&mut store, "", 24).unwrap();
        pollster::block_on(origin.load(&store, "")).unwrap();
        let found = logits(&origin.decoder, &mut store, &Trained::default(), &batch, 24);
        let expected = Golden::open(&folder(name).join("golden.safetensors"));
        let error = relative_error(&expected.f32("logits"), &found);
        assert!(error < TOLERANCE, "{name}: logits are off by {error:e}");
    }
}

#[test]
fn adapters_that_do_not_fit_are_refused_by_name() {
    let decoder = |name: &str| {
        let folder = ModelFolder::open(golden(name)).unwrap();
        models::from_config(folder.path(), &folder.config).unwrap()
    };
    let refused = [
        (
            "biases",
            "{ target_modules: [q_prog] }",
            "`lora.target_modules`: expected names of modules: found \"q_prog\"",
        ),
        ("biases", "{ target_modules: q_proj }", "linear layers to adapt: found none that fits"),
        ("biases", "{ target_modules: '(' }", "expected a regular expression"),
        ("biases", "{ r: 9, target_modules: [k_proj, q_proj] }", "at most 8"),
        ("biases", "{ layers_to_transform: [0, 2] }", "expected layers from 0 to 1: found 2"),
        ("biases", "{ modules_to_save: [lm_haed] }", "did you mean `lm_head`?"),
        ("mha_tied", "{ modules_to_save: [lm_head] }", "embedding and head at once"),
        ("mha_tied", "{ modules_to_save: [embed_tokens] }", "embedding and head at once"),
    ];
    for (model, lora, message) in refused {
        let error = Trained::of(&with_lora(lora), &decoder(model)).unwrap_err().to_string();
        assert!(error.contains(message), "{lora}: {error}");
    }
    let chosen = |lora: &str| {
        let trained = Trained::of(&with_lora(lora), &decoder("biases")).unwrap();
        trained.lora.unwrap().modules.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(chosen("{ target_modules: '.*1.*(q|v)_proj' }").len(), 2);
    assert_eq!(chosen("{ target_modules: [q_proj], layers_to_transform: 1 }"), ["model.layers.1.self_attn.q_proj"]);
    assert_eq!(chosen("{ target_modules: all-linear, modules_to_save: [q_proj] }").len(), 12);
}

#[test]
fn a_damaged_or_foreign_adapter_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let copy = |changed: &dyn Fn(String) -> String| {
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(folder("dora").join(name), dir.path().join(name)).unwrap();
        }
        let path = dir.path().join("adapter_config.json");
        std::fs::write(&path, changed(std::fs::read_to_string(&path).unwrap())).unwrap();
        Adapter::open(dir.path())
    };
    assert_eq!(copy(&|text| text).unwrap().config.scale(), 2.0);
    for (old, new, key) in [
        ("\"LORA\"", "\"IA3\"", "peft_type"),
        ("\"r\": 4", "\"r\": 0", "r"),
        ("\"lora_alpha\": 8", "\"lora_alpha\": null", "lora_alpha"),
        ("\"use_dora\": true", "\"use_dora\": 1", "use_dora"),
        ("\"alpha_pattern\": {}", "\"alpha_pattern\": {\"q_proj\": 3}", "alpha_pattern"),
        ("\"bias\": \"none\"", "\"bias\": \"all\"", "bias"),
    ] {
        let error = copy(&|text| {
            assert!(text.contains(old), "{old}");
            text.replace(old, new)
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains(&format!("adapter_config.json: `{key}`")), "{error}");
    }
    // A rank that is not the tensors'.
    copy(&|text| text.replace("\"r\": 4", "\"r\": 5")).unwrap();
    let recipe = recipe(&format!(
        "{{ output_path: out, sequence_length: 24, model: {{ path: {}, adapter: {} }}, dataset: {{ train: text }}, \
         training_args: {{ max_steps: 1 }} }}",
        golden("biases").display(),
        dir.path().display()
    ));
    let origin = Origin::open(&recipe.model).unwrap();
    let mut store = Store::new(&Device::cpu());
    origin.decoder.allocate(&mut store, "", 24).unwrap();
    let error = pollster::block_on(origin.load(&store, "")).unwrap_err().to_string();
    assert!(error.contains("lora_A") && error.contains("shape [5, "), "{error}");
}
