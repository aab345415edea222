//! The layouts of a JSON line.
//!
//! Each row has exactly one of them; fields that belong to none are left alone (data sets carry ids, sources, scores).
//! A field that is `null` counts as absent, as tables exported to JSON lines have it.
//!
//! | fields | meaning |
//! | --- | --- |
//! | `text` | plain text |
//! | `messages` | turns of `role` and `content` (OpenAI) |
//! | `conversations` | turns of `from` and `value` (ShareGPT) |
//! | `prompt`, `completion` | two texts, or two lists of `role`/`content` turns; the completion is learned (TRL) |
//! | `input_ids` | tokens; with `labels` (-100 = not learned, else the same id; unshifted) or `loss_mask` (0 or 1) |
//!
//! `tools` beside a conversation is handed to the chat template. Beside any layout, a field of the caller's choice may
//! hold a document's **route**: a name by which a trainer weights its teachers.

use serde_json::{Map, Value};

use crate::data::documents::{Content, Place};
use crate::{Error, Result};

/// One turn: `role`, `content` and whatever else the row says of it (`tool_calls`, `name`), for the chat template.
pub type Message = Map<String, Value>;

/// A conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chat {
    /// The turns in order.
    pub messages: Vec<Message>,
    /// Descriptions of the tools the assistant may call (a list), or null.
    pub tools: Value,
    /// Assistant turns before this one are given, not learned: the length of a `prompt`, else 0.
    pub learned_from: usize,
}

const LAYOUTS: [&str; 5] = ["text", "messages", "conversations", "completion", "input_ids"];
/// Every field that is part of a document in some layout.
pub const DOCUMENT_FIELDS: [&str; 9] =
    ["text", "messages", "conversations", "prompt", "completion", "input_ids", "labels", "loss_mask", "tools"];
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];
/// The label of a position that is not learned (PyTorch's `ignore_index`).
const NOT_LEARNED: i64 = -100;

/// Reads one row. Every error names `place`, the field, what was expected and what was found.
pub fn parse(line: &str, place: &Place) -> Result<Content> {
    Ok(parse_routed(line, None, place)?.0)
}

/// Reads one row and the text in its field `route_field`, `None` where the row has no such field.
pub fn parse_routed(line: &str, route_field: Option<&str>, place: &Place) -> Result<(Content, Option<String>)> {
    let value: Value = serde_json::from_str(line).map_err(|error| {
        Error::at(place)
            .expected("one JSON object on the line")
            .found(error)
            .help("repair or remove the line; a JSON document over several lines is not JSON lines")
            .error()
    })?;
    let Value::Object(mut row) = value else {
        return wrong(place, "row", "a JSON object", &value);
    };
    row.retain(|_, value| !value.is_null());
    let route = route_field.map_or(Ok(None), |field| route(&row, field, place))?;
    let content = match layout(&row, place)? {
        "text" => Content::Text(string(&row, "text", place)?),
        "input_ids" => ids(&row, place)?,
        "messages" => chat(messages(&row, "messages", place)?, &row, place)?,
        "conversations" => chat(conversations(&row, place)?, &row, place)?,
        _ => prompt_completion(&row, place)?,
    };
    Ok((content, route))
}

fn route(row: &Map<String, Value>, field: &str, place: &Place) -> Result<Option<String>> {
    match row.get(field) {
        None => Ok(None),
        Some(Value::String(name)) if !name.is_empty() => Ok(Some(name.clone())),
        Some(other) => wrong(place, field, "a string of at least one character", other),
    }
}

fn layout(row: &Map<String, Value>, place: &Place) -> Result<&'static str> {
    let found: Vec<&str> = LAYOUTS.into_iter().filter(|key| row.contains_key(*key)).collect();
    match found[..] {
        [one] => Ok(one),
        [] => {
            let keys: Vec<&str> = row.keys().map(String::as_str).collect();
            let near = keys.iter().find_map(|key| Error::nearest(key, LAYOUTS));
            let hint = near.map(|key| format!("did you mean `{key}`? ")).unwrap_or_default();
            Error::at(place)
                .field("row")
                .expected("`text`, `messages`, `conversations`, `prompt` and `completion`, or `input_ids`")
                .found(if keys.is_empty() { "no fields".to_string() } else { cut(&keys.join(", ")) })
                .help(format!("{hint}rename the field that holds the document"))
                .err()
        }
        _ => Error::at(place)
            .field("row")
            .expected("one layout")
            .found(found.join(" and "))
            .help("remove all but the one to be used")
            .err(),
    }
}

/// A value as it may stand in a message: whole if it is short.
fn cut(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_string(),
    }
}

fn wrong<T>(place: &Place, field: &str, expected: &str, found: &Value) -> Result<T> {
    Error::at(place).field(field).expected(expected).found(cut(&found.to_string())).help("correct the row").err()
}

fn get<'a>(row: &'a Map<String, Value>, key: &str) -> &'a Value {
    row.get(key).unwrap_or(&Value::Null)
}

fn string(row: &Map<String, Value>, key: &str, place: &Place) -> Result<String> {
    match get(row, key) {
        Value::String(text) => Ok(text.clone()),
        other => wrong(place, key, "a string", other),
    }
}

fn list<'a>(row: &'a Map<String, Value>, key: &str, place: &Place) -> Result<&'a [Value]> {
    match get(row, key) {
        Value::Array(items) if !items.is_empty() => Ok(items),
        other => wrong(place, key, "a list of at least one item", other),
    }
}

