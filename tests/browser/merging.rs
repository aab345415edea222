//! Merging from JavaScript: methods against their formulas and against mergekit's own results (tests/golden/merge), on the
//! CPU and on WebGPU; adapters, documents that name each other, tokenizers; what is refused.

use js_sys::{Array, Object, Reflect, Uint8Array};
use potstill::formats::{Dtype, ModelFolder, TensorSpec, Tensors, write_safetensors};
use potstill::platform::fs;
use potstill::random::SplitMix64;
use potstill::web::merge_models;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use wasm_bindgen_test::wasm_bindgen_test;
use web_sys::{AbortSignal, Blob};

const UP: &str = "model.layers.0.mlp.up_proj.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";
const SHAPES: [(&str, [usize; 2]); 2] = [(EMBEDDING, [9, 5]), (UP, [130, 257])];

fn js(value: &Value) -> JsValue {
    js_sys::JSON::parse(&value.to_string()).unwrap()
}

/// The values of the tensor `name` of the model `model`.
fn values(model: &str, name: &str) -> Vec<f32> {
    let seed = model.bytes().chain(name.bytes()).fold(7, |seed: u64, b| seed.wrapping_mul(31).wrapping_add(b.into()));
    let mut random = SplitMix64::new(seed);
    let (_, shape) = SHAPES.iter().find(|(own, _)| *own == name).unwrap();
    (0..shape.iter().product()).map(|_| random.normal() as f32).collect()
}

/// A safetensors file of these tensors.
async fn safetensors(tensors: Vec<(&str, Vec<usize>, Vec<f32>)>) -> Vec<u8> {
    let spec = |(name, shape, _): &(&str, Vec<usize>, Vec<f32>)| TensorSpec {
        name: name.to_string(),
        dtype: Dtype::F32,
        shape: shape.clone(),
    };
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    let path = Path::new("making.safetensors");
    let fill = async |spec: &TensorSpec| {
        let found = tensors.iter().find(|(name, ..)| *name == spec.name).unwrap();
        Ok(Cow::Owned(found.2.clone()))
    };
    write_safetensors(path, &specs, &BTreeMap::new(), fill).await.unwrap();
    fs::read(path).unwrap()
}

fn blobs(files: Vec<(&str, Vec<u8>)>) -> Object {
    let object = Object::new();
    for (name, bytes) in files {
        let parts = Array::of1(&Uint8Array::from(&bytes[..]));
        let blob = Blob::new_with_u8_array_sequence(&parts).unwrap();
        Reflect::set(&object, &name.into(), &blob).unwrap();
    }
    object
}

