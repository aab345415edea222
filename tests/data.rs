//! Documents, chat templates, loss masks, held-out splits and packing, against transformers' and Python's answers
//! (`golden/data.json`) and against properties checked by brute force.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use potstill::data::chat::ChatTemplate;
use potstill::data::documents::{self, Content, Place, Source, Split};
use potstill::data::packing::{Batch, Cursor, IGNORE, PADDING, Packer};
use potstill::data::rows::{self, Chat};
use potstill::data::split::{Holdout, split};
use potstill::data::tokens::{Corpus, Document, Encoded, Tokenise};
use potstill::{Error, Result};
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
    Source { place: place(), content: rows::parse(row, &place()).unwrap() }
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
        let template = template(&golden, entry);
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
                let (whole, spans) = template.render_learned(&chat, &place()).unwrap();
                let spans: Vec<[usize; 2]> = spans.iter().map(|s| [s.start, s.end]).collect();
                assert_eq!((whole.as_str(), json!(spans)), (text, case["spans"].clone()), "{}", entry["name"]);
            }
        }
    }
}

#[test]
fn templates_that_rewrite_turns_or_break_are_refused_with_a_reason() {
    let last_only =
        "{% for m in messages %}{{ m.role ~ ':' ~ (m.content if loop.last else '...') ~ '\n' }}{% endfor %}";
    let new = |source: &str| ChatTemplate::new("t.jinja", source, BTreeMap::new(), 0);
    let row = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}]}"#;
    let template = new(last_only).unwrap();
    let message = tokenise(Some(&template)).document(&source(row)).unwrap_err().to_string();
    assert!(message.contains("chats.jsonl:7") && message.contains("messages[1]") && message.contains("only appends"));
    let all = Tokenise { train_on_inputs: true, ..tokenise(Some(&template)) };
    assert_eq!(learned(&all.document(&source(row)).unwrap()), "user:...\nassistant:...\nuser:c\n");
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
    let sharegpt = r#"{"conversations":[{"from":"system","value":"S"},{"from":"human","value":"é?"},{"from":"gpt","value":"ö👋"},
        {"from":"human","value":"x"},{"from":"gpt","value":"y"}]}"#;
    let document = tokenise.document(&source(sharegpt)).unwrap();
    assert_eq!(learned(&document), "ö👋</s>y</s>");
    let text = "<|system|>\nS</s>\n<|user|>\né?</s>\n<|assistant|>\nö👋</s>\n<|user|>\nx</s>\n<|assistant|>\ny</s>\n";
    assert_eq!(document.ids, text.bytes().map(u32::from).collect::<Vec<_>>(), "no special token is added to a chat");
    assert_eq!(document.bytes.unwrap().iter().sum::<u32>() as usize, text.len());

    let turns = r#"{"prompt":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}],
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
        r#"{"messages":[{"role":"system","content":"s"},{"role":"assistant","content":null,"tool_calls":[{"a":1.5e3}]}]}"#,
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
    assert!(matches!(read(&folder.path().join("none.txt")), Err(Error::Io { .. })));
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

fn corpus(lengths: &[usize], random: &mut Random) -> Corpus {
    let mut corpus = Corpus::default();
    for &length in lengths {
        let loss = (0..length).map(|_| random.below(4) > 0).collect();
        let ids = (0..length).map(|_| random.below(1000) as u32).collect();
        let bytes = Some((0..length).map(|_| random.below(9) as u32).collect());
        corpus.push(Document { ids, loss, bytes }).unwrap();
    }
    corpus
}