fn chat(messages: Vec<Message>, row: &Map<String, Value>, place: &Place) -> Result<Content> {
    let tools = match get(row, "tools") {
        tools @ (Value::Null | Value::Array(_)) => tools.clone(),
        other => return wrong(place, "tools", "a list", other),
    };
    Ok(Content::Chat(Chat { messages, tools, learned_from: 0 }))
}

fn messages(row: &Map<String, Value>, key: &str, place: &Place) -> Result<Vec<Message>> {
    let turns = list(row, key, place)?.iter().enumerate();
    turns.map(|(i, turn)| message(turn, &format!("{key}[{i}]"), place)).collect()
}

fn message(turn: &Value, field: &str, place: &Place) -> Result<Message> {
    let Value::Object(turn) = turn else {
        return wrong(place, field, "an object with `role` and `content`", turn);
    };
    let role = match get(turn, "role") {
        Value::String(role) if ROLES.contains(&role.as_str()) => role,
        other => return wrong(place, &format!("{field}.role"), &format!("one of {}", ROLES.join(", ")), other),
    };
    // An assistant that only calls tools says nothing.
    let silent = role == "assistant" && !get(turn, "tool_calls").is_null();
    match get(turn, "content") {
        Value::String(_) => {}
        Value::Null if silent => {}
        other => return wrong(place, &format!("{field}.content"), "a string", other),
    }
    Ok(turn.clone())
}

fn conversations(row: &Map<String, Value>, place: &Place) -> Result<Vec<Message>> {
    let turns = list(row, "conversations", place)?.iter().enumerate();
    turns.map(|(i, turn)| from_sharegpt(turn, &format!("conversations[{i}]"), place)).collect()
}

fn from_sharegpt(turn: &Value, field: &str, place: &Place) -> Result<Message> {
    let Value::Object(turn) = turn else {
        return wrong(place, field, "an object with `from` and `value`", turn);
    };
    let role = match get(turn, "from").as_str() {
        Some("human" | "user") => "user",
        Some("gpt" | "assistant") => "assistant",
        Some("system") => "system",
        Some("tool") => "tool",
        _ => {
            let expected = "one of human, user, gpt, assistant, system, tool";
            return wrong(place, &format!("{field}.from"), expected, get(turn, "from"));
        }
    };
    let Value::String(content) = get(turn, "value") else {
        return wrong(place, &format!("{field}.value"), "a string", get(turn, "value"));
    };
    Ok(Message::from_iter([("role".to_string(), role.into()), ("content".to_string(), content.as_str().into())]))
}

fn prompt_completion(row: &Map<String, Value>, place: &Place) -> Result<Content> {
    match (get(row, "prompt"), get(row, "completion")) {
        (Value::String(prompt), Value::String(completion)) => {
            Ok(Content::PromptCompletion { prompt: prompt.clone(), completion: completion.clone() })
        }
        (Value::Array(_), Value::Array(_)) => {
            let mut turns = messages(row, "prompt", place)?;
            let learned_from = turns.len();
            turns.extend(messages(row, "completion", place)?);
            match chat(turns, row, place)? {
                Content::Chat(chat) => Ok(Content::Chat(Chat { learned_from, ..chat })),
                other => Ok(other),
            }
        }
        (prompt @ (Value::String(_) | Value::Array(_)), completion) => {
            let like = if prompt.is_string() { "a string, as `prompt` is" } else { "a list, as `prompt` is" };
            wrong(place, "completion", like, completion)
        }
        (prompt, _) => wrong(place, "prompt", "a string or a list of messages", prompt),
    }
}

fn ids(row: &Map<String, Value>, place: &Place) -> Result<Content> {
    let items = list(row, "input_ids", place)?.iter().enumerate();
    let id = |(i, value): (usize, &Value)| match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok(id),
        None => wrong(place, &format!("input_ids[{i}]"), "a token id", value),
    };
    let ids: Vec<u32> = items.map(id).collect::<Result<_>>()?;
    let learned: &dyn Fn(usize, &Value) -> Option<bool> = match (row.get("labels"), row.get("loss_mask")) {
        (None, None) => return Ok(Content::Ids { loss: vec![true; ids.len()], ids }),
        (Some(_), Some(_)) => {
            return Error::at(place)
                .field("row")
                .expected("`labels` or `loss_mask`")
                .found("both")
                .help("remove one")
                .err();
        }
        (Some(_), None) => &|i, label| match label.as_i64()? {
            NOT_LEARNED => Some(false),
            label => (label == i64::from(ids[i])).then_some(true),
        },
        (None, Some(_)) => &|_, flag| match flag {
            Value::Bool(flag) => Some(*flag),
            _ => [Some(0), Some(1)].iter().position(|n| *n == flag.as_u64()).map(|n| n == 1),
        },
    };
    let (field, expected) = match row.contains_key("labels") {
        true => ("labels", "-100 or the id at the same place in `input_ids` (labels are not shifted)"),
        false => ("loss_mask", "0 or 1"),
    };
    let flags = list(row, field, place)?;
    if flags.len() != ids.len() {
        return Error::at(place)
            .field(field)
            .expected(format!("{} items, as many as `input_ids` has", ids.len()))
            .found(flags.len())
            .help("correct the row")
            .err();
    }
    let flag = |(i, value): (usize, &Value)| match learned(i, value) {
        Some(flag) => Ok(flag),
        None => wrong(place, &format!("{field}[{i}]"), expected, value),
    };
    let loss = flags.iter().enumerate().map(flag).collect::<Result<_>>()?;
    Ok(Content::Ids { ids, loss })
}
