//! A model, looked at.

use super::Depth;
use crate::Result;
use crate::formats::{Bytes, Dtype, GgufHeader, MetaValue, ModelFolder, Tensors, Tokenizer};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// A model's files in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct ModelReport {
    /// The folder or file.
    pub path: PathBuf,
    /// `folder`, `gguf` or `safetensors`.
    pub format: &'static str,
    /// `config.json`, or what it would be for a GGUF file; absent where nothing says it.
    pub config: Option<Value>,
    /// Why this program could not use the model, if it could not.
    pub problem: Option<String>,
    /// Values of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors as stored.
    pub bytes: u64,
    /// The tensors by what they are for.
    pub groups: Vec<Group>,
    /// The tensors by how they are stored.
    pub dtypes: Vec<Group>,
    /// The tokenizer, if there is one.
    pub tokenizer: Option<TokenizerReport>,
    /// GGUF metadata; arrays by their length only.
    pub metadata: Map<String, Value>,
    /// Every tensor by its name in the file.
    pub tensors: Vec<TensorReport>,
    /// SHA-256 of the weights, where asked for.
    pub digest: Option<String>,
}

/// Some of a model's tensors together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// What they have in common.
    pub name: String,
    /// How many there are.
    pub tensors: usize,
    /// Their values.
    pub parameters: u64,
    /// Their bytes as stored.
    pub bytes: u64,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorReport {
    /// Name in the file.
    pub name: String,
    /// How it is stored.
    pub dtype: String,
    /// Rows first.
    pub shape: Vec<usize>,
    /// Values.
    pub parameters: u64,
    /// Bytes as stored; 0 for types that hold no weights.
    pub bytes: u64,
}

/// A model's tokenizer.
#[derive(Clone, Debug, Serialize)]
pub struct TokenizerReport {
    /// Why it does not open, if it does not; the rest is empty then.
    pub problem: Option<String>,
    /// Highest id plus one.
    pub vocab_size: usize,
    /// Token that begins a text.
    pub bos_token: Option<String>,
    /// Token that ends a text.
    pub eos_token: Option<String>,
    /// Whether conversations can be written as text.
    pub chat_template: bool,
    /// SHA-256 of tokens and merges, where asked for.
    pub digest: Option<String>,
}

pub(super) fn folder(path: &Path, depth: Depth) -> Result<ModelReport> {
    let model = ModelFolder::open(path)?;
    let mut report = report(path, "folder", listed(&model.tensors)?);
    if path.join("tokenizer.json").exists() {
        report.tokenizer = Some(tokenizer(model.tokenizer(), depth));
    }
    report.digest = depth.digest.then(|| model.digest());
    report.config = Some(model.config);
    Ok(report)
}

pub(super) fn safetensors(path: &Path, depth: Depth) -> Result<ModelReport> {
    let tensors = Tensors::open_safetensors(&[path.to_path_buf()])?;
    let mut report = report(path, "safetensors", listed(&tensors)?);
    report.digest = depth.digest.then(|| tensors.digest());
    Ok(report)
}

/// A GGUF file of any architecture: what this program could not use is shown all the same, with the reason.
pub(super) fn gguf(path: &Path, depth: Depth) -> Result<ModelReport> {
    let bytes = Bytes::map(path)?;
    let header = GgufHeader::parse(path, &bytes)?;
    let tensors = header.tensors.iter().map(|t| tensor(&t.name, t.dtype, &t.shape)).collect();
    let mut report = report(path, "gguf", tensors);
    report.metadata = header.metadata.iter().map(|(key, value)| (key.clone(), plain(value))).collect();
    if header.metadata.contains_key("tokenizer.ggml.model") {
        report.tokenizer = Some(tokenizer(Tokenizer::from_gguf(&header), depth));
    }
    match ModelFolder::from_gguf(path, bytes) {
        Ok(model) => {
            // Without the rotary factors, which a GGUF keeps as a tensor.
            report.parameters = model.tensors.parameter_count() as u64;
            report.digest = depth.digest.then(|| model.digest());
            report.config = Some(model.config);
        }
        Err(error) => report.problem = Some(error.to_string()),
    }
    Ok(report)
}