/// Checks one batch against the corpus by brute force and counts its tokens.
fn check_batch(batch: &Batch, corpus: &Corpus, parts: &[Range<usize>], length: usize, seen: &mut HashMap<u64, usize>) {
    let rows = batch.tokens.len();
    let part = |id: u64| parts.iter().find(|part| part.contains(&(id as usize)));
    let mut piece = vec![0; rows];
    let (mut valid, mut bytes) = (0, 0);
    for row in 0..rows {
        let id = batch.row_id[row];
        let follows = row % length > 0 && id != PADDING && batch.row_id[row - 1] == id.wrapping_sub(1);
        let same_part = follows && part(id) == part(batch.row_id[row - 1]);
        piece[row] = if same_part { piece[row - 1] } else { row };
        assert_eq!(batch.positions[row] as usize, row - piece[row]);
        if id == PADDING {
            assert_eq!((batch.labels[row], batch.tokens[row]), (IGNORE, 0));
            assert!(batch.row_id[row..].iter().all(|&id| id == PADDING), "padding is at the end");
            continue;
        }
        *seen.entry(id).or_default() += 1;
        let id = id as usize;
        assert_eq!(batch.tokens[row], corpus.ids()[id]);
        let learned = id + 1 < part(id as u64).unwrap().end && corpus.loss()[id + 1];
        assert_eq!(batch.labels[row], if learned { corpus.ids()[id + 1] } else { IGNORE });
        valid += usize::from(learned);
        bytes += if learned { u64::from(corpus.bytes().unwrap()[id + 1]) } else { 0 };
    }
    assert_eq!((batch.valid, batch.valid_bytes), (valid, Some(bytes)));
    for window in [None, Some(1), Some(2), Some(length as u32)] {
        let (query, key) = match window {
            Some(window) => batch.windowed(NonZeroU32::new(window).unwrap()),
            None => (batch.query_range.clone(), batch.key_range.clone()),
        };
        for i in 0..rows {
            for j in 0..rows {
                let sees = piece[i] == piece[j] && j <= i && window.is_none_or(|window| i - j < window as usize);
                assert_eq!((query[i][0]..query[i][1]).contains(&(j as u32)), sees, "query {i} key {j} {window:?}");
                assert_eq!((key[j][0]..key[j][1]).contains(&(i as u32)), sees, "key {j} query {i} {window:?}");
            }
        }
        let monotone = |ranges: &[[u32; 2]]| ranges.windows(2).all(|w| w[0][0] <= w[1][0] && w[0][1] <= w[1][1]);
        assert!(monotone(&query) && monotone(&key));
    }
}

#[test]
fn packing_loses_no_token_and_isolates_documents() {
    let mut random = Random(1);
    for round in 0..150 {
        let length = 1 + random.below(9);
        let special = [1, 2, length.max(2) - 1, length, length + 1, 3 * length];
        let lengths: Vec<usize> = (0..1 + random.below(12))
            .map(|_| if random.below(2) == 0 { special[random.below(6)] } else { 1 + random.below(20) })
            .collect();
        let corpus = Arc::new(corpus(&lengths, &mut random));
        let holdout = match round % 4 {
            0 => Holdout::Nothing,
            1 => Holdout::LastSequences(1),
            2 => Holdout::LastFraction(0.3),
            _ => Holdout::Documents { fraction: 0.5, seed: round },
        };
        let Ok(parts) = split(&corpus, length, holdout) else { continue };
        let mut seen_of = Vec::new();
        for part in [&parts.train, &parts.held_out] {
            if part.is_empty() {
                continue;
            }
            let batch_size = 1 + random.below(4);
            let seed = (random.below(2) == 0).then_some(round);
            let mut packer = Packer::new(corpus.clone(), part.clone(), length, batch_size, seed).unwrap();
            let mut cursor = Cursor::default();
            for epoch in 0..2 {
                let mut seen = HashMap::new();
                while cursor.epoch == epoch {
                    let batch = packer.next_batch(&mut cursor).unwrap();
                    assert_eq!(batch.tokens.len(), length * batch_size);
                    check_batch(&batch, &corpus, part, length, &mut seen);
                }
                assert!(seen.values().all(|&count| count == 1), "no token twice");
                assert_eq!(seen.len(), packer.tokens());
                seen_of.push(seen);
            }
        }
        let all: HashMap<_, _> = seen_of.into_iter().flatten().collect();
        assert_eq!(all.len(), corpus.ids().len(), "no token lost, none on both sides");
    }
}

