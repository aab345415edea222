//! A model on disk: a Hugging Face folder or a GGUF file, opened the same way.

use super::dtype::Dtype;
use super::files::{Bytes, only_file_with_extension, read_json, read_json_if_present, write_json};
use super::gguf::GgufHeader;
use super::{Tensors, Tokenizer, gguf_decoder};
use crate::platform::fs;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// An opened model: configuration read, weights mapped. The tokenizer is made when asked for.
#[derive(Debug)]
pub struct ModelFolder {
    path: PathBuf,
    /// `config.json`, or what it would be for a GGUF file.
    pub config: Value,
    /// `generation_config.json`, or what a GGUF file says of it; an empty object if nothing.
    pub generation_config: Value,
    /// The weights under their transformers names.
    pub tensors: Tensors,
    gguf: Option<GgufHeader>,
}

impl ModelFolder {
    /// Opens a folder with `config.json` and safetensors, or a `.gguf` file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if fs::is_dir(path) {
            return Self::open_folder(path);
        }
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            return Self::from_gguf(path, Bytes::map(path)?);
        }
        let found = if fs::exists(path) { "another file" } else { "nothing of this name" };
        Error::file(path).expected("a folder with config.json and safetensors, or a .gguf file").found(found).err()
    }

    fn open_folder(path: &Path) -> Result<Self> {
        let config = path.join("config.json");
        if !fs::exists(&config) {
            let complaint = Error::file(path).expected("a model folder with config.json").found("none in it");
            return match only_file_with_extension(path, "gguf") {
                Some(gguf) => complaint.help(format!("name the GGUF file itself: {}", gguf.display())).err(),
                None => complaint.err(),
            };
        }
        Ok(ModelFolder {
            path: path.to_path_buf(),
            config: read_json(&config)?,
            generation_config: read_json_if_present(&path.join("generation_config.json"))?.unwrap_or(json!({})),
            tensors: Tensors::open_folder(path)?,
            gguf: None,
        })
    }

    /// A GGUF file whose bytes are already there; `path` serves messages.
    pub fn from_gguf(path: &Path, bytes: Bytes) -> Result<Self> {
        let header = GgufHeader::parse(path, &bytes)?;
        let factors = match header.tensors.iter().find(|t| t.name == gguf_decoder::ROPE_FACTORS) {
            Some(tensor) if tensor.dtype == Dtype::F32 => {
                let mut values = vec![0.0; tensor.range.len() / 4];
                Dtype::F32.decode(&bytes[tensor.range.clone()], &mut values);
                Some(values)
            }
            Some(tensor) => {
                let field = format!("tensor `{}`", tensor.name);
                return Error::file(path).field(field).expected(Dtype::F32).found(tensor.dtype).err();
            }
            None => None,
        };
        let config = gguf_decoder::config(&header, factors.as_deref())?;
        let generation_config = gguf_decoder::generation_config(&header)?;
        let tensors = Tensors::from_gguf(&header, bytes)?;
        Ok(ModelFolder { path: path.to_path_buf(), config, generation_config, tensors, gguf: Some(header) })
    }

    /// The folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The header of a GGUF file.
    pub fn gguf(&self) -> Option<&GgufHeader> {
        self.gguf.as_ref()
    }

    /// Opens the tokenizer that belongs to the model.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.gguf {
            Some(header) => Tokenizer::from_gguf(header),
            None => Tokenizer::from_folder(&self.path),
        }
    }

    /// The tokens that end a text: `eos_token_id` (one or several) of generation_config.json, else of config.json.
    pub fn eos_ids(&self) -> Vec<u32> {
        let ids = [&self.generation_config, &self.config].map(|json| &json["eos_token_id"]);
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let listed = ids.into_iter().find(|value| !value.is_null());
        match listed {
            Some(Value::Array(several)) => several.iter().filter_map(id).collect(),
            Some(one) => id(one).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// [`Tensors::digest`]: which weights these are.
    pub fn digest(&self) -> String {
        self.tensors.digest()
    }
}

/// Writes `config.json` and `generation_config.json` (unless empty) into `folder`, atomically each.
pub fn write_configs(folder: &Path, config: &Value, generation_config: &Value) -> Result<()> {
    write_json(&folder.join("config.json"), config)?;
    match generation_config.as_object() {
        Some(map) if !map.is_empty() => write_json(&folder.join("generation_config.json"), generation_config),
        _ => Ok(()),
    }
}