/// The models of these names as files that a visitor chose.
async fn chosen(names: &[&str]) -> Object {
    let object = Object::new();
    for name in names {
        let tensors = SHAPES.iter().map(|(tensor, shape)| (*tensor, shape.to_vec(), values(name, tensor))).collect();
        let config = json!({"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 9}).to_string();
        let files = blobs(vec![("config.json", config.into()), ("model.safetensors", safetensors(tensors).await)]);
        Reflect::set(&object, &(*name).into(), &files).unwrap();
    }
    object
}

async fn call(config: &JsValue, models: Option<Object>, options: JsValue) -> Result<Blob, JsValue> {
    Ok(merge_models(config.clone(), models, Some(options.unchecked_into())).await?)
}

/// What `config` makes of chosen models: the folder `result`, taken out of the tree at once.
async fn merged(config: Value, names: &[&str]) -> ModelFolder {
    let options = js(&json!({"folder": "result"}));
    call(&js(&config), Some(chosen(names).await), options).await.unwrap();
    let model = ModelFolder::open("result").unwrap();
    fs::remove("result");
    model
}

fn check(what: &str, found: &[f32], expected: impl Iterator<Item = f64>) {
    let expected: Vec<f64> = expected.collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        // A few roundings of f32 at values of up to 5.
        assert!((f64::from(*found) - expected).abs() < 3e-6, "{what}[{i}]: {found} is not {expected}");
    }
}

fn weighted(names: &[(&str, f64)]) -> Value {
    let model = |(name, weight): &(&str, f64)| json!({"model": name, "parameters": {"weight": weight}});
    names.iter().map(model).collect()
}

#[wasm_bindgen_test]
async fn sums_and_arcs_are_their_formulas() {
    let config = json!({"merge_method": "linear", "models": weighted(&[("own/a", 0.6), ("own/b", 0.3)])});
    let linear = merged(config, &["own/a", "own/b"]).await;
    let config = json!({
        "merge_method": "slerp", "base_model": "own/a", "models": [{"model": "own/b"}], "parameters": {"t": 0.35},
    });
    let slerp = merged(config, &["own/a", "own/b"]).await;
    for (name, _) in SHAPES {
        let (a, b) = (values("own/a", name), values("own/b", name));
        let pairs = || a.iter().zip(&b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        check("linear", &linear.tensors.read_f32(name).unwrap(), pairs().map(|(a, b)| (0.6 * a + 0.3 * b) / 0.9));
        let [aa, bb, ab] = pairs().fold([0.0; 3], |[x, y, z], (a, b)| [x + a * a, y + b * b, z + a * b]);
        let angle = (ab / (aa * bb).sqrt()).acos();
        let [from, to] = [0.65, 0.35].map(|share: f64| (share * angle).sin() / angle.sin());
        check("slerp", &slerp.tensors.read_f32(name).unwrap(), pairs().map(|(a, b)| from * a + to * b));
    }
}

#[wasm_bindgen_test]
async fn ties_trims_votes_and_averages() {
    let models = weighted(&[("a", 0.6), ("b", 0.5)]);
    let parameters = json!({"density": 0.4, "lambda": 1.5});
    let config = json!({"merge_method": "ties", "base_model": "base", "models": models, "parameters": parameters});
    let found = merged(config, &["base", "a", "b"]).await;
    for (name, _) in SHAPES {
        let base = values("base", name);
        let trimmed = |model: &str| {
            let change = values(model, name).iter().zip(&base).map(|(x, b)| x - b).collect::<Vec<f32>>();
            let mut sizes: Vec<f32> = change.iter().map(|x| x.abs()).collect();
            sizes.sort_by(|a, b| b.total_cmp(a));
            let least = sizes[(0.4 * change.len() as f64) as usize - 1];
            change.into_iter().map(move |x| if x.abs() >= least { f64::from(x) } else { 0.0 }).collect::<Vec<f64>>()
        };
        let changes = trimmed("a").into_iter().zip(trimmed("b")).map(|(a, b)| [(0.6, a), (0.5, b)]);
        let merged = changes.zip(&base).map(|(changes, base)| {
            let positive = changes.iter().map(|(w, x)| w * x).sum::<f64>() >= 0.0;
            let agree = changes.into_iter().filter(|(_, x)| if positive { *x > 0.0 } else { *x < 0.0 });
            let [sum, weights] = agree.fold([0.0; 2], |[sum, weights], (w, x)| [sum + w * x, weights + w]);
            f64::from(*base) + if weights > 0.0 { 1.5 * sum / weights } else { 0.0 }
        });
        check("ties", &found.tensors.read_f32(name).unwrap(), merged);
    }
}

#[wasm_bindgen_test]
async fn adapters_are_merged_and_documents_name_each_other() {
    let (a, b) = ([0.5f32, -1.0, 0.25].repeat(171)[..2 * 257 - 1].to_vec(), values("b", UP)[..2 * 130].to_vec());
    let a = [&a[..], &[2.0]].concat();
    let prefix = UP.strip_suffix(".weight").unwrap();
    let names = ["A", "B"].map(|part| format!("base_model.model.{prefix}.lora_{part}.weight"));
    let tensors = vec![(names[0].as_str(), vec![2, 257], a.clone()), (names[1].as_str(), vec![130, 2], b.clone())];
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["up_proj"]}).to_string();
    let adapter =
        blobs(vec![("adapter_config.json", config.into()), ("adapter_model.safetensors", safetensors(tensors).await)]);
    let models = chosen(&["x", "y"]).await;
    Reflect::set(&models, &"tuned".into(), &adapter).unwrap();
    let documents = json!([
        {"merge_method": "linear", "models": weighted(&[("half", 1.0), ("y", 1.0)])},
        {"name": "half", "merge_method": "passthrough", "models": [{"model": "x+tuned"}]},
    ]);
    call(&js(&documents), Some(models), js(&json!({"folder": "kept/both"}))).await.unwrap();
    let files: Vec<_> = fs::files_in("kept").iter().map(|path| path.display().to_string()).collect();
    let expected = ["README.md", "config.json", "mergekit_config.yml", "model.safetensors"];
    assert_eq!(files, expected.map(|name| format!("kept/both/{name}")));
    assert!(fs::read_to_string("kept/both/README.md").unwrap().contains("# both\n"));
    let found = ModelFolder::open("kept/both").unwrap().tensors.read_f32(UP).unwrap();
    let (x, y) = (values("x", UP), values("y", UP));
    let expected = (0..130 * 257).map(|i| {
        let (row, column) = (i / 257, i % 257);
        let change: f64 = (0..2).map(|k| f64::from(b[row * 2 + k]) * f64::from(a[k * 257 + column])).sum();
        0.5 * (f64::from(x[i]) + 3.0 * change + f64::from(y[i]))
    });
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        // The adapter's change is up to 25.
        assert!((f64::from(*found) - expected).abs() < 2e-5, "[{i}]: {found} is not {expected}");
    }
    fs::remove("kept");
}

