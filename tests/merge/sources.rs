//! Models of other kinds than a plain folder: with an adapter, GGUF, another vocabulary, the result of a document.

use super::{difference, filled, open, run, run_with, tiny};
use crate::common::{golden, small_config, small_model, small_tokenizer};
use potstill::formats::{Adapter, Dtype, TensorSpec, write_json, write_safetensors};
use potstill::merge::MergeOptions;
use serde_json::json;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// W + scale B A, and DoRA's rule, written out.
fn adapted(weight: &[f32], module: &str, adapter: &Adapter) -> Vec<f32> {
    let read = |part: &str| adapter.tensors.read_f32(&Adapter::stored(&format!("{module}.{part}"))).unwrap();
    let (a, b) = (read("lora_A.weight"), read("lora_B.weight"));
    let rank = adapter.config.r;
    let (inner, outer) = (a.len() / rank, b.len() / rank);
    let mut values = Vec::new();
    for i in 0..outer {
        let change =
            |j: usize| (0..rank).map(|k| f64::from(b[i * rank + k]) * f64::from(a[k * inner + j])).sum::<f64>();
        let row = (0..inner).map(|j| f64::from(weight[i * inner + j]) + adapter.config.scale() * change(j));
        let mut row: Vec<f64> = row.collect();
        if adapter.config.use_dora {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            let magnitude = f64::from(read("lora_magnitude_vector")[i]);
            row.iter_mut().for_each(|x| *x *= magnitude / length);
        }
        values.extend(row.into_iter().map(|x| x as f32));
    }
    values
}

#[test]
fn adapters_are_merged_as_values_are_read() {
    let plain = open(&golden("biases"));
    for kind in ["lora", "rslora", "dora"] {
        let folder = golden("lora").join(kind);
        let adapter = Adapter::open(&folder).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let model = format!("{}+{}", golden("biases").display(), folder.display());
        run(&format!("merge_method: passthrough\nmodels: [{{ model: '{model}' }}]"), &dir.path().join("out")).unwrap();
        let merged = open(&dir.path().join("out"));
        let (modules, whole) = adapter.contents().unwrap();
        assert!(modules.len() >= 6 && (kind != "dora" || whole.len() == 2));
        for name in merged.tensors.names() {
            let module = name.strip_suffix(".weight").filter(|module| modules.contains(*module));
            let weight = plain.tensors.read_f32(name).unwrap();
            let expected = match module {
                Some(module) => adapted(&weight, module, &adapter),
                None if whole.contains(name) => adapter.tensors.read_f32(&Adapter::stored(name)).unwrap(),
                None => weight,
            };
            // A few roundings of f32 in values below 2.
            let worst = difference(&merged.tensors.read_f32(name).unwrap(), &expected);
            assert!(worst < 2e-6, "{kind}: {name} differs by {worst}");
        }
    }
}

#[test]
fn a_gguf_is_a_model_like_any_other() {
    let path = golden("families/qwen2/model.gguf");
    let (dir, gguf) = (tempfile::tempdir().unwrap(), open(&path));
    let yaml = format!("merge_method: passthrough\ndtype: float32\nmodels: [{{ model: {} }}]", path.display());
    run(&yaml, &dir.path().join("out")).unwrap();
    let merged = open(&dir.path().join("out"));
    for name in gguf.tensors.names() {
        assert_eq!(merged.tensors.read_f32(name).unwrap(), gguf.tensors.read_f32(name).unwrap(), "{name}");
    }
}

#[test]
fn ranges_of_every_storage_are_those_of_the_whole() {
    for path in ["families/qwen2/model.gguf", "tiny_llama.gguf", "stored_bf16", "stored_f16"] {
        let model = open(&golden(path));
        for name in model.tensors.names() {
            let whole = model.tensors.read_f32(name).unwrap();
            for (start, length) in [(0, 1), (1, 70), (31, 2), (5, whole.len()), (whole.len() - 1, 1)] {
                let end = (start + length).min(whole.len());
                let mut part = vec![0.0; end.saturating_sub(start)];
                if model.tensors.read_f32_range(name, start, &mut part).is_ok() {
                    assert_eq!(part, whole[start..end], "{path} {name} from {start}");
                }
            }
            assert!(model.tensors.read_f32_range(name, whole.len(), &mut [0.0]).is_err());
        }
    }
}

/// A model whose tokenizer has one token more and whose table has three rows of padding.
fn wider_model(folder: &Path) {
    small_model(folder, 16, 1, 8);
    let model = open(folder);
    let table = "model.embed_tokens.weight";
    let mut rows = model.tensors.read_f32(table).unwrap();
    rows.extend((0..4 * 16).map(|i| 10.0 + (i / 16) as f32));
    let f32s = |name: &str, shape: Vec<usize>| TensorSpec { name: name.to_string(), dtype: Dtype::F32, shape };
    let specs: Vec<TensorSpec> = model
        .tensors
        .names()
        .map(|name| f32s(name, if name == table { vec![344, 16] } else { model.tensors.shape(name).unwrap().to_vec() }))
        .collect();
    let values: BTreeMap<String, Vec<f32>> = model
        .tensors
        .names()
        .map(|name| {
            (name.to_string(), if name == table { rows.clone() } else { model.tensors.read_f32(name).unwrap() })
        })
        .collect();
    drop(model);
    let path = folder.join("model.safetensors");
    let fill = async |spec: &TensorSpec| Ok(Cow::Borrowed(&values[&spec.name][..]));
    pollster::block_on(write_safetensors(&path, &specs, &BTreeMap::new(), fill)).unwrap();
    let mut config = small_config(16, 1);
    config["vocab_size"] = json!(344);
    write_json(&folder.join("config.json"), &config).unwrap();
    let path = folder.join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let token = json!({ "id": 340, "content": "<|extra|>", "single_word": false, "lstrip": false, "rstrip": false,
                        "normalized": false, "special": true });
    tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
    write_json(&path, &tokenizer).unwrap();
}

