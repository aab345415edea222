//! Models of different vocabularies: whose rows the result's tokens get, and how it cuts text.

use super::{difference, open, refusal, run};
use crate::common::{novel, small_config, small_model, small_tokenizer};
use potstill::Result;
use potstill::formats::{Dtype, ModelFolder, TensorSpec, write_json, write_safetensors};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub const TABLE: &str = "model.embed_tokens.weight";
pub const WIDTH: usize = 16;
/// Tokens of [`small_tokenizer`], and of those the last: each the product of one of the last merges.
const TOKENS: usize = 340;
const LAST: usize = 20;

/// A small model whose tokenizer lacks the last tokens if `fewer`, and has the added token `extra`.
pub fn model(folder: &Path, seed: u64, fewer: bool, extra: &str) {
    small_model(folder, WIDTH, 1, seed);
    let path = folder.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let kept = if fewer { TOKENS - LAST } else { TOKENS };
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    vocab.retain(|_, id| id.as_u64().unwrap() < kept as u64);
    let merges = tokenizer["model"]["merges"].as_array_mut().unwrap();
    merges.truncate(merges.len() - (TOKENS - kept));
    let token = json!({ "id": kept, "content": extra, "single_word": false, "lstrip": false, "rstrip": false,
                        "normalized": false, "special": true });
    tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
    write_json(&path, &tokenizer).unwrap();
    rewrite(folder, |name, rows| {
        if name == TABLE {
            rows.truncate(kept * WIDTH);
            rows.extend((0..WIDTH).map(|i| seed as f32 + i as f32 / 64.0));
        }
    });
    let mut config = small_config(WIDTH, 1);
    config["vocab_size"] = json!(kept + 1);
    write_json(&folder.join("config.json"), &config).unwrap();
}

/// Writes a model's weights anew; the table may have other rows.
pub fn rewrite(folder: &Path, change: impl Fn(&str, &mut Vec<f32>)) {
    let source = open(folder);
    let mut values: BTreeMap<String, Vec<f32>> =
        source.tensors.names().map(|name| (name.to_string(), source.tensors.read_f32(name).unwrap())).collect();
    values.iter_mut().for_each(|(name, values)| change(name, values));
    let shape = |name: &str| match name == TABLE {
        true => vec![values[name].len() / WIDTH, WIDTH],
        false => source.tensors.shape(name).unwrap().to_vec(),
    };
    let spec = |name: &str| TensorSpec { name: name.into(), dtype: Dtype::F32, shape: shape(name) };
    let specs: Vec<TensorSpec> = source.tensors.names().map(spec).collect();
    drop(source);
    let fill = async |spec: &TensorSpec| Ok(Cow::Borrowed(&values[&spec.name][..]));
    pollster::block_on(write_safetensors(&folder.join("model.safetensors"), &specs, &BTreeMap::new(), fill)).unwrap();
}

struct Pair {
    dir: tempfile::TempDir,
    few: PathBuf,
    many: PathBuf,
}

impl Pair {
    fn new() -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let [few, many] = ["few", "many"].map(|name| dir.path().join(name));
        model(&few, 3, true, "<|one|>");
        model(&many, 8, false, "<|two|>");
        Pair { dir, few, many }
    }

    /// One part `few` and three parts `many`.
    fn merged(&self, tokenizer: &str) -> Result<ModelFolder> {
        let out = self.dir.path().join("out");
        let _ = std::fs::remove_dir_all(&out);
        let tokenizer = tokenizer.replace("{many}", &self.many.display().to_string());
        let yaml = format!(
            "merge_method: linear\nbase_model: {0}\n{tokenizer}\nmodels:\n- {{ model: {0}, parameters: {{ weight: 1 }} }}\n\
             - {{ model: {1}, parameters: {{ weight: 3 }} }}\n",
            self.few.display(),
            self.many.display()
        );
        run(&yaml, &out).map(|_| open(&out))
    }
}

/// The row of a token in a model.
pub fn row(model: &ModelFolder, token: &str) -> Vec<f32> {
    let id = model.tokenizer().unwrap().token_to_id(token).unwrap() as usize;
    model.tensors.read_f32(TABLE).unwrap()[id * WIDTH..][..WIDTH].to_vec()
}

fn mixed(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| 0.25 * a + 0.75 * b).collect()
}

