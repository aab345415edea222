//! Which tokens of a conversation are learned, against transformers' masks for templates with generation blocks and
//! against spans written by hand for templates without (`golden/masks.json`).

use std::collections::BTreeMap;

use potstill::data::chat::ChatTemplate;
use potstill::data::documents::{Content, Place, Source};
use potstill::data::rows::Chat;
use potstill::data::tokens::{Encoded, Tokenise};
use serde_json::{Value, json};

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/masks.json")).unwrap()
}

fn place() -> Place {
    Place { file: "chats.jsonl".into(), line: 7 }
}

fn template(case: &Value) -> ChatTemplate {
    let special: BTreeMap<String, String> = serde_json::from_value(case["special_tokens"].clone()).unwrap_or_default();
    ChatTemplate::new("t.jinja", case["source"].as_str().unwrap(), special, 0).unwrap()
}

fn chat(case: &Value) -> Chat {
    let messages = serde_json::from_value(case["messages"].clone()).unwrap();
    Chat { messages, tools: case["tools"].clone(), learned_from: 0 }
}

/// The texts of the spans that are learned.
fn learned(template: &ChatTemplate, chat: &Chat) -> Result<Vec<String>, String> {
    let (text, spans) = template.render_learned(chat, &place()).map_err(|error| error.to_string())?;
    Ok(spans.into_iter().map(|span| text[span].to_string()).collect())
}

fn conversation(turns: &[(&str, &str)]) -> Chat {
    let message = |(role, content): &(&str, &str)| json!({"role": role, "content": content});
    let messages = serde_json::from_value(turns.iter().map(message).collect()).unwrap();
    Chat { messages, tools: Value::Null, learned_from: 0 }
}

#[test]
fn masks_of_generation_blocks_are_those_of_transformers() {
    let tokenizer = crate::common::small_tokenizer();
    let encode = |text: &str| {
        let (ids, ends) = tokenizer.encode_with_ends(text)?;
        Ok(Encoded { ids, ends })
    };
    for case in golden()["tokens"].as_array().unwrap() {
        let template = template(case);
        assert!(template.marks_generation());
        let tokenise = Tokenise {
            encode: &encode,
            bos: None,
            eos: None,
            vocabulary: tokenizer.vocab_size(),
            template: Some(&template),
            train_on_inputs: false,
            max_length: None,
        };
        let source = Source { place: place(), content: Content::Chat(chat(case)), route: None };
        let document = tokenise.document(&source).unwrap();
        let mask: Vec<u8> = document.loss.iter().map(|&learned| u8::from(learned)).collect();
        assert_eq!((json!(document.ids), json!(mask)), (case["ids"].clone(), case["mask"].clone()));
        let all = Tokenise { train_on_inputs: true, ..tokenise }.document(&source).unwrap();
        assert!(json!(all.ids) == case["ids"] && all.loss.iter().all(|&learned| learned));
    }
}

#[test]
fn spans_without_generation_blocks_are_those_found_by_hand() {
    for case in golden()["spans"].as_array().unwrap() {
        let template = template(case);
        assert!(!template.marks_generation());
        let (text, spans) = template.render_learned(&chat(case), &place()).unwrap();
        let spans: Vec<[usize; 2]> = spans.iter().map(|span| [span.start, span.end]).collect();
        assert_eq!(
            (text.as_str(), json!(spans)),
            (case["text"].as_str().unwrap(), case["spans"].clone()),
            "{}",
            case["name"]
        );
    }
}

