//! A DistillKit recipe (`DistillationRunConfig` of arcee-ai/DistillKit v1) as one of this crate's.
//!
//! [`translate`] turns one tree of YAML values into the other; [`super::Recipe::parse`] then reads and checks the
//! result as it does every recipe. Each key is carried over, is known to have no effect here (which device, which
//! library, how often files are written), or is refused with the reason; all that is refused is listed at once.
//! `docs/distillkit.md` has the table.

mod keys;
#[cfg(test)]
mod tests;

use self::keys::{DATASET, Fate, Fates, LOSS, MODEL_KWARGS, OPTIMISERS, ROOT, TEACHER, TRAINING};
use super::codec_settings;
use crate::yaml::Node;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Whether a tree is a DistillKit recipe: it names its text by `dataset.train_dataset`.
pub(super) fn is_distillkit(value: &Value) -> bool {
    value.get("dataset").and_then(|dataset| dataset.get("train_dataset")).is_some()
}

/// The recipe that the DistillKit recipe `value` means; `file` stands for it in messages.
///
/// Errors list every key that cannot be followed, each with the reason.
pub(super) fn translate(value: &Value, file: &Path) -> Result<Value> {
    let mut t = Translation { file, problems: Vec::new() };
    let mut out = t.mapping("", Some(value), ROOT);
    if !out.get("model").is_some_and(Value::is_string) {
        t.problem("model", "a model's path or hub id is required");
    }
    out.remove("project_name").filter(|name| name != "distillkit").map(|name| out.insert("project_name".into(), name));
    let training = t.training(value, &mut out);
    t.model(value);
    t.teacher(value, &mut out)?;
    t.dataset(value, &mut out);
    t.losses(value, &mut out);
    for key in ["layer_mapping", "force_hidden_state_projection", "frozen_modules", "frozen_res"] {
        if let Some(given) = value.get(key).filter(|given| !is_off(given)) {
            out.insert(key.into(), given.clone());
        }
    }
    out.insert("training_args".into(), Value::Object(training));
    match t.problems.is_empty() {
        true => Ok(Value::Object(out)),
        false => Error::file(file)
            .expected("a DistillKit recipe that can be followed")
            .found(t.problems.join("; "))
            .help("docs/distillkit.md has every key")
            .err(),
    }
}

struct Translation<'a> {
    file: &'a Path,
    problems: Vec<String>,
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) => false,
    }
}

