//! A model under another's tokenizer.

use super::tokens::{TABLE, WIDTH, model, rewrite, row};
use super::{difference, open};
use potstill::formats::{ModelFolder, write_json};
use potstill::merge::{SurgeonOptions, Transplanted, tokensurgeon};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::Path;

fn transplant(model: &ModelFolder, donor: &ModelFolder, out: &Path) -> Transplanted {
    let mut last = (0, 0);
    let made = pollster::block_on(tokensurgeon(model, donor, out, &SurgeonOptions::default(), &mut |done, total| {
        last = (done, total);
        ControlFlow::Continue(())
    }));
    assert_eq!(last.0, last.1);
    made.unwrap()
}

#[test]
fn its_own_tokenizer_leaves_a_model_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    model(&dir.path().join("model"), 3, false, "<|one|>");
    let own = open(&dir.path().join("model"));
    let made = transplant(&own, &own, &dir.path().join("out"));
    assert_eq!((made.tokens, made.shared), (341, 341));
    let out = open(&dir.path().join("out"));
    assert_eq!(out.digest(), own.digest());
    assert_eq!(out.config, own.config);
}

#[test]
fn new_tokens_are_the_donors_combinations_of_shared_ones() {
    let dir = tempfile::tempdir().unwrap();
    let [few, many] = ["few", "many"].map(|name| dir.path().join(name));
    model(&few, 3, true, "<|one|>");
    model(&many, 8, false, "<|two|>");
    let (few, many) = (open(&few), open(&many));
    let made = transplant(&few, &many, &dir.path().join("out"));
    // The larger vocabulary's 20 further tokens and its added one.
    assert_eq!((made.tokens, made.shared), (341, 320));
    let out = open(&dir.path().join("out"));
    assert_eq!(out.tensors.shape(TABLE).unwrap(), [341, WIDTH]);
    assert_eq!(out.config["vocab_size"], 341);
    assert_eq!(out.tokenizer().unwrap().digest(), many.tokenizer().unwrap().digest());
    let name = "model.layers.0.mlp.up_proj.weight";
    assert_eq!(out.tensors.read_f32(name).unwrap(), few.tensors.read_f32(name).unwrap());
    let tokenizer = few.tokenizer().unwrap();
    for id in 0..320 {
        let token = tokenizer.id_to_token(id).unwrap();
        assert_eq!(row(&out, &token), row(&few, &token));
    }
}

#[test]
fn new_rows_follow_a_linear_map_between_the_models() {
    let dir = tempfile::tempdir().unwrap();
    let [few, many] = ["few", "many"].map(|name| dir.path().join(name));
    model(&few, 3, true, "<|one|>");
    model(&many, 8, false, "<|two|>");
    let rows = open(&many).tensors.read_f32(TABLE).unwrap();
    // Twice the row, from its last value to its first.
    let mapped = |row: &[f32]| row.iter().rev().map(|x| 2.0 * x).collect::<Vec<f32>>();
    let shared = 320 * WIDTH;
    rewrite(&few, |name, values| {
        if name == TABLE {
            values.splice(..shared, rows[..shared].chunks(WIDTH).flat_map(mapped));
        }
    });
    transplant(&open(&few), &open(&many), &dir.path().join("out"));
    let found = open(&dir.path().join("out")).tensors.read_f32(TABLE).unwrap();
    // As many shared rows as a row has values give any row, whatever is chosen.
    let expected: Vec<f32> = rows.chunks(WIDTH).flat_map(mapped).collect();
    let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let worst = difference(&found, &expected);
    assert!(worst < 1e-4 * largest, "{worst} of {largest}");
}

/// The text of a byte-level token as SentencePiece spells it.
fn respelt(token: &str) -> String {
    let others = (0u8..=255).filter(|b| !matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff));
    let byte = |c: char| match u32::from(c) {
        code @ 0..256 => code as u8,
        code => others.clone().nth(code as usize - 256).unwrap(),
    };
    let bytes: Vec<u8> = token.chars().map(byte).collect();
    match std::str::from_utf8(&bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.replace(' ', "\u{2581}"),
        _ => bytes.iter().map(|byte| format!("<0x{byte:02X}>")).collect(),
    }
}

#[test]
fn how_a_tokenizer_spells_a_text_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let [level, piece] = ["level", "piece"].map(|name| dir.path().join(name));
    model(&level, 3, false, "<|one|>");
    model(&piece, 8, false, "<|one|>");
    let path = piece.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let added: Vec<Value> = tokenizer["added_tokens"].as_array().unwrap().clone();
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap().clone();
    let special = |token: &str| added.iter().any(|entry| entry["content"] == token);
    // In the opposite order, so that no id is the same by chance.
    let last = vocab.len() as u64 - 1;
    let turned = |(token, id): (String, Value)| match special(&token) {
        true => (token, id),
        false => (respelt(&token), json!(last + 1 - id.as_u64().unwrap())),
    };
    let vocab: serde_json::Map<String, Value> = vocab.into_iter().map(turned).collect();
    assert_eq!(vocab.len() as u64, last + 1);
    tokenizer["model"]["vocab"] = Value::Object(vocab);
    tokenizer["model"]["merges"] = json!([]);
    tokenizer["pre_tokenizer"] = Value::Null;
    tokenizer["decoder"] = json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " }, { "type": "ByteFallback" }] });
    write_json(&path, &tokenizer).unwrap();
    let (level, piece) = (open(&level), open(&piece));
    let made = transplant(&level, &piece, &dir.path().join("out"));
    let out = open(&dir.path().join("out"));
    let single = level.tokenizer().unwrap();
    let whole = (1..340)
        .filter(|id| !respelt(&single.id_to_token(*id).unwrap()).starts_with("<0x") || single.token_bytes(*id) == 1);
    assert_eq!(made.shared, whole.count() + 2);
    for token in ["\u{120}the", "a", "\u{10a}"] {
        assert_eq!(row(&out, &respelt(token)), row(&level, token), "{token}");
    }
}
