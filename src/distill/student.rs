//! Where a student's architecture and first weights come from, and how it is written at the end.

use super::adapter;
use super::card::license_in;
use super::recipe::{Config, SaveDtype, Student};
use crate::formats::{self, Adapter, Dtype, ModelFolder, TensorSpec, Tokenizer, hub, read_json, write_safetensors};
use crate::graph::Store;
use crate::models::{self, Decoder, LayerMap, load_parameters, random_parameters};
use crate::nn::ParamSpec;
use crate::platform::fs;
use crate::{Error, Result};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A student before its weights are on a device.
pub struct Origin {
    /// The network.
    pub decoder: Decoder,
    /// One line on where it comes from, for the model card.
    pub lineage: String,
    /// SHA-256 of the source's weights, or of what makes them.
    pub digest: String,
    /// The licence that the source states, if any.
    pub license: Option<String>,
    /// Generation settings to pass on.
    pub generation_config: Value,
    weights: Weights,
    /// Merged into the weights.
    adapter: Option<Adapter>,
}

enum Weights {
    Folder(Box<ModelFolder>, Option<LayerMap>),
    Random(u64),
}

impl Origin {
    /// Opens what the recipe's `model` names. Nothing is loaded yet.
    pub fn open(student: &Student) -> Result<Origin> {
        match student {
            Student::Pretrained(path) => {
                let folder = open_model(path)?;
                let decoder = models::from_config(folder.path(), &folder.config)?;
                Ok(Origin::of_folder(folder, decoder, None, format!("continued from `{path}`")))
            }
            Student::Adapted { path, adapter } => {
                let folder = open_model(path)?;
                let decoder = models::from_config(folder.path(), &folder.config)?;
                let lineage = format!("continued from `{path}` with the adapter {}", adapter.display());
                let adapter = Adapter::open(adapter)?;
                let digest = format!("{}+{}", folder.digest(), adapter.tensors.digest());
                let origin = Origin::of_folder(folder, decoder, None, lineage);
                Ok(Origin { digest, adapter: Some(adapter), ..origin })
            }
            Student::Layers { layers_of, layers } => {
                let folder = open_model(layers_of)?;
                let whole = models::from_config(folder.path(), &folder.config)?;
                let map = LayerMap::new(layers, whole.config.num_hidden_layers)?;
                let decoder = models::from_config(folder.path(), &map.config(&whole.config.source))?;
                let lineage = format!("layers {layers:?} of `{layers_of}`, with its embeddings, final norm and head");
                Ok(Origin::of_folder(folder, decoder, Some(map), lineage))
            }
            Student::Random { config, init_seed, .. } => {
                let (place, value) = match config {
                    Config::Inline(map) => (PathBuf::from("the recipe's `model.config`"), Value::Object(map.clone())),
                    Config::Path(path) => {
                        let file = if fs::is_dir(path) { path.join("config.json") } else { path.clone() };
                        (file.clone(), read_json(&file)?)
                    }
                };
                let decoder = models::from_config(&place, &value)?;
                let lineage = format!("random weights (seed {init_seed}) from {}", place.display());
                let (digest, generation_config) = (format!("random:{init_seed}"), Value::Null);
                let (license, weights) = (None, Weights::Random(*init_seed));
                Ok(Origin { decoder, lineage, digest, license, generation_config, weights, adapter: None })
            }
        }
    }

    fn of_folder(folder: ModelFolder, decoder: Decoder, map: Option<LayerMap>, lineage: String) -> Origin {
        let digest = folder.digest();
        let generation_config = folder.generation_config.clone();
        let license = license_of(&folder);
        let weights = Weights::Folder(Box::new(folder), map);
        Origin { decoder, lineage, digest, license, generation_config, weights, adapter: None }
    }

    /// Writes the first weights into `store` under `prefix`, where [`Decoder::allocate`] made room.
    pub async fn load(&self, store: &Store, prefix: &str) -> Result<()> {
        match &self.weights {
            Weights::Folder(folder, map) => {
                load_parameters(&self.decoder, store, prefix, &folder.tensors, map.as_ref())?
            }
            Weights::Random(seed) => random_parameters(&self.decoder, store, prefix, *seed)?,
        }
        match &self.adapter {
            Some(adapter) => adapter::apply(adapter, &self.decoder, store, prefix).await,
            None => Ok(()),
        }
    }
}

/// The licence in a GGUF file's metadata or a folder's model card.
fn license_of(folder: &ModelFolder) -> Option<String> {
    match folder.gguf() {
        Some(header) => header.string("general.license").ok()?.map(str::to_owned),
        None => license_in(&fs::read_to_string(folder.path().join("README.md")).ok()?),
    }
}

/// Opens a folder, a GGUF file or a hub id.
pub fn open_model(name: &str) -> Result<ModelFolder> {
    ModelFolder::open(hub::resolve(name)?)
}

/// Writes a student as a Hugging Face folder: safetensors, config, tokenizer, generation config. `claimed` folders
/// only: the caller has made sure that nothing else is overwritten.
pub async fn write_folder(
    folder: &Path,
    decoder: &Decoder,
    store: &Store,
    prefix: &str,
    tokenizer: Option<&Tokenizer>,
    generation_config: &Value,
    dtype: SaveDtype,
) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let (dtype, torch_name) = match dtype {
        SaveDtype::Float32 => (Dtype::F32, "float32"),
        SaveDtype::Bfloat16 => (Dtype::Bf16, "bfloat16"),
        SaveDtype::Float16 => (Dtype::F16, "float16"),
    };
    let parameters: BTreeMap<String, ParamSpec> =
        decoder.parameters().into_iter().map(|p| (p.name.clone(), p)).collect();
    let stored = |p: ParamSpec| TensorSpec { dtype, shape: decoder.stored_shape(&p).to_vec(), name: p.name };
    let specs: Vec<TensorSpec> = decoder.parameters().into_iter().map(stored).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&folder.join("model.safetensors"), &specs, &metadata, async |spec| {
        let values = store.read_f32(&format!("{prefix}{}", spec.name)).await?;
        Ok(Cow::Owned(match parameters.get(&spec.name) {
            Some(parameter) => decoder.stored_values(parameter, values),
            None => values,
        }))
    })
    .await?;
    let mut config = decoder.config.source.clone();
    config["torch_dtype"] = torch_name.into();
    config["architectures"] = serde_json::json!([decoder.config.architecture]);
    if let Some(tokenizer) = tokenizer {
        tokenizer.save(folder)?;
    }
    formats::write_configs(folder, &config, generation_config)
}