fn report(path: &Path, format: &'static str, tensors: Vec<TensorReport>) -> ModelReport {
    ModelReport {
        path: path.to_path_buf(),
        format,
        config: None,
        problem: None,
        parameters: tensors.iter().map(|t| t.parameters).sum(),
        bytes: tensors.iter().map(|t| t.bytes).sum(),
        groups: grouped(&tensors, |t| role(&t.name).to_string()),
        dtypes: grouped(&tensors, |t| t.dtype.clone()),
        tokenizer: None,
        metadata: Map::new(),
        tensors,
        digest: None,
    }
}

fn listed(tensors: &Tensors) -> Result<Vec<TensorReport>> {
    let one = |name| Ok(tensor(name, tensors.dtype(name)?, tensors.shape(name)?));
    tensors.names().map(one).collect()
}

/// The readers have checked that the sizes fit, so that the products cannot overflow.
fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> TensorReport {
    let parameters = shape.iter().product::<usize>();
    let bytes = dtype.block().map_or(0, |(values, bytes)| parameters / values * bytes);
    TensorReport {
        name: name.to_string(),
        dtype: dtype.to_string(),
        shape: shape.to_vec(),
        parameters: parameters as u64,
        bytes: bytes as u64,
    }
}

/// Groups in the order of their first members.
fn grouped(tensors: &[TensorReport], name: impl Fn(&TensorReport) -> String) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for tensor in tensors {
        let name = name(tensor);
        let index = groups.iter().position(|group| group.name == name).unwrap_or_else(|| {
            groups.push(Group { name, tensors: 0, parameters: 0, bytes: 0 });
            groups.len() - 1
        });
        groups[index].tensors += 1;
        groups[index].parameters += tensor.parameters;
        groups[index].bytes += tensor.bytes;
    }
    groups
}

/// What a tensor is for, by the names that transformers and GGUF use.
fn role(name: &str) -> &'static str {
    let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    if has(&["rope_freqs"]) {
        "rotary factors"
    } else if has(&["norm", "ln_"]) {
        "norms"
    } else if has(&["embed_tokens", "token_embd", "wte", "wpe"]) {
        "embedding"
    } else if name.starts_with("lm_head") || name.starts_with("output.") {
        "output head"
    } else if has(&["attn"]) {
        "attention"
    } else if has(&["mlp", "ffn"]) {
        "feed-forward"
    } else {
        "other"
    }
}

fn tokenizer(opened: Result<Tokenizer>, depth: Depth) -> TokenizerReport {
    let (problem, tokenizer) = match opened {
        Ok(tokenizer) => (None, Some(tokenizer)),
        Err(error) => (Some(error.to_string()), None),
    };
    let special = |name| tokenizer.as_ref().and_then(|t| t.special_token(name)).map(str::to_string);
    TokenizerReport {
        problem,
        vocab_size: tokenizer.as_ref().map_or(0, Tokenizer::vocab_size),
        bos_token: special("bos_token"),
        eos_token: special("eos_token"),
        chat_template: tokenizer.as_ref().is_some_and(|t| t.chat_template().is_some()),
        digest: tokenizer.as_ref().filter(|_| depth.digest).map(Tokenizer::digest),
    }
}

fn plain(value: &MetaValue) -> Value {
    match value {
        MetaValue::Unsigned(n) => json!(n),
        MetaValue::Signed(n) => json!(n),
        // As its author wrote it: 1e-5, not 9.99999974737875e-6.
        MetaValue::Float(x) => json!(x.to_string().parse::<f64>().unwrap_or(f64::from(*x))),
        MetaValue::Double(x) => json!(x),
        MetaValue::Bool(b) => json!(b),
        MetaValue::String(text) => json!(text),
        MetaValue::Array(values) => json!(format!("{} values", values.len())),
    }
}
