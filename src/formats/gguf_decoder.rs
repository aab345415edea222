//! What a GGUF file of a decoder means in transformers' terms: tensor names, q/k row order, config. The architectures
//! are those whose GGUF differs from Llama's by little: Qwen 2 and 3 keep the rows of q and k, Qwen 3 has their norms.
//! Facts: llama.cpp's `convert_hf_to_gguf.py` (`LlamaModel`, `Qwen2Model`, `Qwen3Model`) and
//! `gguf-py/gguf/tensor_mapping.py`, read backwards.

use super::gguf::{GgufHeader, GgufTensor, MetaValue};
use crate::{Error, Result};
use serde_json::{Map, Value, json};

/// The factors by which llama3-scaled rotary frequencies were divided; not a weight in transformers, so not listed as
/// one.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The architectures that are read, by `general.architecture`, which is transformers' `model_type`, with transformers'
/// class.
const ARCHITECTURES: [(&str, &str); 3] =
    [("llama", "LlamaForCausalLM"), ("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM")];

/// The header of a file of one of these architectures, whose keys begin with the architecture's name.
struct Keys<'a> {
    header: &'a GgufHeader,
    architecture: &'static str,
    class: &'static str,
}

impl<'a> Keys<'a> {
    fn of(header: &'a GgufHeader) -> Result<Keys<'a>> {
        let found = header.string("general.architecture")?;
        let known = ARCHITECTURES.iter().find(|(name, _)| Some(*name) == found);
        if let Some(&(architecture, class)) = known {
            let keys = Keys { header, architecture, class };
            if header.u64(&keys.key("expert_count"))?.unwrap_or(0) == 0 {
                return Ok(keys);
            }
        }
        let names = ARCHITECTURES.map(|(name, _)| format!("\"{name}\"")).join(", ");
        Error::file(header.path())
            .field("`general.architecture`")
            .expected(format!("one of {names}, without experts"))
            .found(found.unwrap_or("none"))
            .err()
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn missing(&self, name: &str) -> Error {
        Error::file(self.header.path()).field(format!("`{}`", self.key(name))).expected("a value").found("none").error()
    }

    fn u64(&self, name: &str) -> Result<Option<u64>> {
        self.header.u64(&self.key(name))
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        self.header.number(&self.key(name))
    }

    fn need(&self, name: &str) -> Result<u64> {
        match self.u64(name)?.ok_or_else(|| self.missing(name))? {
            0 => {
                let field = format!("`{}`", self.key(name));
                Error::file(self.header.path()).field(field).expected("a positive number").found(0).err()
            }
            value => Ok(value),
        }
    }

    /// The key/value heads: as many as query heads when unsaid. A list, one a layer, is accepted when its entries
    /// agree.
    fn key_value_heads(&self) -> Result<u64> {
        let key = self.key("attention.head_count_kv");
        let listed = match self.header.metadata.get(&key) {
            None => return self.need("attention.head_count"),
            Some(MetaValue::Array(list)) => list,
            Some(_) => return self.need("attention.head_count_kv"),
        };
        match listed.first() {
            Some(MetaValue::Unsigned(heads)) if *heads > 0 && listed.iter().all(|v| *v == listed[0]) => Ok(*heads),
            Some(MetaValue::Signed(heads)) if *heads > 0 && listed.iter().all(|v| *v == listed[0]) => Ok(*heads as u64),
            _ => Error::file(self.header.path())
                .field(format!("`{key}`"))
                .expected("the same positive number of heads in every layer")
                .found("a list of others")
                .err(),
        }
    }

    fn head_dim(&self, hidden: u64, heads: u64) -> Result<u64> {
        let rotated = self.u64("rope.dimension_count")?;
        let head_dim = match self.u64("attention.key_length")? {
            Some(length) => length,
            None => rotated.unwrap_or(hidden / heads),
        };
        if head_dim == 0 || rotated.is_some_and(|rotated| rotated != head_dim) {
            return Error::file(self.header.path())
                .field(format!("`{}`", self.key("rope.dimension_count")))
                .expected(format!("the whole head, {head_dim}"))
                .found(rotated.map_or("none".to_string(), |r| r.to_string()))
                .err();
        }
        Ok(head_dim)
    }

    fn rope_scaling(&self, theta: f64, factors: Option<&[f32]>) -> Result<Value> {
        if let Some(factors) = factors {
            return llama3_scaling(factors, theta).ok_or_else(|| {
                let expected = "frequency factors of rope type llama3";
                Error::file(self.header.path())
                    .field(format!("tensor `{ROPE_FACTORS}`"))
                    .expected(expected)
                    .found("others")
                    .error()
            });
        }
        let factor = self.number("rope.scaling.factor")?;
        match (self.header.string(&self.key("rope.scaling.type"))?, factor) {
            (None | Some("none"), _) => Ok(Value::Null),
            (Some(kind), Some(factor)) => {
                let mut scaling = json!({"rope_type": kind, "factor": factor});
                if let Some(length) = self.u64("rope.scaling.original_context_length")? {
                    scaling["original_max_position_embeddings"] = json!(length);
                }
                Ok(scaling)
            }
            (Some(_), None) => Err(self.missing("rope.scaling.factor")),
        }
    }
}

/// The transformers name of a GGUF tensor, or none for a name the file's architecture does not have.
pub(super) fn hf_name(header: &GgufHeader, gguf: &str) -> Option<String> {
    name_in(header.string("general.architecture").ok()?.unwrap_or("llama"), gguf)
}

fn name_in(architecture: &str, gguf: &str) -> Option<String> {
    let (stem, kind) = gguf.rsplit_once('.')?;
    if kind != "weight" && kind != "bias" {
        return None;
    }
    let whole = match stem {
        "token_embd" => Some("model.embed_tokens"),
        "output_norm" => Some("model.norm"),
        "output" => Some("lm_head"),
        _ => None,
    };
    if let Some(name) = whole {
        return Some(format!("{name}.{kind}"));
    }
    let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_q_norm" if architecture == "qwen3" => "self_attn.q_norm",
        "attn_k_norm" if architecture == "qwen3" => "self_attn.k_norm",
        "attn_output" => "self_attn.o_proj",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.{kind}"))
}

/// The heads whose rows llama.cpp interleaved in this tensor (weights and biases of q and k), if it did: of Llama it
/// rotates neighbours (2i, 2i + 1) where transformers rotates (i, i + head_dim/2).
pub(super) fn interleaved_heads(header: &GgufHeader, name: &str) -> Result<Option<usize>> {
    let keys = Keys::of(header)?;
    let heads = match name {
        _ if keys.architecture != "llama" => return Ok(None),
        _ if name.contains(".attn_q.") => keys.need("attention.head_count")?,
        _ if name.contains(".attn_k.") => keys.key_value_heads()?,
        _ => return Ok(None),
    };
    Ok(Some(heads as usize))
}

/// A `config.json` for transformers. `rope_factors` is the content of [`ROPE_FACTORS`] if the file has it.
pub(super) fn config(header: &GgufHeader, rope_factors: Option<&[f32]>) -> Result<Value> {
    let keys = Keys::of(header)?;
    let tensor = |name: &str| header.tensors.iter().find(|t| t.name == name);
    let embedding = tensor("token_embd.weight")
        .ok_or_else(|| Error::file(header.path()).expected("a tensor `token_embd.weight`").found("none").error())?;
    let hidden = keys.need("embedding_length")?;
    let heads = keys.need("attention.head_count")?;
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let epsilon = "attention.layer_norm_rms_epsilon";
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| config.insert(key.to_string(), value);
    set("architectures", json!([keys.class]));
    set("model_type", json!(keys.architecture));
    set("hidden_size", json!(hidden));
    set("intermediate_size", json!(keys.need("feed_forward_length")?));
    set("num_hidden_layers", json!(keys.need("block_count")?));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(keys.key_value_heads()?));
    set("head_dim", json!(keys.head_dim(hidden, heads)?));
    set("vocab_size", json!(embedding.shape[0]));
    set("max_position_embeddings", json!(keys.need("context_length")?));
    set("hidden_act", json!("silu"));
    set("rms_norm_eps", json!(keys.number(epsilon)?.ok_or_else(|| keys.missing(epsilon))?));
    set("rope_theta", json!(theta));
    set("rope_scaling", keys.rope_scaling(theta, rope_factors)?);
    // Qwen 2 has no such field: its biases are part of the family.
    if keys.architecture != "qwen2" {
        set("attention_bias", json!(tensor("blk.0.attn_q.bias").is_some()));
    }
    if keys.architecture == "llama" {
        set("mlp_bias", json!(tensor("blk.0.ffn_up.bias").is_some()));
    }
    set("tie_word_embeddings", json!(tensor("output.weight").is_none()));
    for (ours, theirs) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        set(ours, json!(header.u64(&format!("tokenizer.ggml.{theirs}_token_id"))?));
    }
    Ok(Value::Object(config))
}

