//! Text to token ids and back, over the `tokenizers` crate; read from a Hugging Face folder or a GGUF file, saved for
//! transformers.

use super::files::{read_json_if_present, write_atomically, write_json};
use super::gguf::GgufHeader;
use super::spelling::Spelling;
use super::{tokenizer_checks, tokenizer_gguf};
use crate::digest::hex;
use crate::platform::fs;
use crate::platform::parallel::*;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A tokenizer with its special tokens and chat template.
#[derive(Clone)]
pub struct Tokenizer {
    place: PathBuf,
    inner: tokenizers::Tokenizer,
    /// The text of tokenizer.json, saved again as it came.
    json: Vec<u8>,
    /// tokenizer_config.json.
    config: Map<String, Value>,
    merges: Vec<(String, String)>,
    token_bytes: Vec<u32>,
    spelling: Spelling,
}

/// What a token stands for, whatever its tokenizer's spelling.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TokenText {
    /// Bytes of text.
    Bytes(Vec<u8>),
    /// What is cut out of a text before the rest is tokenised.
    Added(String),
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({}, {} tokens)", self.place.display(), self.vocab_size())
    }
}

impl Tokenizer {
    /// Opens the tokenizer of a Hugging Face folder: `tokenizer.json`, and beside it, where present,
    /// `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja` (which, as in transformers, wins
    /// over the template in the config).
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        if !fs::exists(&path) {
            let help = "save it once with transformers' `AutoTokenizer.from_pretrained(...).save_pretrained(...)`";
            return Error::file(folder).expected("tokenizer.json").found("none").help(help).err();
        }
        Self::from_file(&path)
    }

    /// The same from the path of a `tokenizer.json`, with its neighbours.
    pub fn from_file(path: &Path) -> Result<Self> {
        let json = fs::read(path).map_err(Error::io("read", path))?;
        let mut config = Map::new();
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let neighbour = path.with_file_name(name);
            match read_json_if_present(&neighbour)? {
                Some(Value::Object(map)) => config.extend(map),
                Some(other) => return Error::file(neighbour).expected("a JSON object").found(other).err(),
                None => {}
            }
        }
        let template = path.with_file_name("chat_template.jinja");
        if fs::exists(&template) {
            let text = fs::read_to_string(&template).map_err(Error::io("read", &template))?;
            config.insert("chat_template".into(), text.into());
        }
        Self::from_json(path, json, config)
    }

    /// The tokenizer in a GGUF file's metadata: kinds `gpt2` (byte-level BPE) and `llama` (SentencePiece BPE).
    pub fn from_gguf(header: &GgufHeader) -> Result<Self> {
        let (json, config) = tokenizer_gguf::tokenizer_json(header)?;
        let json = serde_json::to_vec(&json).map_err(|e| Error::internal(e.to_string()))?;
        Self::from_json(header.path(), json, config)
    }

    /// From the text of a `tokenizer.json` and the content of a `tokenizer_config.json`; `place` is for messages.
    pub fn from_json(place: &Path, json: Vec<u8>, config: Map<String, Value>) -> Result<Self> {
        let wrong = |e: &dyn fmt::Display| Error::file(place).expected("a tokenizer").found(e).error();
        let value: Value = serde_json::from_slice(&json).map_err(|e| wrong(&e))?;
        let merges = tokenizer_checks::check(place, &value)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&json).map_err(|e| wrong(&e))?;
        // Some published files truncate or pad; here every token of a text is wanted and no other.
        inner.with_truncation(None).map_err(|e| wrong(&e))?;
        inner.with_padding(None);
        let spelling = Spelling::of(&value["decoder"]);
        let token_bytes = token_bytes(&inner, &spelling);
        Ok(Tokenizer { place: place.to_path_buf(), inner, json, config, merges, token_bytes, spelling })
    }

    /// The content of its tokenizer.json.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.json).map_err(|e| Error::internal(e.to_string()))
    }

    /// The content of its tokenizer_config.json.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Pairs of tokens that become one, the first ones first; none for models without merges.
    pub fn merges(&self) -> &[(String, String)] {
        &self.merges
    }

    /// The ids of `text`. Special tokens written out in the text are recognised as such; `add_special` adds what the
    /// tokenizer puts around a text (usually a beginning-of-text token, or nothing).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, add_special).map_err(|e| self.failed("encode", &e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// [`Tokenizer::encode`] without special tokens around the text, and for each token the byte where it ends.
    pub fn encode_with_ends(&self, text: &str) -> Result<(Vec<u32>, Vec<usize>)> {
        let encoding = self.inner.encode(text, false).map_err(|e| self.failed("encode", &e))?;
        let ends = encoding.get_offsets().iter().map(|(_, end)| *end).collect();
        Ok((encoding.get_ids().to_vec(), ends))
    }

    /// [`Tokenizer::encode`] of many texts on all cores.
    pub fn encode_batch<S: AsRef<str> + Sync>(&self, texts: &[S], add_special: bool) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text.as_ref(), add_special)).collect()
    }

    /// The text of `ids`; bytes that are not UTF-8 become U+FFFD. An id outside the vocabulary is an error.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab_size()) {
            let expected = format!("ids below {}", self.vocab_size());
            return Error::file(&self.place).expected(expected).found(id).err();
        }
        self.inner.decode(ids, skip_special).map_err(|e| self.failed("decode", &e))
    }

    /// Decodes a text as its tokens come. `context` is what precedes them (the prompt): some tokenizers drop the
    /// space before the first word of a text, and only the context tells whether a word is the first.
    pub fn decode_stream(&self, context: &[u32], skip_special: bool) -> Result<DecodeStream<'_>> {
        let ids = context[context.len().saturating_sub(8)..].to_vec();
        let known = self.decode(&ids, skip_special)?.trim_end_matches(char::REPLACEMENT_CHARACTER).to_string();
        Ok(DecodeStream { tokenizer: self, skip_special, settled: ids.len(), ids, known })
    }

    fn failed(&self, action: &str, error: &dyn fmt::Display) -> Error {
        Error::file(&self.place).expected(format!("to {action}")).found(error).error()
    }

    /// The highest id plus one: the real vocabulary. A model's logits may have more rows, as padding.
    pub fn vocab_size(&self) -> usize {
        self.token_bytes.len()
    }

    /// Bytes of text that a token stands for: 0 for special tokens, unused ids and ids past the vocabulary.
    /// Where a tokenizer puts a space before a text that has none, that first token counts it.
    pub fn token_bytes(&self, id: u32) -> usize {
        self.token_bytes.get(id as usize).map_or(0, |bytes| *bytes as usize)
    }

    /// The token with this id, as the vocabulary spells it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// What a token stands for; none for unused ids.
    pub fn token_text(&self, id: u32) -> Option<TokenText> {
        let token = self.inner.id_to_token(id)?;
        let added = self.inner.get_added_vocabulary().get_vocab().contains_key(&token);
        Some(if added { TokenText::Added(token) } else { TokenText::Bytes(self.spelling.bytes(&token)) })
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a named special token of tokenizer_config.json: `bos_token`, `eos_token`, `pad_token`,
    /// `unk_token`.
    pub fn special_token(&self, name: &str) -> Option<&str> {
        let token = self.config.get(name)?;
        token.as_str().or_else(|| token.get("content")?.as_str())
    }

    /// The id of the beginning-of-text token.
    pub fn bos_id(&self) -> Option<u32> {
        self.token_to_id(self.special_token("bos_token")?)
    }

    /// The id of the end-of-text token. A model may end on others too: see `ModelFolder::eos_ids`.
    pub fn eos_id(&self) -> Option<u32> {
        self.token_to_id(self.special_token("eos_token")?)
    }

    /// The chat template (Jinja): the only one, or the one named `default`.
    pub fn chat_template(&self) -> Option<&str> {
        match self.config.get("chat_template")? {
            Value::String(template) => Some(template),
            Value::Array(named) => named.iter().find(|t| t["name"] == "default")?["template"].as_str(),
            _ => None,
        }
    }

    /// SHA-256, in hex, of what makes two tokenizers give the same ids: in id order a line `id bytes token` for each
    /// token, then in rank order a line `bytes left bytes right` for each merge (`bytes` being the length, so that no
    /// token can imitate a line). Both a `tokenizer.json` and a GGUF made from it hold these, spelt alike; how they
    /// name the pre-tokenizer differs and is left out.
    pub fn digest(&self) -> String {
        let mut tokens: Vec<(u32, String)> = self.inner.get_vocab(true).into_iter().map(|(t, id)| (id, t)).collect();
        tokens.sort();
        let mut hash = Sha256::new();
        for (id, token) in &tokens {
            hash.update(format!("{id} {} {token}\n", token.len()));
        }
        for (left, right) in &self.merges {
            hash.update(format!("{} {left} {} {right}\n", left.len(), right.len()));
        }
        hex(&hash.finalize())
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` (with the chat template in it) into `folder`, and takes
    /// away what an earlier tokenizer there may have left that would override them.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join("tokenizer.json");
        write_atomically(&path, |file| file.write_all(&self.json).map_err(Error::io("write", &path)))?;
        let mut config = self.config.clone();
        config.entry("tokenizer_class").or_insert(json!("PreTrainedTokenizerFast"));
        write_json(&folder.join("tokenizer_config.json"), &Value::Object(config))?;
        for stale in ["chat_template.jinja", "special_tokens_map.json"].map(|name| folder.join(name)) {
            if fs::exists(&stale) {
                fs::remove_file(&stale).map_err(Error::io("remove", stale))?;
            }
        }
        Ok(())
    }
}

/// How many bytes of text each id stands for.
fn token_bytes(tokenizer: &tokenizers::Tokenizer, spelling: &Spelling) -> Vec<u32> {
    let vocab: HashMap<String, u32> = tokenizer.get_vocab(true);
    let size = vocab.values().max().map_or(0, |id| *id as usize + 1);
    let special = tokenizer.get_added_tokens_decoder();
    let mut bytes = vec![0; size];
    for (token, id) in &vocab {
        let text = !special.get(id).is_some_and(|t| t.special);
        bytes[*id as usize] = if text { spelling.bytes(token).len() as u32 } else { 0 };
    }
    bytes
}

/// Text out of tokens one at a time, in whole characters. Made by [`Tokenizer::decode_stream`].
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// A window over the last tokens: the first `settled` of them read `known`, which has been given out.
    ids: Vec<u32>,
    settled: usize,
    known: String,
}

impl DecodeStream<'_> {
    /// Takes a token and gives the text it completes; empty while a character is incomplete.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        match text.strip_prefix(&self.known) {
            Some(new) if !new.is_empty() && !new.ends_with(char::REPLACEMENT_CHARACTER) => {
                let new = new.to_string();
                // The chunk just given out becomes the context of the next.
                self.ids.drain(..self.settled);
                self.settled = self.ids.len();
                self.known = self.tokenizer.decode(&self.ids, self.skip_special)?;
                Ok(new)
            }
            _ => Ok(String::new()),
        }
    }

    /// What is left at the end: U+FFFD for each incomplete character, or nothing.
    pub fn finish(self) -> Result<String> {
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok(text.strip_prefix(&self.known).unwrap_or_default().to_string())
    }
}