#[wasm_bindgen_test]
async fn tokenizers_are_united_and_padded() {
    crate::training::put_files_of("cpu");
    let tokenizer = fs::read("teacher/tokenizer.json").unwrap();
    let models = Object::new();
    let rows = |name: &str| (0..341 * 2).map(|i| i as f32 * if name == "a" { 1.0 } else { -3.0 }).collect::<Vec<f32>>();
    for name in ["a", "b"] {
        let config = json!({"model_type": "llama", "num_hidden_layers": 0}).to_string();
        let weights = safetensors(vec![(EMBEDDING, vec![341, 2], rows(name))]).await;
        let mut json: Value = serde_json::from_slice(&tokenizer).unwrap();
        if name == "b" {
            let own = json!({
                "id": 340, "content": "<own>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            });
            json["added_tokens"].as_array_mut().unwrap().push(own);
        }
        let files = vec![
            ("config.json", config.into()),
            ("model.safetensors", weights),
            ("tokenizer.json", json.to_string().into()),
        ];
        Reflect::set(&models, &name.into(), &blobs(files)).unwrap();
    }
    let config = json!({
        "merge_method": "linear", "models": weighted(&[("a", 0.5), ("b", 0.5)]),
        "tokenizer": {"source": "union", "pad_to_multiple_of": 64},
    });
    call(&js(&config), Some(models), js(&json!({"folder": "result"}))).await.unwrap();
    let model = ModelFolder::open("result").unwrap();
    assert_eq!((model.config["vocab_size"].as_u64(), model.tokenizer().unwrap().vocab_size()), (Some(384), 341));
    assert_eq!(model.tokenizer().unwrap().token_to_id("<own>"), Some(340));
    let found = model.tensors.read_f32(EMBEDDING).unwrap();
    let (a, b) = (rows("a"), rows("b"));
    let both = (0..680).map(|i| f64::from(0.5 * (a[i] + b[i])));
    // `a` lacks the token: it gets the row of `b`. Padding is the mean of each model's rows.
    let own = [b[680], b[681]].map(f64::from);
    let padding = [-340.0, -341.0].repeat(384 - 341);
    let expected: Vec<f64> = both.chain(own).chain(padding).collect();
    assert_eq!(found.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), expected);
    fs::remove("result");
}

macro_rules! golden {
    ($name:literal) => {
        (
            concat!("golden/", $name),
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/merge/", $name)).as_slice(),
        )
    };
}

const GOLDEN: [(&str, &[u8]); 9] = [
    golden!("golden.safetensors"),
    golden!("base/config.json"),
    golden!("base/model.safetensors"),
    golden!("a/config.json"),
    golden!("a/model.safetensors"),
    golden!("b/config.json"),
    golden!("b/model.safetensors"),
    golden!("c/config.json"),
    golden!("c/model.safetensors"),
];
/// By case the configuration, of which golden.safetensors has the YAML.
const CASES: &str = include_str!(concat!(env!("POTSTILL_BROWSER_ASSETS"), "/merges.json"));

/// What a case makes of the models whose names it has in braces.
async fn case(config: &Value, device: &str) -> ModelFolder {
    let (models, text) = (Object::new(), config.to_string());
    for name in ["base", "a", "b", "c"].iter().filter(|name| text.contains(&format!("\"{{{name}}}\""))) {
        Reflect::set(&models, &format!("{{{name}}}").into(), &format!("golden/{name}").into()).unwrap();
    }
    let options = js(&json!({"folder": "result", "device": device}));
    call(&js(config), Some(models), options).await.unwrap_or_else(|error| panic!("{config}: {error:?}"));
    let model = ModelFolder::open("result").unwrap();
    fs::remove("result");
    model
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[wasm_bindgen_test]
async fn every_method_gives_what_mergekit_gives_on_the_cpu_and_nearly_so_on_webgpu() {
    GOLDEN.iter().for_each(|(path, bytes)| fs::write(path, bytes.to_vec()));
    let golden = Tensors::open_safetensors(&[Path::new("golden/golden.safetensors").to_owned()]).unwrap();
    let cases: BTreeMap<String, Value> = serde_json::from_str(CASES).unwrap();
    assert!(cases.len() >= 27);
    let mut wrong = Vec::new();
    for (name, config) in &cases {
        let (cpu, gpu) = (case(config, "cpu").await, case(config, "gpu").await);
        for tensor in cpu.tensors.names() {
            let expected = golden.read_f32(&format!("{name}/{tensor}")).unwrap();
            let [cpu, gpu] = [&cpu, &gpu].map(|model| model.tensors.read_f32(tensor).unwrap());
            // Known differences from mergekit: tests/merge/peers.rs.
            let known =
                [("ties_gradient", "model.norm.weight"), ("arcee_fusion", "model.layers.0.mlp.down_proj.weight")];
            let apart = difference(&cpu, &expected);
            if apart > 1e-5 && !known.contains(&(name, tensor)) {
                wrong.push(format!("{name}: {tensor} is {apart} from mergekit's"));
            }
            let most = cpu.iter().fold(0f32, |most, x| most.max(x.abs()));
            let apart = difference(&gpu, &cpu);
            if apart > 1e-5 * most {
                wrong.push(format!("{name}: {tensor} on WebGPU is {apart} of {most} from the CPU's"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    fs::remove("golden");
}

/// Kind and message.
async fn refusal(config: JsValue, options: JsValue) -> (String, String) {
    let Err(error) = call(&config, Some(chosen(&["a", "b"]).await), options).await else { panic!("merged") };
    assert!(fs::files_in("merged").is_empty(), "a refused merge left something");
    let get = |name: &str| Reflect::get(&error, &name.into()).unwrap().as_string().unwrap();
    (get("kind"), get("message"))
}

#[wasm_bindgen_test]
async fn mistakes_are_told_as_natively_all_at_once() {
    let none = || Object::new().into();
    let has = |(kind, message): (String, String), parts: &[&str]| {
        assert!(kind == "input" && parts.iter().all(|part| message.contains(part)), "{kind}: {message}");
    };
    let both = weighted(&[("a", 1.0), ("b", 1.0)]);
    let misspelt = json!({"merge_method": "linear", "models": both, "dtype": "float8", "parameters": {"weigth": 1}});
    has(refusal(js(&misspelt), none()).await, &["`dtype`", "float8", "`parameters.weigth`", "did you mean `weight`"]);
    let lists = json!([{"filter": "nowhere", "value": 1.0}, {"value": 0.5}]);
    let models = json!([{"model": "a", "parameters": {"weight": lists}}, {"model": "b", "parameters": {"weight": 1}}]);
    let unused = json!({"merge_method": "linear", "models": models});
    has(refusal(js(&unused), none()).await, &["`nowhere`", "no tensor gets this value"]);
    let data = json!([{"model": "a", "parameters": {"data": "a.txt"}}, {"model": "b"}]);
    has(refusal(js(&json!({"merge_method": "dam", "models": data})), none()).await, &["`dam`", "outside a browser"]);
    has(refusal("merge_method: linear".into(), none()).await, &["JSON", "YAML library"]);
    let one = json!({"merge_method": "linear", "models": weighted(&[("a", 1.0)])});
    has(refusal(js(&one), none()).await, &["`models.b`", "does not have"]);
    let good = json!({"merge_method": "linear", "models": both});
    has(refusal(js(&good), js(&json!({"format": "tar"}))).await, &["`tar`"]);
    fs::write("taken/x.txt", Vec::new());
    has(refusal(js(&good), js(&json!({"folder": "taken"}))).await, &["new folder", "removeFiles"]);
    fs::remove("taken");
    let stopped = Object::new();
    Reflect::set(&stopped, &"signal".into(), &AbortSignal::abort()).unwrap();
    assert_eq!(refusal(js(&good), stopped.into()).await.0, "cancelled");
}

#[wasm_bindgen_test]
async fn a_merged_model_leaves_as_a_zip_or_as_weights() {
    let config = json!({"merge_method": "linear", "models": weighted(&[("a", 1.0), ("b", 1.0)]), "dtype": "bfloat16"});
    let bytes = async |options: Value| {
        // A text of JSON does as well.
        let blob = call(&config.to_string().into(), Some(chosen(&["a", "b"]).await), js(&options)).await.unwrap();
        Uint8Array::new(&JsFuture::from(blob.array_buffer()).await.unwrap()).to_vec()
    };
    let zip = bytes(json!({})).await;
    let has = |name: &str| zip.windows(name.len()).any(|part| part == name.as_bytes());
    assert!(zip.starts_with(b"PK") && has("config.json") && has("model.safetensors") && has("# merged"));
    let weights = bytes(json!({"format": "safetensors"})).await;
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    assert_eq!(weights.len(), 8 + header + 2 * (9 * 5 + 130 * 257));
    assert!(fs::files_in("merged").is_empty());
}