/// A `generation_config.json`: the tokens that begin, end and pad. A chat model may end a turn on other tokens than a
/// text.
pub(super) fn generation_config(header: &GgufHeader) -> Result<Value> {
    let id = |name: &str| header.u64(&format!("tokenizer.ggml.{name}_token_id"));
    let mut ends: Vec<u64> = [id("eos")?, id("eot")?, id("eom")?].into_iter().flatten().collect();
    ends.dedup();
    let mut generation = Map::new();
    generation.extend(id("bos")?.map(|id| ("bos_token_id".to_string(), json!(id))));
    generation.extend(id("padding")?.map(|id| ("pad_token_id".to_string(), json!(id))));
    match ends[..] {
        [] => {}
        [end] => drop(generation.insert("eos_token_id".into(), json!(end))),
        _ => drop(generation.insert("eos_token_id".into(), json!(ends))),
    }
    Ok(Value::Object(generation))
}

/// Recovers llama3's parameters from its factors f, one per frequency of wavelength w:
/// f = 1 for short w, `factor` for long w, and between them 1/f = (1 - s)/factor + s with s = (L/w - low)/(high -
/// low). Only the ratios of L, low and high matter, so L is taken as Llama 3's 8192. Then s is a line in 1/w, which
/// two interior points determine; with fewer the published low = 1, high = 4 are tried. None when the factors do not
/// come out again.
fn llama3_scaling(factors: &[f32], theta: f64) -> Option<Value> {
    const L: f64 = 8192.0;
    let inverse_wavelength = |i: usize| theta.powf(-(i as f64) / factors.len() as f64) / std::f64::consts::TAU;
    let factor = factors.iter().copied().map(f64::from).fold(1.0, f64::max);
    if !factor.is_finite() || factors.is_empty() {
        return None;
    }
    let points: Vec<(f64, f64)> = factors
        .iter()
        .enumerate()
        .filter(|(_, f)| f64::from(**f) > 1.0 + 1e-6 && f64::from(**f) < factor * (1.0 - 1e-6))
        .map(|(i, f)| (inverse_wavelength(i), (1.0 / f64::from(*f) - 1.0 / factor) / (1.0 - 1.0 / factor)))
        .collect();
    let (low, high) = match points[..] {
        [(x0, s0), .., (x1, s1)] => {
            let slope = (s0 - s1) / (x0 - x1);
            let low = L * x0 - s0 * L / slope;
            (four_digits(low), four_digits(low + L / slope))
        }
        _ => (1.0, 4.0),
    };
    let again = |i: usize| {
        let cycles = L * inverse_wavelength(i);
        let s = ((cycles - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / ((1.0 - s) / factor + s)
    };
    let agrees = factors.iter().enumerate().all(|(i, f)| (again(i) / f64::from(*f) - 1.0).abs() < 1e-3);
    agrees.then(|| {
        json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
               "original_max_position_embeddings": L as u64})
    })
}

