//! Documents, chat templates and loss masks, against transformers' answers (`golden/data.json`).

use std::collections::BTreeMap;
use std::path::Path;

use potstill::Result;
use potstill::data::chat::ChatTemplate;
use potstill::data::documents::{self, Content, Place, Source, Split};
use potstill::data::rows::{self, Chat};
use potstill::data::tokens::{Document, Encoded, Tokenise};
use potstill::distill::corpus::{CorpusOptions, read_corpus};
use serde_json::{Value, json};

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/data.json")).unwrap()
}

fn template(golden: &Value, entry: &Value) -> ChatTemplate {
    let special: BTreeMap<String, String> = serde_json::from_value(entry["special_tokens"].clone()).unwrap();
    let source = entry["source"].as_str().unwrap();
    ChatTemplate::new("tokenizer_config.json", source, special, golden["now"].as_i64().unwrap()).unwrap()
}

fn chat(case: &Value) -> Chat {
    let messages = serde_json::from_value(case["messages"].clone()).unwrap();
    Chat { messages, tools: case["tools"].clone(), learned_from: 0 }
}

fn place() -> Place {
    Place { file: "chats.jsonl".into(), line: 7 }
}

/// A tokenizer of one token a byte, whose offsets end with the character, as those of byte-level tokenizers do.
fn encode(text: &str) -> Result<Encoded> {
    let ends = text.char_indices().flat_map(|(at, c)| vec![at + c.len_utf8(); c.len_utf8()]).collect();
    Ok(Encoded { ids: text.bytes().map(u32::from).collect(), ends })
}

fn tokenise<'a>(template: Option<&'a ChatTemplate>) -> Tokenise<'a> {
    Tokenise {
        encode: &encode,
        bos: Some(256),
        eos: Some(257),
        vocabulary: 258,
        template,
        train_on_inputs: false,
        max_length: None,
    }
}

fn source(row: &str) -> Source {
    Source { place: place(), content: rows::parse(row, &place()).unwrap(), route: None }
}

/// The text that the learned tokens cover.
fn learned(document: &Document) -> String {
    let picked = document.ids.iter().zip(&document.loss).filter(|(_, loss)| **loss).map(|(id, _)| *id);
    String::from_utf8(picked.filter_map(|id| u8::try_from(id).ok()).collect()).unwrap()
}

#[test]
fn templates_render_as_in_transformers_and_spans_are_those_of_generation_blocks() {
    let golden = golden();
    for entry in golden["templates"].as_array().unwrap() {
        let (template, mut without) = (template(&golden, entry), entry.clone());
        // The same template without its blocks: the spans have to be found by other means.
        let source = entry["source"].as_str().unwrap().replace("endgeneration", "endif");
        without["source"] = source.replace(" generation ", " if true ").into();
        let unmarked = self::template(&golden, &without);
        assert!(!unmarked.marks_generation());
        for case in entry["cases"].as_array().unwrap() {
            let chat = chat(case);
            let prompt = case["add_generation_prompt"].as_bool().unwrap();
            let rendered = template.render(&chat.messages, &chat.tools, prompt, &place());
            let Some(text) = case["text"].as_str() else {
                let message = rendered.unwrap_err().to_string();
                assert!(
                    message.starts_with("chats.jsonl:7: ") && message.contains("tokenizer_config.json"),
                    "{message}"
                );
                continue;
            };
            assert_eq!(rendered.unwrap(), text, "{}", entry["name"]);
            if !prompt && entry["name"] != "kitchen sink" {
                for template in [&template, &unmarked] {
                    let (whole, spans) = template.render_learned(&chat, &place()).unwrap();
                    let spans: Vec<[usize; 2]> = spans.iter().map(|s| [s.start, s.end]).collect();
                    assert_eq!((whole.as_str(), json!(spans)), (text, case["spans"].clone()), "{}", entry["name"]);
                }
            }
        }
    }
}