#[test]
fn a_union_cuts_text_as_the_larger_vocabulary_does_and_keeps_the_bases_ids() {
    let pair = Pair::new();
    let (few, many) = (open(&pair.few), open(&pair.many));
    let merged = pair.merged("tokenizer_source: union").unwrap();
    let [own, base, larger] = [&merged, &few, &many].map(|model| model.tokenizer().unwrap());
    assert_eq!(merged.config["vocab_size"], TOKENS + 2);
    assert_eq!(merged.tensors.shape(TABLE).unwrap(), [TOKENS + 2, WIDTH]);
    for id in 0..=(TOKENS - LAST) as u32 {
        assert_eq!(own.id_to_token(id), base.id_to_token(id));
    }
    // The larger one's further merges all come after the base's: together they are the larger one's merges.
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(novel(dir.path(), "text.txt", 50_000..80_000)).unwrap() + "<|one|> <|two|>";
    let spelt = |tokenizer: &potstill::formats::Tokenizer| -> Vec<String> {
        let ids = tokenizer.encode(&text, false).unwrap();
        ids.into_iter().map(|id| tokenizer.id_to_token(id).unwrap()).collect()
    };
    let cut = spelt(&own);
    let end = cut.iter().position(|token| token == "<|one|>").unwrap();
    assert_eq!(cut[..end], spelt(&larger)[..end]);
    assert_eq!(cut.last().unwrap(), "<|two|>");
    assert!(cut.len() < spelt(&base).len());
    for id in 0..own.vocab_size() as u32 {
        let token = own.id_to_token(id).unwrap();
        let known = |model: &ModelFolder| model.tokenizer().unwrap().token_to_id(&token).is_some();
        let expected = match (known(&few), known(&many)) {
            (true, true) => mixed(&row(&few, &token), &row(&many, &token)),
            (true, false) => row(&few, &token),
            _ => row(&many, &token),
        };
        assert!(difference(&row(&merged, &token), &expected) < 1e-6, "{token}");
    }
}

#[test]
fn single_tokens_get_the_rows_that_are_asked_for() {
    let pair = Pair::new();
    let (few, many) = (open(&pair.few), open(&pair.many));
    let merged = pair.merged(
        "tokenizer:\n  tokens:\n    '<|zero|>': { source: { kind: zero } }\n    \
         '<|copy|>': { source: { kind: model_token, model: '{many}', token_id: 7 } }\n    \
         '<|one|>': { source: { kind: model_token, model: '{many}', token: '<|two|>' } }\n    \
         '<|end|>': { source: '{many}', force: true }\n    '<|two|>': { force: true }",
    );
    let merged = merged.unwrap();
    assert_eq!(row(&merged, "<|zero|>"), vec![0.0; WIDTH]);
    let seventh = small_tokenizer().id_to_token(7).unwrap();
    let near = |token: &str, expected: &[f32]| {
        let worst = difference(&row(&merged, token), expected);
        assert!(worst < 1e-6, "{token} differs by {worst}");
    };
    near("<|copy|>", &row(&many, &seventh));
    near("<|one|>", &mixed(&row(&few, "<|one|>"), &row(&many, "<|two|>")));
    near("<|end|>", &row(&many, "<|end|>"));
    near("<|two|>", &row(&many, "<|two|>"));
    near(&seventh, &mixed(&row(&few, &seventh), &row(&many, &seventh)));
    let tokenizer = merged.tokenizer().unwrap();
    assert_eq!(tokenizer.encode("<|copy|>", false).unwrap(), [tokenizer.token_to_id("<|copy|>").unwrap()]);
}

#[test]
fn rows_that_nobody_has_and_tokenizers_of_another_kind_are_refused() {
    let pair = Pair::new();
    let error =
        |tokens: &str| pair.merged(&format!("tokenizer: {{ tokens: {{ {tokens} }} }}")).unwrap_err().to_string();
    let found = error(
        "'<|a|>': { source: { kind: model_token, model: '{many}', token: nowhere } }, \
         '<|b|>': { source: { kind: model_token, model: '{many}', token_id: 341 } }, '<|c|>': { source: '{many}' }",
    );
    for part in ["3 problems", "the token \"nowhere\" of", "a row 341 of", "`tokenizer.tokens.<|c|>`"] {
        assert!(found.contains(part), "{found}");
    }
    let refused = |tokens: &str| {
        let rest = "models: [{ model: '{a}' }]";
        refusal(&format!("{{ merge_method: passthrough, tokenizer: {{ tokens: {{ x: {tokens} }} }}, {rest} }}"))
    };
    let found = refused("{ source: { kind: model_token, model: m, token: y, token_id: 1 } }");
    assert!(found.contains("`token` or `token_id`: found both"), "{found}");
    assert!(refused("{ source: { kind: zeros } }").contains("did you mean `zero`?"));
    assert!(refused("{ source: { kind: zero, token: y } }").contains("nothing beside `kind: zero`"));
    assert!(refused("{ froce: true }").contains("did you mean `force`?"));

    // The same vocabulary under SentencePiece's spelling of a space.
    let path = pair.many.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    tokenizer["pre_tokenizer"] = Value::Null;
    tokenizer["decoder"] = Value::Null;
    write_json(&path, &tokenizer).unwrap();
    let found = pair.merged("tokenizer_source: union").unwrap_err().to_string();
    for part in ["20 tokens that it lacks", "BPE character", "BPE byte-level", "`tokenizer_source: base`"] {
        assert!(found.contains(part), "{found}");
    }
}
