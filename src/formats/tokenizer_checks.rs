//! What a `tokenizer.json` must satisfy before the `tokenizers` crate reads it, which takes these for granted and
//! panics otherwise.

use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// Far above any vocabulary, and low enough that a table over it is no burden.
const MAX_ID: u64 = 1 << 24;

/// Checks ids and merges; gives the merges in rank order (none for models without merges).
pub(super) fn check(place: &Path, json: &Value) -> Result<Vec<(String, String)>> {
    let model = &json["model"];
    let ids = model["vocab"].as_object().into_iter().flat_map(|vocab| vocab.iter());
    let added = json["added_tokens"].as_array().into_iter().flatten();
    let ids = ids.chain(added.map(|token| (&EMPTY, &token["id"])));
    for (token, id) in ids {
        if id.as_u64().is_none_or(|id| id >= MAX_ID) {
            return Error::file(place)
                .field(format!("id of token {token:?}"))
                .expected("a small integer")
                .found(id)
                .err();
        }
    }
    let merges = model["merges"].as_array().map_or(&[][..], Vec::as_slice);
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or("");
    let merges = merges.iter().enumerate().filter(|(_, m)| !m.as_str().is_some_and(|m| m.starts_with("#version")));
    merges.map(|(rank, merge)| check_merge(place, model, prefix, rank, merge)).collect()
}

static EMPTY: String = String::new();

/// A merge is `"a b"` or `["a", "b"]`, with a, b and their union in the vocabulary.
fn check_merge(place: &Path, model: &Value, prefix: &str, rank: usize, merge: &Value) -> Result<(String, String)> {
    let pair = match merge {
        Value::String(both) => both.split_once(' '),
        _ => merge[0].as_str().zip(merge[1].as_str()),
    };
    let known = |token: &str| model["vocab"].get(token).is_some();
    let good = pair.filter(|(left, right)| {
        let whole = right.strip_prefix(prefix).map(|rest| format!("{left}{rest}"));
        known(left) && known(right) && whole.is_some_and(|whole| known(&whole))
    });
    match good {
        Some((left, right)) => Ok((left.to_string(), right.to_string())),
        None => {
            let expected = "two tokens of the vocabulary whose union is one";
            Error::file(place).field(format!("merge {rank}")).expected(expected).found(merge).err()
        }
    }
}