#[test]
fn templates_that_rewrite_turns_or_break_are_refused_with_a_reason() {
    let last_only =
        "{% for m in messages %}{{ m.role ~ ':' ~ (m.content if loop.last else '...') ~ '\n' }}{% endfor %}";
    let new = |source: &str| ChatTemplate::new("t.jinja", source, BTreeMap::new(), 0);
    let row = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},
        {"role":"user","content":"c"}]}"#;
    let template = new(last_only).unwrap();
    let message = tokenise(Some(&template)).document(&source(row)).unwrap_err().to_string();
    assert!(message.contains("chats.jsonl:7") && message.contains("messages[1]") && message.contains("only appends"));
    let all = Tokenise { train_on_inputs: true, ..tokenise(Some(&template)) };
    assert_eq!(learned(&all.document(&source(row)).unwrap()), "user:...\nassistant:...\nuser:c\n");
    let appends = new("{% for m in messages %}{{ m.content ~ '\n' }}{% endfor %}").unwrap();
    let document = tokenise(Some(&appends)).document(&source(row)).unwrap();
    assert_eq!(learned(&document), "b\n", "without an end-of-sequence token a turn ends where the template ends it");
    let message = tokenise(None).document(&source(row)).unwrap_err().to_string();
    assert!(message.contains("a model with a chat template"), "{message}");
    assert!(new("{% for %}").err().unwrap().to_string().contains("t.jinja"));
    let printed = new("{{ messages }}").unwrap().render(&[], &Value::Null, false, &place()).unwrap_err().to_string();
    assert!(printed.contains("prints a sequence"), "{printed}");
    let deep = new(
        "{% set ns = namespace(x=[]) %}{% for i in range(900) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x|tojson }}",
    );
    assert!(deep.unwrap().render(&[], &Value::Null, false, &place()).unwrap_err().to_string().contains("deep"));
}