/// Rounds away the f32 noise of the stored factors.
fn four_digits(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// An error for a tensor whose name the file's architecture does not have.
pub(super) fn unknown_name(header: &GgufHeader, tensor: &GgufTensor) -> Error {
    Error::file(header.path())
        .field(format!("tensor `{}`", tensor.name))
        .expected("a tensor that the file's architecture has")
        .found("another name")
        .error()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// transformers' `_compute_llama3_parameters` as factors, for head_dim 64 and given (factor, low, high, L).
    fn factors(theta: f64, factor: f64, low: f64, high: f64, length: f64) -> Vec<f32> {
        let wavelength = |i: usize| std::f64::consts::TAU * theta.powf(i as f64 / 32.0);
        let one = |w: f64| match w {
            w if w < length / high => 1.0,
            w if w > length / low => factor,
            w => 1.0 / ((1.0 - (length / w - low) / (high - low)) / factor + (length / w - low) / (high - low)),
        };
        (0..32).map(|i| one(wavelength(i)) as f32).collect()
    }

    #[test]
    fn llama3_parameters_come_back_from_their_factors() {
        let published = llama3_scaling(&factors(5e5, 32.0, 1.0, 4.0, 8192.0), 5e5).unwrap();
        assert_eq!(
            published,
            json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 8192})
        );
        // Half the length with the same factors is the same curve as the length with doubled ones.
        let other = llama3_scaling(&factors(1e4, 8.0, 1.0, 4.0, 4096.0), 1e4).unwrap();
        assert_eq!((&other["low_freq_factor"], &other["high_freq_factor"]), (&json!(2.0), &json!(8.0)));
        assert_eq!(llama3_scaling(&[1.0, 5.0, 2.0, 8.0], 1e4), None);
        assert_eq!(llama3_scaling(&[f32::NAN, 2.0, 3.0, 8.0], 1e4), None);
    }

    #[test]
    fn names_follow_transformers() {
        let name = |gguf: &str| name_in("llama", gguf);
        assert_eq!(name("blk.12.attn_q.bias").unwrap(), "model.layers.12.self_attn.q_proj.bias");
        assert_eq!(name("output.weight").unwrap(), "lm_head.weight");
        assert_eq!(name("blk.x.attn_q.weight"), None);
        assert_eq!(name("blk.0.ffn_gate_exps.weight"), None);
        assert_eq!(name("blk.0.attn_q_norm.weight"), None);
        assert_eq!(name_in("qwen3", "blk.0.attn_q_norm.weight").unwrap(), "model.layers.0.self_attn.q_norm.weight");
    }
}
