//! A GGUF file's tokenizer metadata as a `tokenizer.json` and `tokenizer_config.json`.
//!
//! Facts: key names from ggml's `docs/gguf.md`; regular expressions by `tokenizer.ggml.pre` from llama.cpp's
//! `llama-vocab.cpp` and from the models' own tokenizer.json files; SentencePiece merges by score as transformers
//! derives them.

use super::gguf::{GgufHeader, MetaValue};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// ggml's token types.
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The two files' contents.
pub(super) fn tokenizer_json(header: &GgufHeader) -> Result<(Value, Map<String, Value>)> {
    let vocab = Vocab::read(header)?;
    let mut json = match header.string("tokenizer.ggml.model")? {
        Some("gpt2") => byte_level(header, &vocab)?,
        Some("llama") => sentence_piece(header, &vocab)?,
        found => {
            let found = found.unwrap_or("none");
            return complaint(header, "tokenizer.ggml.model").expected("\"gpt2\" or \"llama\"").found(found).err();
        }
    };
    json["version"] = json!("1.0");
    json["truncation"] = Value::Null;
    json["padding"] = Value::Null;
    json["added_tokens"] = vocab.added_tokens();
    Ok((json, config(header, &vocab)?))
}

fn complaint(header: &GgufHeader, key: &str) -> crate::error::Complaint {
    Error::file(header.path()).field(format!("`{key}`"))
}

struct Vocab<'a> {
    tokens: Vec<&'a str>,
    types: Vec<i64>,
}

impl<'a> Vocab<'a> {
    fn read(header: &'a GgufHeader) -> Result<Self> {
        let key = "tokenizer.ggml.tokens";
        let mut tokens = header.strings(key)?.ok_or_else(|| {
            complaint(header, key).expected("a vocabulary").found("none").help("a tokenizer folder is needed").error()
        })?;
        let types = integers(header, "tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
        if types.len() != tokens.len() {
            let expected = format!("{} entries, one a token", tokens.len());
            return complaint(header, "tokenizer.ggml.token_type").expected(expected).found(types.len()).err();
        }
        // Converters fill the vocabulary up to the rows of the embedding with tokens that the tokenizer never had.
        while let Some(last) = tokens.len().checked_sub(1) {
            if types[last] != UNUSED || tokens[last] != format!("[PAD{last}]") {
                break;
            }
            tokens.pop();
        }
        let mut ids = HashMap::new();
        for (id, token) in tokens.iter().enumerate() {
            if let Some(other) = ids.insert(*token, id) {
                let found = format!("{token:?} at {other} and {id}");
                return complaint(header, key).expected("each token once").found(found).err();
            }
        }
        Ok(Vocab { tokens, types })
    }

    fn json(&self) -> Value {
        self.tokens.iter().enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect::<Map<_, _>>().into()
    }

    fn added_tokens(&self) -> Value {
        let added = self.tokens.iter().zip(&self.types).enumerate();
        let added = added.filter(|(_, (_, kind))| **kind == CONTROL || **kind == USER_DEFINED);
        let added = added.map(|(id, (token, kind))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": *kind == CONTROL})
        });
        added.collect()
    }

    /// The token under a metadata key that holds an id.
    fn named(&self, header: &GgufHeader, key: &str) -> Result<Option<(u64, &'a str)>> {
        let Some(id) = header.u64(key)? else { return Ok(None) };
        match usize::try_from(id).ok().and_then(|id| self.tokens.get(id)) {
            Some(token) => Ok(Some((id, token))),
            None => complaint(header, key).expected(format!("an id below {}", self.tokens.len())).found(id).err(),
        }
    }
}

fn integers(header: &GgufHeader, key: &str) -> Result<Option<Vec<i64>>> {
    let Some(values) = header.array(key)? else { return Ok(None) };
    let integer = |value: &MetaValue| match value {
        MetaValue::Signed(value) => Some(*value),
        MetaValue::Unsigned(value) => i64::try_from(*value).ok(),
        _ => None,
    };
    let values: Option<Vec<i64>> = values.iter().map(integer).collect();
    values.map(Some).ok_or_else(|| complaint(header, key).expected("an array of integers").error())
}

fn bpe(vocab: Value, merges: Value) -> Value {
    json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
           "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
           "vocab": vocab, "merges": merges})
}

fn byte_level_step(prefix: bool, use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": use_regex})
}