#[test]
fn only_what_is_to_be_learned_has_loss() {
    let golden = golden();
    let zephyr = template(&golden, &golden["templates"][2]);
    let tokenise = tokenise(Some(&zephyr));
    let sharegpt = r#"{"conversations":[{"from":"system","value":"S"},{"from":"human","value":"é?"},
        {"from":"gpt","value":"ö👋"},{"from":"human","value":"x"},{"from":"gpt","value":"y"}]}"#;
    let document = tokenise.document(&source(sharegpt)).unwrap();
    assert_eq!(learned(&document), "ö👋</s>y</s>");
    let text = "<|system|>\nS</s>\n<|user|>\né?</s>\n<|assistant|>\nö👋</s>\n<|user|>\nx</s>\n<|assistant|>\ny</s>\n";
    assert_eq!(document.ids, text.bytes().map(u32::from).collect::<Vec<_>>(), "no special token is added to a chat");
    assert_eq!(document.bytes.unwrap().iter().sum::<u32>() as usize, text.len());

    let turns = r#"{"prompt":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},
        {"role":"user","content":"c"}],
        "completion":[{"role":"assistant","content":"d"}]}"#;
    assert_eq!(learned(&tokenise.document(&source(turns)).unwrap()), "d</s>");

    let pair = tokenise.document(&source(r#"{"prompt":"2+2=","completion":"4"}"#)).unwrap();
    assert_eq!(pair.ids, [256, 50, 43, 50, 61, 52, 257]);
    assert_eq!(pair.loss, [false, false, false, false, false, true, true]);
    assert_eq!(pair.bytes.unwrap(), [0, 1, 1, 1, 1, 1, 0]);

    // A token that straddles the border is learned: here every token is three bytes, and the border lies at four.
    let by_three = |text: &str| -> Result<Encoded> {
        let ends: Vec<usize> = (3..text.len() + 3).step_by(3).map(|end| end.min(text.len())).collect();
        Ok(Encoded { ids: vec![1; ends.len()], ends })
    };
    let coarse = Tokenise { encode: &by_three, bos: None, eos: None, ..tokenise };
    let pair = coarse.document(&source(r#"{"prompt":"2+2=","completion":"4444"}"#)).unwrap();
    assert_eq!(pair.loss, [false, true, true]);

    let given = tokenise.document(&source(r#"{"input_ids":[5,6,7],"labels":[-100,6,-100]}"#)).unwrap();
    assert_eq!((given.ids, given.loss, given.bytes), (vec![5, 6, 7], vec![false, true, false], None));
    let given = tokenise.document(&source(r#"{"input_ids":[5,6,7],"loss_mask":[0,1,true]}"#)).unwrap();
    assert_eq!(given.loss, [false, true, true]);
    let beyond = tokenise.document(&source(r#"{"input_ids":[5,258]}"#)).unwrap_err().to_string();
    assert!(beyond.contains("chats.jsonl:7: token 1: expected an id below 258") && beyond.contains("found 258"));
    let short = Tokenise { max_length: Some(3), ..coarse };
    let long = short.document(&source(r#"{"text":"0123456789"}"#)).unwrap_err().to_string();
    assert!(long.contains("at most 3 tokens") && long.contains("found 4 tokens"), "{long}");
}

#[test]
fn malformed_rows_are_answered_with_file_line_field_expected_and_found() {
    let turn = |role: &str| format!(r#"{{"messages":[{{"role":"{role}","content":"x"}}]}}"#);
    let cases: Vec<(String, &[&str])> = vec![
        ("[1]".into(), &["row", "a JSON object", "[1]"]),
        (r#"{"text":"#.into(), &["one JSON object on the line"]),
        (r#"{"txet":"a"}"#.into(), &["row", "`text`", "txet", "did you mean `text`"]),
        (r#"{"text":"a","messages":[]}"#.into(), &["one layout", "text and messages"]),
        (r#"{"text":3}"#.into(), &["text", "a string", "found 3"]),
        (r#"{"messages":[]}"#.into(), &["messages", "at least one", "[]"]),
        (turn("narrator"), &["messages[0].role", "one of system", "narrator"]),
        (r#"{"messages":[{"role":"user","content":null}]}"#.into(), &["messages[0].content", "a string", "null"]),
        (r#"{"conversations":[{"from":"bing","value":"x"}]}"#.into(), &["conversations[0].from", "human", "bing"]),
        (r#"{"completion":"x"}"#.into(), &["prompt", "a string or a list", "null"]),
        (r#"{"prompt":"x","completion":[]}"#.into(), &["completion", "a string, as `prompt` is", "[]"]),
        (r#"{"input_ids":[1,-1]}"#.into(), &["input_ids[1]", "a token id", "-1"]),
        (r#"{"input_ids":[1,4294967296]}"#.into(), &["input_ids[1]", "4294967296"]),
        (r#"{"input_ids":[1,2],"labels":[1]}"#.into(), &["labels", "2 items", "found 1"]),
        (r#"{"input_ids":[1,2],"labels":[-100,3]}"#.into(), &["labels[1]", "not shifted", "found 3"]),
        (r#"{"input_ids":[1],"loss_mask":[2]}"#.into(), &["loss_mask[0]", "0 or 1", "found 2"]),
        (r#"{"input_ids":[1],"loss_mask":[1],"labels":[1]}"#.into(), &["`labels` or `loss_mask`", "both"]),
    ];
    for (row, words) in cases {
        let message = rows::parse(&row, &place()).unwrap_err().to_string();
        assert!(message.starts_with("chats.jsonl:7: "), "{message}");
        words.iter().for_each(|word| assert!(message.contains(word), "{message:?} lacks {word:?}"));
    }
    let golden = golden();
    let zephyr = template(&golden, &golden["templates"][2]);
    let message = tokenise(Some(&zephyr)).document(&source(&turn("user"))).unwrap_err().to_string();
    assert!(message.contains("an assistant's turn to learn"), "{message}");
}

#[test]
fn any_damage_to_a_row_is_an_error_or_a_row_and_never_a_panic() {
    let rows = [
        r#"{"text":"aé👋\n"}"#,
        r#"{"messages":[{"role":"system","content":"s"},{"role":"assistant","tool_calls":[{"a":1e3}]}]}"#,
        r#"{"conversations":[{"from":"human","value":"x"},{"from":"gpt","value":"y"}],"tools":[{}]}"#,
        r#"{"prompt":"x","completion":"y","id":null}"#,
        r#"{"input_ids":[1,2,3],"labels":[-100,2,3]}"#,
    ];
    let golden = golden();
    let llama = template(&golden, &golden["templates"][1]);
    let tokenise = tokenise(Some(&llama));
    let all = rows.join("\n").into_bytes();
    let run = |bytes: Vec<u8>| {
        let documents = documents::read("x.jsonl", std::io::Cursor::new(bytes), Split::File)?;
        documents.map(|source| tokenise.document(&source?)).collect::<Result<Vec<_>>>()
    };
    for end in 0..all.len() {
        let _ = run(all[..end].to_vec());
    }
    let mut refused = 0;
    for at in 0..all.len() {
        for flip in [0x01, 0x20, 0x80, 0xff] {
            let mut bytes = all.clone();
            bytes[at] ^= flip;
            refused += u32::from(run(bytes).is_err());
        }
    }
    assert!(refused > 1000, "{refused}");
    assert!(run("[".repeat(100_000).into_bytes()).is_err());
}

fn texts(name: &str, bytes: &[u8], split: Split) -> Vec<(u64, String)> {
    let documents = documents::read(name, std::io::Cursor::new(bytes.to_vec()), split).unwrap();
    let text = |source: Source| match source.content {
        Content::Text(text) => (source.place.line, text),
        other => panic!("{other:?}"),
    };
    documents.map(|source| text(source.unwrap())).collect()
}

#[test]
fn text_files_are_parted_as_asked() {
    let owned = |pairs: &[(u64, &str)]| pairs.iter().map(|(l, t)| (*l, t.to_string())).collect::<Vec<_>>();
    let text = "\u{feff}\n \none\ntwo\r\n\r\n\nthree\n".as_bytes();
    assert_eq!(texts("a.txt", text, Split::File), owned(&[(1, "\n \none\ntwo\r\n\r\n\nthree\n")]));
    assert_eq!(texts("a.txt", text, Split::Paragraphs), owned(&[(3, "one\ntwo"), (7, "three")]));
    let marker = |m: &str| Split::Marker(m.to_string());
    assert_eq!(texts("a.txt", b"a|b\nc||d\n", marker("|")), owned(&[(1, "a"), (1, "b\nc"), (2, "d\n")]));
    let many = "é\n--\nx\n--\n--\ny--\n--".as_bytes();
    assert_eq!(texts("a.txt", many, marker("\n--\n")), owned(&[(1, "é"), (3, "x"), (5, "--\ny--\n--")]));
    assert_eq!(texts("a.txt", b"no marker", marker("<|endoftext|>")), owned(&[(1, "no marker")]));
    assert_eq!(texts("a.jsonl", b"\n{\"text\":\"\"}\r\n{\"text\":\"b\"}", Split::File), owned(&[(3, "b")]));
}

#[test]
fn the_marker_split_is_the_same_as_that_of_the_whole_text() {
    let mut random = Random(5);
    for _ in 0..2000 {
        let text: String = (0..random.below(30)).map(|_| ['a', '\n', '-', 'é'][random.below(4)]).collect();
        let marker: String = (0..1 + random.below(3)).map(|_| ['a', '\n', '-', 'é'][random.below(4)]).collect();
        let expected: Vec<String> =
            text.split(&marker).filter(|part| !part.trim().is_empty()).map(String::from).collect();
        let mut documents =
            documents::read("a.txt", std::io::Cursor::new(text.clone()), Split::Marker(marker.clone())).unwrap();
        let mut found = Vec::new();
        for source in documents.by_ref().flatten() {
            let before: u64 = text.lines().count() as u64 + 1;
            assert!(source.place.line >= 1 && source.place.line <= before);
            let Content::Text(text) = source.content else { panic!() };
            found.push(text);
        }
        assert_eq!(found, expected, "{text:?} at {marker:?}");
    }
}

#[test]
fn folders_are_read_in_order_and_bad_datasets_refused() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    write("b/2.txt", b"two");
    write("b/1.jsonl", b"{\"text\":\"one\"}\n");
    write("a.txt", b"zero");
    write("c.txt", b"three");
    write("README.md", b"no");
    write(".hidden/x.txt", b"no");
    let read = |path: &Path| documents::open(&[path], Split::File)?.collect::<Result<Vec<_>>>();
    let found: Vec<Content> = read(folder.path()).unwrap().into_iter().map(|source| source.content).collect();
    assert_eq!(found, ["zero", "one", "two", "three"].map(|text| Content::Text(text.to_string())));

    let refused = |path: &Path| read(path).unwrap_err().to_string();
    assert!(refused(&folder.path().join("README.md")).contains("a .txt or .jsonl file"));
    let missing = refused(&folder.path().join("none.txt"));
    assert!(
        missing.contains("none.txt: expected a .txt or .jsonl file") && missing.contains("check the path"),
        "{missing}"
    );
    write("e/blank.txt", b" \n\n");
    write("e/rows.jsonl", b"\n{\"text\":\" \"}\n");
    assert!(refused(&folder.path().join("e")).contains("the dataset is empty"));
    std::fs::create_dir(folder.path().join("f")).unwrap();
    assert!(refused(&folder.path().join("f")).contains("at least one .txt or .jsonl file"));
    write("g/latin.txt", b"good\nbad \xe9\n");
    let message = refused(&folder.path().join("g"));
    assert!(message.contains("latin.txt:2: expected UTF-8") && message.contains("byte 5"), "{message}");
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

#[test]
fn a_corpus_is_the_same_documents_in_order() {
    let lines: String = (0..300).map(|i| format!("{{\"text\":\"document {i}\"}}\n")).collect();
    let tokenise = tokenise(None);
    let read = || documents::read("x.jsonl", std::io::Cursor::new(lines.clone()), Split::File).unwrap();
    let corpus = tokenise.corpus(read()).unwrap();
    assert_eq!(corpus.documents(), 300);
    for (i, source) in read().enumerate() {
        let document = tokenise.document(&source.unwrap()).unwrap();
        assert_eq!(corpus.ids()[corpus.range(i)], document.ids);
        assert_eq!((document.ids[0], document.ids.last()), (256, Some(&257)));
    }
}

#[test]
fn a_field_beside_the_document_routes_it() {
    let lines = "{\"text\":\"a\",\"subject\":\"maths\"}\n{\"text\":\"b\"}\n{\"text\":\"c\",\"subject\":\"art\"}\n\
                 {\"text\":\"d\",\"subject\":null}\n{\"prompt\":\"e\",\"completion\":\"f\",\"subject\":\"maths\"}\n";
    let read = |text: &str| documents::read("x.jsonl", std::io::Cursor::new(text.to_string()), Split::File).unwrap();
    let corpus = tokenise(None).corpus(read(lines).routed_by("subject")).unwrap();
    let routes: Vec<Option<&str>> = (0..5).map(|i| corpus.route(i)).collect();
    assert_eq!(routes, [Some("maths"), None, Some("art"), None, Some("maths")]);
    assert_eq!(corpus.routes(), ["art", "maths"]);
    assert_eq!(corpus.route(5), None);
    // printf 'potstill routes 1\nmaths\n\nart\n\nmaths\n' | sha256sum
    let digest = "2297106e86d0a102efcec2130688fe372ea6a8c2d9f6d823f6a91322b9281dcb";
    assert_eq!(corpus.routes_digest().as_deref(), Some(digest));

    let plain = tokenise(None).corpus(read(lines)).unwrap();
    assert_eq!((plain.route(0), plain.routes_digest()), (None, None));
    assert_eq!(plain.digest(), corpus.digest(), "records of a corpus fit it however it is routed");

    for (value, found) in [("3", "found 3"), ("\"\"", "found \"\""), ("[\"a\"]", "found [\"a\"]")] {
        let row = format!("{{\"text\":\"a\"}}\n{{\"text\":\"a\",\"subject\":{value}}}\n");
        let error = read(&row).routed_by("subject").collect::<Result<Vec<_>>>().unwrap_err().to_string();
        assert!(error.starts_with("x.jsonl:2: subject: expected a string") && error.contains(found), "{error}");
    }
}

#[test]
fn a_route_field_that_no_document_has_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, "{\"text\":\"one\",\"subject\":\"art\"}\n{\"text\":\"two\"}\n").unwrap();
    let read = |field: &str| {
        let route_field = Some(field.to_string());
        read_corpus(
            &crate::common::small_tokenizer(),
            &CorpusOptions { route_field, ..CorpusOptions::new(vec![path.clone()]) },
        )
    };
    let corpus = read("subject").unwrap();
    assert_eq!((corpus.route(0), corpus.route(1)), (Some("art"), None));
    let error = read("subjekt").unwrap_err().to_string();
    assert!(error.contains("`subjekt`: expected at least one document") && error.contains("spelling"), "{error}");
}
