//! The result's config.json: the donor's, with what the merge changed.

use super::config::MergeConfig;
use super::model::Model;
use super::names::is_head;
use super::plan::Planned;
use super::vocabulary::Vocabulary;
use crate::Result;
use crate::formats::Dtype;
use serde_json::{Map, Value, json};

/// The keys that count layers.
const DEPTHS: [&str; 4] = ["num_hidden_layers", "n_layer", "n_layers", "num_layers"];
/// Lists of one entry a layer.
const PER_LAYER: [&str; 3] = ["layer_types", "mlp_layer_types", "no_rope_layers"];

pub(super) fn merged(
    config: &MergeConfig,
    models: &[Model],
    donor: usize,
    tensors: &[Planned],
    vocabulary: Option<&Vocabulary>,
) -> Result<Value> {
    let mut json = models[donor].folder.config.clone();
    let Some(root) = json.as_object_mut() else { return Ok(json) };
    if let [module] = &config.modules[..] {
        // Which layer of which model comes where; empty where `models` keeps them all.
        let first = module.slices.iter().filter_map(|slice| slice.sources.first());
        let order: Vec<(usize, usize)> = first
            .filter_map(|source| {
                Some((source.layers.clone()?, models.iter().position(|m| m.reference == source.model)?))
            })
            .flat_map(|(layers, model)| layers.map(move |layer| (model, layer)))
            .collect();
        if !order.is_empty() {
            restack(root, models, &order);
        }
    }
    if let Some(vocabulary) = vocabulary {
        text(root).insert("vocab_size".into(), json!(vocabulary.rows()));
        let source = &models[vocabulary.donor].folder.config;
        for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
            if let Some(id) = source.get(key) {
                root.insert(key.into(), id.clone());
            }
        }
    }
    let has_head = tensors.iter().any(|tensor| is_head(&tensor.name));
    if has_head && models.iter().any(|model| model.folder.config["tie_word_embeddings"].as_bool() == Some(true)) {
        root.insert("tie_word_embeddings".into(), json!(false));
    }
    let dtype = tensors.iter().map(|tensor| tensor.dtype).max_by_key(|dtype| match dtype {
        Dtype::F32 => (2, 0),
        other => (1, tensors.iter().filter(|tensor| tensor.dtype == *other).count()),
    });
    let name = match dtype {
        Some(Dtype::F16) => "float16",
        Some(Dtype::Bf16) => "bfloat16",
        _ => "float32",
    };
    let key = if root.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    root.insert(key.into(), json!(name));
    Ok(json)
}

/// Where the text model's settings are.
pub(super) fn text(root: &mut Map<String, Value>) -> &mut Map<String, Value> {
    let nested = root.get("text_config").is_some_and(Value::is_object);
    match nested {
        true => root.get_mut("text_config").and_then(Value::as_object_mut).expect("checked to be an object"),
        false => root,
    }
}

fn restack(root: &mut Map<String, Value>, models: &[Model], order: &[(usize, usize)]) {
    let nested = root.get("text_config").is_some_and(Value::is_object);
    let place = text(root);
    for key in DEPTHS {
        if place.contains_key(key) {
            place.insert(key.into(), json!(order.len()));
        }
    }
    for key in PER_LAYER {
        if !place.get(key).is_some_and(Value::is_array) {
            continue;
        }
        let of = |(model, layer): &(usize, usize)| {
            let config = &models[*model].folder.config;
            let config = if nested { &config["text_config"] } else { config };
            config[key][*layer].clone()
        };
        let list: Vec<Value> = order.iter().map(of).collect();
        place.insert(key.into(), Value::Array(list));
    }
}