fn split(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

fn byte_level(header: &GgufHeader, vocab: &Vocab) -> Result<Value> {
    let pre = header.string("tokenizer.ggml.pre")?.unwrap_or("default");
    let prefix = header.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
    let bytes = |use_regex: bool| byte_level_step(prefix, use_regex);
    let (llama3, qwen2) = (matches!(pre, "llama-bpe" | "llama3" | "llama-v3"), pre == "qwen2");
    let steps = match pre {
        "gpt-2" => vec![bytes(true)],
        "smollm" | "starcoder" | "refact" => vec![json!({"type": "Digits", "individual_digits": true}), bytes(true)],
        "default" => [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]
            .map(split)
            .into_iter()
            .chain([bytes(false)])
            .collect(),
        _ if llama3 => vec![split(LLAMA3), bytes(false)],
        _ if qwen2 => vec![split(QWEN2), bytes(false)],
        _ => {
            let expected = "default, gpt-2, smollm, starcoder, refact, llama-bpe or qwen2";
            let help = "give the model as a Hugging Face folder with its tokenizer.json instead";
            return complaint(header, "tokenizer.ggml.pre").expected(expected).found(pre).help(help).err();
        }
    };
    let key = "tokenizer.ggml.merges";
    let merges = header.strings(key)?.ok_or_else(|| complaint(header, key).expected("merges").found("none").error())?;
    let pairs = merges.iter().map(|merge| {
        let (left, right) = merge.split_once(' ').ok_or_else(|| {
            complaint(header, key).expected("two tokens with a space between").found(format!("{merge:?}")).error()
        })?;
        Ok(json!([left, right]))
    });
    let mut model = bpe(vocab.json(), pairs.collect::<Result<Value>>()?);
    model["ignore_merges"] = json!(llama3);
    Ok(json!({
        "normalizer": if qwen2 { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": post_processor(header, vocab, llama3)?,
        "decoder": bytes(true),
        "model": model,
    }))
}

fn sentence_piece(header: &GgufHeader, vocab: &Vocab) -> Result<Value> {
    let mut model = bpe(vocab.json(), merges_by_score(header, vocab)?);
    let unknown = vocab.named(header, "tokenizer.ggml.unknown_token_id")?;
    model["unk_token"] = json!(unknown.map_or("<unk>", |(_, token)| token));
    model["fuse_unk"] = json!(true);
    model["byte_fallback"] = json!(true);
    let prefix = header.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": post_processor(header, vocab, true)?,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }))
}

/// SentencePiece joins the neighbours whose union has the best score. As BPE: every split of every token into two
/// tokens is a merge, the best score first; among equals, longer left parts first, as transformers orders them.
fn merges_by_score(header: &GgufHeader, vocab: &Vocab) -> Result<Value> {
    let key = "tokenizer.ggml.scores";
    let scores = header.array(key)?.unwrap_or_default();
    if scores.len() < vocab.tokens.len() {
        let expected = format!("{} scores, one a token", vocab.tokens.len());
        return complaint(header, key).expected(expected).found(scores.len()).err();
    }
    let joins = |id: usize| matches!(vocab.types[id], NORMAL | USER_DEFINED);
    let ids: HashMap<&str, usize> =
        vocab.tokens.iter().enumerate().filter(|(id, _)| joins(*id)).map(|(i, t)| (*t, i)).collect();
    let mut merges = Vec::new();
    for (id, token) in vocab.tokens.iter().enumerate().filter(|(id, _)| joins(*id)) {
        let MetaValue::Float(score) = scores[id] else {
            return complaint(header, key).expected("32-bit floats").found(format!("{:?}", scores[id])).err();
        };
        let first = merges.len();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                merges.push((score, left, right, (*l, *r)));
            }
        }
        merges[first..].sort_by_key(|merge| merge.3);
    }
    let rank = |m: &(f32, &str, &str, (usize, usize))| (m.1.chars().count(), m.2.chars().count());
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| rank(b).cmp(&rank(a))));
    Ok(merges.iter().map(|(_, left, right, _)| json!([left, right])).collect())
}

/// The tokens put around a text: none, or a template with beginning- and end-of-text tokens.
fn post_processor(header: &GgufHeader, vocab: &Vocab, bos_by_default: bool) -> Result<Value> {
    let around = |flag: &str, default: bool, id: &str| match header.bool(flag)?.unwrap_or(default) {
        true => vocab.named(header, id),
        false => Ok(None),
    };
    let bos = around("tokenizer.ggml.add_bos_token", bos_by_default, "tokenizer.ggml.bos_token_id")?;
    let eos = around("tokenizer.ggml.add_eos_token", false, "tokenizer.ggml.eos_token_id")?;
    if bos.is_none() && eos.is_none() {
        return Ok(Value::Null);
    }
    let piece = |sequence: &str, kind: u32| {
        let special =
            |token: Option<(u64, &str)>| token.map(|(_, t)| json!({"SpecialToken": {"id": t, "type_id": kind}}));
        let text = json!({"Sequence": {"id": sequence, "type_id": kind}});
        [special(bos), Some(text), special(eos)].into_iter().flatten().collect::<Vec<_>>()
    };
    let specials = [bos, eos].into_iter().flatten();
    let specials: Map<_, _> =
        specials.map(|(id, t)| (t.to_string(), json!({"id": t, "ids": [id], "tokens": [t]}))).collect();
    let pair = [piece("A", 0), piece("B", 1)].concat();
    Ok(json!({"type": "TemplateProcessing", "single": piece("A", 0), "pair": pair, "special_tokens": specials}))
}

fn config(header: &GgufHeader, vocab: &Vocab) -> Result<Map<String, Value>> {
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    for (name, key) in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
    {
        if let Some((_, token)) = vocab.named(header, &format!("tokenizer.ggml.{key}_token_id"))? {
            config.insert(name.into(), json!(token));
        }
    }
    if let Some(architecture) = header.string("general.architecture")?
        && let Some(length) = header.u64(&format!("{architecture}.context_length"))?
    {
        config.insert("model_max_length".into(), json!(length));
    }
    if let Some(template) = header.string("tokenizer.chat_template")? {
        config.insert("chat_template".into(), json!(template));
    }
    Ok(config)
}