#[test]
fn tail_splits_keep_the_pieces_of_the_whole_corpus() {
    let corpus = Arc::new(corpus(&[7, 30, 2, 11], &mut Random(3)));
    let contexts = |parts: Vec<Range<usize>>| {
        let mut packer = Packer::new(corpus.clone(), parts, 8, 1, None).unwrap();
        let batches = (0..packer.batches()).map(|batch| packer.batch(Cursor { epoch: 0, batch }).unwrap());
        batches.flat_map(|b| b.row_id.into_iter().zip(b.positions)).filter(|(id, _)| *id != PADDING).collect::<Vec<_>>()
    };
    let whole = contexts(split(&corpus, 8, Holdout::Nothing).unwrap().train);
    let parts = split(&corpus, 8, Holdout::LastFraction(0.4)).unwrap();
    assert_eq!((parts.train.last(), parts.held_out.first()), (Some(&(7..32)), Some(&(32..37))));
    assert_eq!([contexts(parts.train), contexts(parts.held_out)].concat(), whole);
}

#[test]
fn held_out_documents_are_drawn_by_content() {
    let mut doubled = Corpus::default();
    for id in (0..200).chain(0..200) {
        doubled.push(Document { ids: vec![id, 1], loss: vec![true; 2], bytes: None }).unwrap();
    }
    let parts = split(&doubled, 4, Holdout::Documents { fraction: 0.25, seed: 9 }).unwrap();
    let held: Vec<u32> = parts.held_out.iter().map(|range| doubled.ids()[range.start]).collect();
    assert_eq!(held[..held.len() / 2], held[held.len() / 2..], "a copy falls on the same side");
    assert!((70..130).contains(&held.len()), "{} of 400 at a quarter, standard deviation 12", held.len());
    for bad in [Holdout::LastFraction(1.0), Holdout::LastFraction(f64::NAN), Holdout::LastSequences(1000)] {
        assert!(split(&doubled, 4, bad).is_err());
    }
}

#[test]
fn orders_and_digests_are_those_python_computes() {
    let golden = golden();
    let mut corpus = Corpus::default();
    for document in golden["documents"].as_array().unwrap() {
        let ids = serde_json::from_value(document["ids"].clone()).unwrap();
        let loss = serde_json::from_value(document["loss"].clone()).unwrap();
        corpus.push(Document { ids, loss, bytes: None }).unwrap();
    }
    assert_eq!(json!(corpus.digest()), golden["digest"]);
    for entry in golden["orders"].as_array().unwrap() {
        let count = entry["count"].as_u64().unwrap() as usize;
        let seed = entry["seed"].as_str().unwrap().parse().unwrap();
        let epoch = entry["epoch"].as_u64().unwrap();
        let corpus = Arc::new(self::corpus(&[count], &mut Random(0)));
        let mut packer = Packer::new(corpus, vec![0..count], 1, count, Some(seed)).unwrap();
        let batch = packer.batch(Cursor { epoch, batch: 0 }).unwrap();
        assert_eq!(json!(batch.row_id), entry["order"]);
    }
}

#[test]
fn a_resumed_iteration_goes_on_where_it_stood() {
    let corpus = Arc::new(corpus(&[50, 3, 90], &mut Random(2)));
    let packer = || Packer::new(corpus.clone(), vec![0..50, 50..53, 53..143], 8, 3, Some(4)).unwrap();
    let (mut unbroken, mut cursor) = (packer(), Cursor::default());
    for _ in 0..3 * unbroken.batches() {
        let saved: Cursor = serde_json::from_str(&serde_json::to_string(&cursor).unwrap()).unwrap();
        let batch = unbroken.next_batch(&mut cursor).unwrap();
        assert_eq!(packer().batch(saved).unwrap(), batch);
    }
    assert_eq!(cursor, Cursor { epoch: 3, batch: 0 });
    assert!(packer().batch(Cursor { epoch: 0, batch: 6 }).unwrap_err().to_string().contains("a batch below 6"));
    assert!(Packer::new(corpus.clone(), vec![0..144], 8, 1, None).is_err());
    assert!(Packer::new(corpus.clone(), vec![], 8, 1, None).is_err());
    assert!(Packer::new(corpus, vec![0..143], usize::MAX, 2, None).is_err());
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
