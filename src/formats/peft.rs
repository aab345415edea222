//! Adapters as PEFT stores them: a folder with `adapter_config.json` and `adapter_model.safetensors`, whose names are
//! those of the model behind `base_model.model.`.

use super::files::{read_json, write_json};
use super::safetensors_file::{TensorSpec, write_safetensors};
use super::tensors::Tensors;
use crate::platform::fs;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The files of an adapter's folder.
const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
/// What stands before every name in the file.
const PREFIX: &str = "base_model.model.";
/// Settings that change what an adapter computes and that this crate does not know: each must be absent, false, null,
/// `none` or empty.
const UNKNOWN: [&str; 12] = [
    "alpha_pattern",
    "rank_pattern",
    "bias",
    "lora_bias",
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "megatron_config",
    "arrow_config",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
];

/// The head's name in transformers.
pub(crate) const HEAD: &str = "lm_head";

/// What `adapter_config.json` says, under PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// The model it belongs to, if that has a name.
    pub base_model_name_or_path: Option<String>,
    /// The rank.
    pub r: usize,
    /// B A is multiplied by this over `r` (or its root).
    pub lora_alpha: f64,
    /// The adapted modules.
    pub target_modules: Vec<String>,
    /// The modules trained whole.
    pub modules_to_save: Vec<String>,
    /// A head that is tied to a whole-trained embedding follows it; PEFT parts them otherwise.
    pub ensure_weight_tying: bool,
    /// DoRA.
    pub use_dora: bool,
    /// The scale is `lora_alpha` over the root of `r`.
    pub use_rslora: bool,
    /// The model's checkpoints hold the adapted weights as [in, out] (GPT-2).
    pub fan_in_fan_out: bool,
}

/// An adapter that was opened.
#[derive(Debug)]
pub struct Adapter {
    /// Its settings.
    pub config: AdapterConfig,
    /// Its tensors, under the file's names ([`Adapter::stored`]).
    pub tensors: Tensors,
    path: PathBuf,
}

impl AdapterConfig {
    /// What B A is multiplied by.
    pub fn scale(&self) -> f64 {
        self.lora_alpha / if self.use_rslora { (self.r as f64).sqrt() } else { self.r as f64 }
    }

    fn to_json(&self) -> Value {
        let alpha = if self.lora_alpha.fract() == 0.0 { json!(self.lora_alpha as i64) } else { json!(self.lora_alpha) };
        let mut json = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model_name_or_path,
            "inference_mode": true,
            "r": self.r,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": self.target_modules,
            "modules_to_save": if self.modules_to_save.is_empty() { Value::Null } else { json!(self.modules_to_save) },
            "use_dora": self.use_dora,
            "use_rslora": self.use_rslora,
            "fan_in_fan_out": self.fan_in_fan_out,
            "init_lora_weights": true,
            "rank_pattern": {},
            "alpha_pattern": {},
        });
        // Only where it is needed: older versions of PEFT refuse what they do not know.
        if self.ensure_weight_tying {
            json["ensure_weight_tying"] = json!(true);
        }
        json
    }

    fn read(path: &Path) -> Result<AdapterConfig> {
        let json = read_json(path)?;
        let wrong = |key: &str, expected: &str| {
            let found = json.get(key).map_or("nothing".to_owned(), Value::to_string);
            let complaint = Error::file(path).field(format!("`{key}`")).expected(expected).found(found);
            complaint.help("take a LoRA or DoRA adapter that PEFT saved").error()
        };
        if json.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            return Err(wrong("peft_type", "\"LORA\""));
        }
        let is_default = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text == "none",
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if let Some(key) = UNKNOWN.iter().find(|key| !json.get(**key).is_none_or(is_default)) {
            return Err(wrong(key, "PEFT's default"));
        }
        let flag = |key: &str| match json.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| wrong(key, "true or false")),
        };
        // A list, or one text: a regular expression, which only PEFT needs to read again.
        let names = |key: &str| match json.get(key) {
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Some(Value::String(text)) => vec![text.clone()],
            _ => Vec::new(),
        };
        let rank = json.get("r").and_then(Value::as_u64).filter(|r| (1..1 << 20).contains(r));
        let alpha = json.get("lora_alpha").and_then(Value::as_f64).filter(|alpha| alpha.is_finite());
        Ok(AdapterConfig {
            base_model_name_or_path: json.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
            r: rank.ok_or_else(|| wrong("r", "a rank of at least 1"))? as usize,
            lora_alpha: alpha.ok_or_else(|| wrong("lora_alpha", "a number"))?,
            target_modules: names("target_modules"),
            modules_to_save: names("modules_to_save"),
            ensure_weight_tying: flag("ensure_weight_tying")?,
            use_dora: flag("use_dora")?,
            use_rslora: flag("use_rslora")?,
            fan_in_fan_out: flag("fan_in_fan_out")?,
        })
    }
}

impl Adapter {
    /// Opens the adapter in `folder`.
    ///
    /// Errors name the setting that this crate cannot follow, or the file that is missing or damaged.
    pub fn open(folder: &Path) -> Result<Adapter> {
        let config = AdapterConfig::read(&folder.join(FILES[0]))?;
        let tensors = Tensors::open_safetensors(&[folder.join(FILES[1])])?;
        Ok(Adapter { config, tensors, path: folder.to_path_buf() })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name in the file of parameter `name` of the model or of an adapted module.
    pub fn stored(name: &str) -> String {
        format!("{PREFIX}{name}")
    }

    /// The adapted modules and the parameters stored whole. The copy of a whole embedding that PEFT stores for a head that
    /// follows it is none of them.
    ///
    /// Errors name a tensor that is neither.
    pub fn contents(&self) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
        let (mut modules, mut whole) = (BTreeSet::new(), BTreeSet::new());
        let parts = [".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"];
        for name in self.tensors.names() {
            let Some(own) = name.strip_prefix(PREFIX) else {
                let complaint = Error::file(self.path.join(FILES[1])).field(format!("tensor `{name}`"));
                return complaint.expected(format!("names that begin with `{PREFIX}`")).found("another").err();
            };
            match parts.iter().find_map(|part| own.strip_suffix(part)) {
                Some(module) => _ = modules.insert(module.to_owned()),
                None => _ = whole.insert(own.to_owned()),
            }
        }
        let named = |module: &String| module == HEAD || module.ends_with(&format!(".{HEAD}"));
        if self.config.ensure_weight_tying && !self.config.modules_to_save.iter().any(named) {
            whole.remove(&format!("{HEAD}.weight"));
        }
        Ok((modules, whole))
    }
}

/// Writes an adapter's folder. `arrays` are named as in the model ([`Adapter::stored`] is applied here); `fill` answers
/// for each of those names.
pub async fn write_adapter(
    folder: &Path,
    config: &AdapterConfig,
    arrays: &[TensorSpec],
    mut fill: impl AsyncFnMut(&str) -> Result<Vec<f32>>,
) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let stored = |array: &TensorSpec| TensorSpec { name: Adapter::stored(&array.name), ..array.clone() };
    let stored: Vec<TensorSpec> = arrays.iter().map(stored).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&folder.join(FILES[1]), &stored, &metadata, async |spec| {
        Ok(Cow::Owned(fill(spec.name.strip_prefix(PREFIX).unwrap_or(&spec.name)).await?))
    })
    .await?;
    write_json(&folder.join(FILES[0]), &config.to_json())
}