#[test]
fn turns_of_a_prompt_are_given_with_and_without_generation_blocks() {
    let turns =
        [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("tool", "e"), ("assistant", "f")];
    let plain = "{% for m in messages %}{{ m.role ~ ':' ~ m.content ~ ';' }}{% endfor %}\
                 {% if add_generation_prompt %}assistant:{% endif %}";
    let marked = "{% for m in messages %}{{ m.role ~ ':' }}{% if m.role == 'assistant' %}{% generation %}\
                  {{ m.content ~ ';' }}{% endgeneration %}{% else %}{{ m.content ~ ';' }}{% endif %}{% endfor %}";
    for source in [plain, marked] {
        let template = ChatTemplate::new("t.jinja", source, BTreeMap::new(), 0).unwrap();
        let spoken = |learned_from| learned(&template, &Chat { learned_from, ..conversation(&turns) });
        assert_eq!(spoken(0).unwrap(), ["b;", "d;", "f;"]);
        assert_eq!(spoken(3).unwrap(), ["d;", "f;"]);
        assert_eq!(spoken(5).unwrap(), ["f;"]);
        assert!(spoken(6).unwrap_err().contains("an assistant's turn to learn"));
        let silent = [("user", "a"), ("assistant", "b"), ("user", "c")];
        assert_eq!(learned(&template, &conversation(&silent)).unwrap(), ["b;"], "users and tools are not learned");
    }
}

#[test]
fn an_end_of_sequence_token_that_only_the_last_turn_lacks_is_learned() {
    let source = "{% for m in messages %}{{ m.role ~ ':' ~ m.content ~ ('\n' if m.role == 'user' else '') }}\
                  {% if m.role == 'assistant' and not loop.last %}{{ eos_token }}{% endif %}{% endfor %}\
                  {% if add_generation_prompt %}assistant:{% endif %}";
    let special = BTreeMap::from([("eos_token".to_string(), "</s>".to_string())]);
    let template = ChatTemplate::new("t.jinja", source, special, 0).unwrap();
    let turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")];
    assert_eq!(learned(&template, &conversation(&turns)).unwrap(), ["b</s>", "d"]);
}

/// Templates whose turns cannot be told apart, each with the turn that the error names.
#[test]
fn a_mask_that_may_be_wrong_is_an_error_that_names_document_and_turn() {
    let turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")];
    let close = "{% if add_generation_prompt %}assistant:{% endif %}";
    let refused = [
        // The first turn is forgotten once there are more.
        ("{% for m in messages[-2:] %}{{ m.role ~ ':' ~ m.content ~ ';' }}{% endfor %}", 1),
        // A turn is written twice.
        ("{% for m in messages %}{{ m.role ~ ':' ~ m.content ~ m.content ~ ';' ~ messages|length }}{% endfor %}", 1),
        // The prompt's header is not the turn's.
        ("{{ messages|length }}{% for m in messages %}{{ m.role|upper ~ ':' ~ m.content ~ ';' }}{% endfor %}", 1),
        // The end of a turn is another one when it is the last.
        ("{% for m in messages %}{{ m.role ~ ':' ~ m.content ~ ('#' if loop.last else ';') }}{% endfor %}", 1),
        // What is said depends on what is said later.
        ("{% for m in messages %}{{ m.role ~ ':' ~ (m.content if loop.last else messages[-1].role) }}{% endfor %}", 1),
    ];
    for (source, turn) in refused {
        let template = ChatTemplate::new("t.jinja", &format!("{source}{close}"), BTreeMap::new(), 0).unwrap();
        let error = learned(&template, &conversation(&turns)).unwrap_err();
        let begin = format!("chats.jsonl:7: messages[{turn}]: expected a chat template that only appends");
        assert!(error.starts_with(&begin) && error.contains("generation %}"), "{source}: {error}");
    }
    let broken = "{% for m in messages %}{% generation %}{% generation %}{{ m.content }}{% endgeneration %}\
                  {% endgeneration %}{% endfor %}";
    let template = ChatTemplate::new("t.jinja", broken, BTreeMap::new(), 0).unwrap();
    let error = learned(&template, &conversation(&turns)).unwrap_err();
    assert!(error.starts_with("chats.jsonl:7: messages: expected generation blocks that only mark"), "{error}");
    let marked = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}";
    let template = ChatTemplate::new("t.jinja", marked, BTreeMap::new(), 0).unwrap();
    let error = learned(&template, &conversation(&[("assistant", "a\u{FDD0}b")])).unwrap_err();
    assert!(error.contains("U+FDD0"), "{error}");
}