impl Translation<'_> {
    fn problem(&mut self, key: &str, reason: &str) {
        let problem = format!("`{key}`: {reason}");
        // A teacher's data set is looked for as its records and as its text.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Checks the keys of a mapping and returns those that are the same here.
    fn mapping(&mut self, path: &str, value: Option<&Value>, fates: Fates) -> Map<String, Value> {
        let mut same = Map::new();
        let map = match value {
            None | Some(Value::Null) => return same,
            Some(Value::Object(map)) => map,
            Some(_) => {
                self.problem(path, "a mapping is expected");
                return same;
            }
        };
        for (key, value) in map.iter().filter(|(_, value)| !value.is_null()) {
            let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match fates.iter().find(|(name, _)| name == key).map(|(_, fate)| *fate) {
                Some(Fate::Same) => drop(same.insert(key.clone(), value.clone())),
                Some(Fate::Off(reason)) if !is_off(value) => self.problem(&full, reason),
                Some(_) => {}
                None => match Error::nearest(key, fates.iter().map(|(name, _)| *name)) {
                    Some(near) => self.problem(&full, &format!("unknown; did you mean `{near}`?")),
                    None => {
                        self.problem(&full, "unknown: neither DistillKit's key nor one that is known to be harmless")
                    }
                },
            }
        }
        same
    }

    /// `training_args`, and with them `sequence_length` and `seed`.
    fn training(&mut self, root: &Value, out: &mut Map<String, Value>) -> Map<String, Value> {
        let given = root.get("training_args");
        let mut same = self.mapping("training_args", given, TRAINING);
        let get = |key: &str| given.and_then(|args| args.get(key)).filter(|value| !value.is_null());
        let mut put = |key: &str, value: Option<Value>| value.map(|value| same.insert(key.to_string(), value));
        // What trl's SFTConfig says where a recipe does not.
        put("learning_rate", Some(get("learning_rate").cloned().unwrap_or(json!(2e-5))));
        put("gradient_checkpointing", Some(get("gradient_checkpointing").cloned().unwrap_or(json!(true))));
        match get("max_steps").filter(|steps| steps.as_i64().is_none_or(|steps| steps > 0)) {
            Some(steps) => put("max_steps", Some(steps.clone())),
            None => put("num_train_epochs", Some(get("num_train_epochs").cloned().unwrap_or(json!(3)))),
        };
        match get("warmup_steps").filter(|steps| !is_off(steps)) {
            Some(steps) => put("warmup_steps", Some(steps.clone())),
            None => put("warmup_ratio", get("warmup_ratio").filter(|ratio| !is_off(ratio)).cloned()),
        };
        match get("eval_strategy").and_then(Value::as_str).unwrap_or("no") {
            "no" => {}
            "steps" => {
                let steps = get("eval_steps").or(get("logging_steps")).cloned();
                put("eval_steps", Some(steps.unwrap_or(json!(10))));
            }
            _ => self.problem("training_args.eval_strategy", "`no` or `steps`: measure by `eval_steps`"),
        }
        match get("optim").map(|name| (name, OPTIMISERS.iter().find(|(known, _)| name == known))) {
            None | Some((_, Some((_, None)))) => {}
            Some((_, Some((_, Some(ours))))) => drop(put("optim", Some(json!(ours)))),
            Some((name, None)) => self.problem("training_args.optim", &format!("{name} is not among the optimisers")),
        }
        put("save_dtype", Some(json!(save_dtype(root))));
        let length = get("max_length").or(root.get("sequence_length")).cloned();
        out.extend(length.map(|length| ("sequence_length".to_string(), length)));
        let data_seed = root.get("dataset").and_then(|dataset| dataset.get("seed")).filter(|seed| !is_off(seed));
        out.insert("seed".into(), get("seed").or(data_seed).cloned().unwrap_or(json!(42)));
        same
    }

    fn model(&mut self, root: &Value) {
        self.mapping("model_kwargs", root.get("model_kwargs"), MODEL_KWARGS);
        match root.get("model_auto_class").filter(|class| !class.is_null()) {
            None => {}
            Some(class) if class == "AutoModelForCausalLM" => {}
            Some(_) => self.problem("model_auto_class", "only causal language models are read"),
        }
    }

    /// A codec is read strictly, so that a recipe made for data that it does not fit is refused before the data are.
    fn teacher(&mut self, root: &Value, out: &mut Map<String, Value>) -> Result<()> {
        let Some(teacher) = root.get("teacher").filter(|teacher| !teacher.is_null()) else {
            self.problem("teacher", "required");
            return Ok(());
        };
        let kind = teacher.get("kind").and_then(Value::as_str).unwrap_or("");
        if kind == "vllm" {
            let reason =
                "a server is asked beforehand: `potstill capture --endpoint`, then a teacher of kind `dataset`";
            self.problem("teacher.kind", reason);
            return Ok(());
        }
        self.mapping("teacher", Some(teacher), TEACHER);
        match (kind, teacher.get("path").and_then(Value::as_str)) {
            ("hf", Some(path)) => {
                self.mapping("teacher.kwargs", teacher.get("kwargs"), MODEL_KWARGS);
                out.insert("teacher".into(), json!({"kind": "live", "path": path}));
            }
            ("hf", None) => self.problem("teacher.path", "required with kind `hf`"),
            ("dataset", _) => {
                let codecs = ["logprob_compressor", "legacy_logit_compression"];
                if codecs.iter().any(|key| teacher.get(key).is_some_and(|codec| !codec.is_null())) {
                    codec_settings::codec(&Node { file: self.file, path: "teacher".into(), value: teacher })?;
                }
                if let Some(set) = self.shard_set(root) {
                    out.insert("teacher".into(), json!({"kind": "shards", "path": set}));
                }
            }
            _ => self.problem("teacher.kind", "`hf` or `dataset`"),
        }
        Ok(())
    }

    /// The shard set that `dataset.train_dataset` names.
    fn shard_set(&mut self, root: &Value) -> Option<String> {
        let path = self.disk_path(root, "train_dataset")?;
        if Path::new(&path).join("manifest.json").is_file() {
            return Some(path);
        }
        let reason = format!(
            "{path} is no shard set: make one by `potstill convert {path} SHARDS --tokenizer MODEL --config {}` and \
             name it here",
            self.file.display()
        );
        self.problem("dataset.train_dataset", &reason);
        None
    }

    /// The folder or file that `dataset.KEY` names, its split taken into account.
    fn disk_path(&mut self, root: &Value, key: &str) -> Option<String> {
        let node = root.get("dataset")?.get(key).filter(|node| !node.is_null())?;
        let text = |name: &str| node.get(name).and_then(Value::as_str);
        let field = format!("dataset.{key}");
        let Some(path) = text("disk_path") else {
            self.problem(&field, "only a `disk_path` can be read: download the data set and export it to JSON lines");
            return None;
        };
        let Some(split) = text("split") else { return Some(path.to_string()) };
        let inside = [Path::new(path).join(split), Path::new(path).join(format!("{split}.jsonl"))];
        match inside.into_iter().find(|path| path.exists()) {
            Some(path) => Some(path.display().to_string()),
            None => {
                self.problem(&field, &format!("{path} has neither a folder {split} nor {split}.jsonl"));
                None
            }
        }
    }

    fn dataset(&mut self, root: &Value, out: &mut Map<String, Value>) {
        let mut dataset = self.mapping("dataset", root.get("dataset"), DATASET);
        for (theirs, ours) in [("train_dataset", "train"), ("eval_dataset", "eval")] {
            let Some(path) = self.disk_path(root, theirs) else { continue };
            // A shard set has its tokens beside it.
            let tokens = Path::new(&path).join("tokens.jsonl");
            let found = if tokens.is_file() { tokens.display().to_string() } else { path };
            dataset.insert(ours.into(), json!(found));
        }
        let args = root.get("training_args");
        let narrow = ["assistant_only_loss", "completion_only_loss"];
        let narrow = narrow.iter().any(|key| args.and_then(|args| args.get(key)) == Some(&Value::Bool(true)));
        dataset.insert("train_on_inputs".into(), json!(!narrow));
        out.insert("dataset".into(), Value::Object(dataset));
    }

    /// Weights are divided by their sum, as DistillKit does.
    fn losses(&mut self, root: &Value, out: &mut Map<String, Value>) {
        let default = json!([
            {"function": "cross_entropy", "weight": 0.5},
            {"function": "kl", "weight": 0.5, "temperature": 1.0},
        ]);
        let given = root.get("loss_functions").filter(|losses| !losses.is_null()).unwrap_or(&default);
        let Some(items) = given.as_array().filter(|items| !items.is_empty()) else {
            return self.problem("loss_functions", "a list of at least one loss is expected");
        };
        let weight = |item: &Value| item.get("weight").and_then(Value::as_f64);
        let total: f64 = items.iter().filter_map(weight).sum();
        let mut losses = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let path = format!("loss_functions[{i}]");
            self.mapping(&path, Some(item), LOSS);
            let Some(weight) = weight(item).filter(|w| *w >= 0.0 && w.is_finite() && total > 0.0) else {
                self.problem(
                    &format!("{path}.weight"),
                    "a number of 0 or more is expected, of all together more than 0",
                );
                continue;
            };
            let function = item.get("function").and_then(Value::as_str).unwrap_or("");
            let temperature = item.get("temperature").filter(|t| !t.is_null());
            let divergence = ["kl", "jsd", "tvd"].contains(&function);
            if divergence && temperature.is_none() {
                self.problem(&format!("{path}.temperature"), "required; DistillKit has no default either");
            }
            if weight == 0.0 {
                continue;
            }
            let mut loss = Map::from_iter([
                ("function".to_string(), json!(function)),
                ("weight".to_string(), json!(weight / total)),
            ]);
            loss.extend(temperature.map(|t| ("temperature".to_string(), t.clone())));
            loss.extend(item.get("margin").filter(|m| !m.is_null()).map(|m| ("margin".to_string(), m.clone())));
            let missing = item.get("missing_probability_handling").filter(|m| !m.is_null());
            let default = divergence.then(|| json!("zero"));
            loss.extend(missing.cloned().or(default).map(|m| ("missing_probability_handling".to_string(), m)));
            losses.push(Value::Object(loss));
        }
        out.insert("loss_functions".into(), Value::Array(losses));
    }
}

/// The type that DistillKit loads the student in, which is the one it saves.
fn save_dtype(root: &Value) -> String {
    let kwargs = root.get("model_kwargs");
    let asked = ["torch_dtype", "dtype"].iter().find_map(|key| kwargs?.get(key)?.as_str());
    match asked.filter(|dtype| *dtype != "auto") {
        Some(dtype) => dtype.trim_start_matches("torch.").to_string(),
        None if root.get("use_flash_attention").and_then(Value::as_bool).unwrap_or(true) => "bfloat16".to_string(),
        None => "float32".to_string(),
    }
}
