//! A recipe written out: every key with its value, defaults and all.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::*;
use crate::Result;
use crate::device::Precision;

/// Keys that may change when a run is resumed, because they decide where and how often it is written and what runs
/// it, not what it computes. So may a teacher's `weights`.
const FREE: [&str; 5] =
    ["project_name", "output_path", "device", "training_args.save_steps", "training_args.save_total_limit"];

impl Recipe {
    /// The recipe with every default filled in, under the keys it is read by. Reading it again gives an equal recipe.
    pub fn to_json(&self) -> Value {
        let mut root = Map::new();
        let mut put = |key: &str, value: Value| root.insert(key.to_string(), value);
        if let Some(name) = &self.project_name {
            put("project_name", json!(name));
        }
        put("output_path", json!(self.output_path));
        put("seed", json!(self.seed));
        put("device", json!(self.device));
        put("sequence_length", json!(self.sequence_length));
        put("model", self.model.to_json());
        match &self.teachers[..] {
            [] => None,
            [one] => put("teacher", one.to_json(false)),
            several => put("teacher", several.iter().map(|teacher| teacher.to_json(true)).collect()),
        };
        put("dataset", self.dataset.to_json());
        self.masks.put(&mut root);
        let mut put = |key: &str, value: Value| root.insert(key.to_string(), value);
        if let Some(lora) = &self.lora {
            put("lora", lora.to_json());
        }
        put("loss_functions", self.loss_functions.iter().map(|loss| loss.to_json()).collect());
        if let Some(mapping) = &self.layer_mapping {
            put("layer_mapping", mapping.to_json());
        }
        if self.force_hidden_state_projection {
            put("force_hidden_state_projection", json!(true));
        }
        put("training_args", self.training_args.to_json());
        Value::Object(root)
    }

    /// [`Recipe::to_json`] as YAML.
    pub fn to_yaml(&self) -> Result<String> {
        crate::yaml::to_yaml(&self.to_json())
    }

    /// The recipe as one text per key path, like `training_args.learning_rate` = `0.0005`: what a checkpoint keeps.
    /// Keys that may change when a run is resumed are left out. Text, so that no number is changed by being stored.
    pub fn canonical(&self) -> BTreeMap<String, String> {
        let mut leaves = BTreeMap::new();
        flatten("", &self.to_json(), &mut leaves);
        let of_teacher = |key: &str| key.starts_with("teacher") && key.ends_with(".weights");
        leaves.retain(|key, _| !FREE.contains(&key.as_str()) && !of_teacher(key));
        leaves
    }
}

fn flatten(path: &str, value: &Value, leaves: &mut BTreeMap<String, String>) {
    match value {
        // The order of these counts: they stay together.
        Value::Object(map) if !map.is_empty() && !path.ends_with("lr_multipliers") => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&path, value, leaves);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (i, value) in items.iter().enumerate() {
                flatten(&format!("{path}[{i}]"), value, leaves);
            }
        }
        _ => {
            leaves.insert(path.to_string(), value.to_string());
        }
    }
}

/// The first name of `value`.
pub(super) fn name<T: PartialEq>(names: Names<T>, value: T) -> &'static str {
    names.iter().find(|(_, other)| *other == value).map_or("", |(name, _)| name)
}

impl Student {
    fn to_json(&self) -> Value {
        match self {
            Student::Pretrained(path) => json!(path),
            Student::Adapted { path, adapter } => json!({"path": path, "adapter": adapter}),
            Student::Layers { layers_of, layers } => json!({"layers_of": layers_of, "layers": layers}),
            Student::Random { config, init_seed, tokenizer } => {
                let config = match config {
                    Config::Path(path) => json!(path),
                    Config::Inline(map) => Value::Object(map.clone()),
                };
                match tokenizer {
                    Some(path) => json!({"config": config, "init_seed": init_seed, "tokenizer": path}),
                    None => json!({"config": config, "init_seed": init_seed}),
                }
            }
        }
    }
}

impl Dataset {
    fn to_json(&self) -> Value {
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.to_string(), value);
        put("train", json!(self.train));
        if !self.eval.is_empty() {
            put("eval", json!(self.eval));
        }
        match &self.split {
            Split::File => put("split", json!("file")),
            Split::Paragraphs => put("split", json!("paragraphs")),
            Split::Marker(marker) => put("split", json!({"marker": marker})),
        };
        match self.holdout {
            Holdout::Nothing => None,
            Holdout::LastSequences(count) => put("holdout", json!({"sequences": count})),
            Holdout::LastFraction(fraction) => put("holdout", json!({"fraction": fraction})),
            Holdout::Documents { fraction, .. } => put("holdout", json!({"documents": fraction})),
        };
        put("train_on_inputs", json!(self.train_on_inputs));
        put("append_eos", json!(self.append_eos));
        put("shuffle", json!(self.shuffle));
        if let Some(field) = &self.route_field {
            put("route_field", json!(field));
        }
        put("long_documents", json!(name(LONG_DOCUMENTS, self.long_documents)));
        Value::Object(map)
    }
}

impl TrainingArgs {
    fn to_json(&self) -> Value {
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.to_string(), value);
        put("per_device_train_batch_size", json!(self.per_device_train_batch_size));
        put("gradient_accumulation_steps", json!(self.gradient_accumulation_steps));
        put("learning_rate", json!(self.learning_rate));
        put("lr_scheduler_type", json!(name(SCHEDULERS, self.lr_scheduler_type)));
        match self.warmup {
            Warmup::Steps(steps) => put("warmup_steps", json!(steps)),
            Warmup::Ratio(ratio) => put("warmup_ratio", json!(ratio)),
        };
        put("min_lr_ratio", json!(self.min_lr_ratio));
        put("weight_decay", json!(self.weight_decay));
        self.put_optimiser(&mut map);
        let mut put = |key: &str, value: Value| map.insert(key.to_string(), value);
        put("max_grad_norm", json!(self.max_grad_norm));
        match self.length {
            Length::Steps(steps) => put("max_steps", json!(steps)),
            Length::Epochs(epochs) => put("num_train_epochs", json!(epochs)),
        };
        if let Some(steps) = self.eval_steps {
            put("eval_steps", json!(steps));
        }
        if let Some(samples) = self.eval_samples {
            put("eval_samples", json!(samples));
        }
        put("logging_steps", json!(self.logging_steps));
        put("save_steps", json!(self.save_steps));
        put("save_total_limit", json!(self.save_total_limit));
        put("gradient_checkpointing", json!(self.gradient_checkpointing));
        // Left out where it changes nothing, so that runs of recipes that had no such key go on.
        match self.precision {
            Precision::F32 => {}
            Precision::Bf16 => drop(put("bf16", json!(true))),
            Precision::F16 => drop(put("fp16", json!(true))),
        }
        put("save_dtype", json!(name(SAVE_DTYPES, self.save_dtype)));
        Value::Object(map)
    }
}