#[test]
fn rows_follow_the_tokenizer_that_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let [narrow, wide] = ["narrow", "wide"].map(|name| dir.path().join(name));
    small_model(&narrow, 16, 1, 3);
    wider_model(&wide);
    assert_eq!(small_tokenizer().vocab_size(), 340);
    let merged = |tokenizer: &str| {
        let out = dir.path().join("out");
        let _ = std::fs::remove_dir_all(&out);
        let yaml = format!(
            "merge_method: linear\nbase_model: {0}\n{tokenizer}\nmodels:\n- {{ model: {0}, parameters: {{ weight: 1 }} }}\n\
             - {{ model: {1}, parameters: {{ weight: 3 }} }}\n",
            narrow.display(),
            wide.display()
        );
        run(&yaml, &out).map(|_| open(&out))
    };
    let error = merged("").unwrap_err().to_string();
    assert!(error.contains("[340, 16]") && error.contains("`tokenizer_source`"), "{error}");
    let table = "model.embed_tokens.weight";
    let read = |folder: &Path| open(folder).tensors.read_f32(table).unwrap();
    let (narrow_rows, wide_rows) = (read(&narrow), read(&wide));
    let mean: Vec<f32> = narrow_rows.iter().zip(&wide_rows).map(|(a, b)| 0.25 * a + 0.75 * b).collect();

    let base = merged("tokenizer_source: base").unwrap();
    assert_eq!(base.tensors.shape(table).unwrap(), [340, 16]);
    assert!(difference(&base.tensors.read_f32(table).unwrap(), &mean) < 1e-6);

    let wider = merged(&format!("tokenizer: {{ source: {} }}", wide.display())).unwrap();
    assert_eq!((wider.tensors.shape(table).unwrap(), &wider.config["vocab_size"]), (&[344, 16][..], &json!(344)));
    let rows = wider.tensors.read_f32(table).unwrap();
    assert!(difference(&rows[..340 * 16], &mean) < 1e-6);
    // One model alone has the token and the padding.
    assert!(difference(&rows[340 * 16..], &wide_rows[340 * 16..]) < 1e-5);
    assert_eq!(wider.tokenizer().unwrap().token_to_id("<|extra|>"), Some(340));

    let padded = merged("tokenizer: { source: base, pad_to_multiple_of: 64 }").unwrap();
    let rows = padded.tensors.read_f32(table).unwrap();
    assert_eq!(rows.len(), 384 * 16);
    // The wide model has rows 341 to 343 but no token for them; padding is each model's mean row.
    let column = |rows: &[f32], count: usize| {
        rows.iter().step_by(16).take(count).map(|x| f64::from(*x)).sum::<f64>() / count as f64
    };
    let expected = 0.25 * column(&narrow_rows, 340) + 0.75 * column(&wide_rows, 344);
    assert!((f64::from(rows[383 * 16]) - expected).abs() < 1e-5, "{} {expected}", rows[383 * 16]);
}

#[test]
fn documents_feed_each_other_and_leave_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let linear = |models: &[(&str, f64)]| {
        let item =
            |(model, weight): &(&str, f64)| format!("- {{ model: '{model}', parameters: {{ weight: {weight} }} }}\n");
        format!("merge_method: linear\nmodels:\n{}", models.iter().map(item).collect::<String>())
    };
    let yaml =
        format!("{}---\nname: half\n{}", linear(&[("half", 1.0), ("{c}", 1.0)]), linear(&[("{a}", 1.0), ("{b}", 3.0)]));
    run(&filled(&yaml), &out).unwrap();
    let name = "model.layers.2.mlp.up_proj.weight";
    let [a, b, c] = ["a", "b", "c"].map(|model| open(&tiny(model)).tensors.read_f32(name).unwrap());
    let expected: Vec<f32> = (0..a.len()).map(|i| (0.25 * a[i] + 0.75 * b[i] + c[i]) / 2.0).collect();
    assert!(difference(&open(&out).tensors.read_f32(name).unwrap(), &expected) < 1e-6);
    assert!(!out.join("intermediate").exists());
}

#[test]
fn a_model_in_many_files_is_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let yaml = filled(
        "{ merge_method: dare_ties, base_model: '{base}', out_dtype: bfloat16, models: [
           { model: '{a}', parameters: { weight: 0.6, density: 0.5 } },
           { model: '{b}', parameters: { weight: 0.4, density: 0.7 } }] }",
    );
    let (one, many) = (dir.path().join("one"), dir.path().join("many"));
    assert_eq!(run(&yaml, &one).unwrap().files, 1);
    let options = MergeOptions { shard_size: 900, memory: 64 << 20, ..MergeOptions::default() };
    let merged = run_with(&yaml, &many, &options).unwrap();
    assert!(merged.files > 3, "{merged:?}");
    let (one, many) = (open(&one), open(&many));
    assert_eq!(one.digest(), many.digest());
    assert_eq!((&one.config, &one.config["torch_dtype"]), (&many.config, &serde_json::Value::Null));
    assert_eq!(one.config["dtype"], "bfloat16");
}
