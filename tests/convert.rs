//! DistillKit's files as shard sets: every form, its settings, and what is wrong with a file.
#![cfg(feature = "parquet")]

use crate::common::{golden, small_tokenizer};
use potstill::Result;
use potstill::distill::convert::{ImportOptions, Imported, Values, import};
use potstill::distill::corpus::{CorpusOptions, read_corpus};
use potstill::formats::parquet::{Cell, Kind, TableWriter};
use potstill::formats::tables::{Numbers, Table};
use potstill::shards::rows::{CONTEXT_START, DOCUMENT_START, Records, VALID};
use potstill::shards::{Reader, TailMass};
use serde_json::Value;
use std::fs;
use std::ops::ControlFlow::Continue;
use std::path::{Path, PathBuf};

fn golden_values() -> Value {
    serde_json::from_slice(&fs::read(golden("distillkit/golden.json")).unwrap()).unwrap()
}

fn small(value: &Value) -> u32 {
    value.as_u64().unwrap() as u32
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(small).collect()
}

fn bring_in(input: &Path, out: &Path, options: &ImportOptions) -> Result<Imported> {
    import(input, out, &small_tokenizer(), options, &mut |_| Continue(()))
}

/// Writes the golden table's settings beside a copy of its file.
fn table(dir: &Path, form: &str) -> (PathBuf, Value) {
    let folder = dir.join(form);
    fs::create_dir_all(&folder).unwrap();
    fs::copy(golden(&format!("distillkit/{form}.parquet")), folder.join("data_0.parquet")).unwrap();
    let expected = golden_values()["tables"][form].clone();
    if !expected["config"].is_null() {
        fs::write(folder.join("compression_config.yaml"), expected["config"].to_string()).unwrap();
    }
    (folder, expected)
}

/// Compares a set with the golden table: tokens, documents, and the distribution of every row that has a record.
fn compare(set: &Reader, expected: &Value, values: Values) {
    let rows = set.read_rows(0, set.rows()).unwrap();
    let Records::TopK { ids: found_ids, log_probs, tails, .. } = &rows.records else { panic!() };
    let k = set.layout().entries as usize;
    let mut at = 0;
    for row in expected["rows"].as_array().unwrap() {
        let (tokens, records) = (ids(&row["input_ids"]), row["records"].as_array().unwrap());
        for document in row["documents"].as_array().unwrap() {
            let (start, end) = (small(&document[0]) as usize, small(&document[1]) as usize);
            for position in start..end {
                assert_eq!(rows.tokens[at], tokens[position]);
                let begins = if position == start { DOCUMENT_START | CONTEXT_START } else { 0 };
                let valid = if position + 1 < end && position < records.len() { VALID } else { 0 };
                assert_eq!(rows.flags[at], begins | valid, "row {at}");
                if position < records.len() {
                    check_record(
                        (&found_ids[at * k..][..k], &log_probs[at * k..][..k], tails[at]),
                        &records[position],
                        values,
                    );
                }
                at += 1;
            }
        }
    }
    assert_eq!(at as u64, set.rows());
}

fn check_record((found, log_probs, tail): (&[u32], &[f32], f32), record: &Value, values: Values) {
    let (ids, numbers) = (ids(&record[0]), numbers(&record[1]));
    let sum: f64 = numbers.iter().map(|v| v.exp()).sum();
    // Half a step of unorm16, 24 / 65535, and single precision.
    let (constant, expected_tail) = match values {
        Values::Logits => (sum.ln(), 0.0),
        Values::LogProbs => (0.0, 1.0 - sum),
    };
    assert!((f64::from(tail) - expected_tail).abs() < 1e-6, "{tail} {expected_tail}");
    for (id, number) in ids.iter().zip(numbers) {
        let at = found.iter().position(|other| other == id).expect("the id is there");
        assert!((f64::from(log_probs[at]) - (number - constant)).abs() < 1.9e-4);
    }
}

#[test]
fn the_three_forms_become_shard_sets() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("new", Values::LogProbs, TailMass::Derived),
        ("legacy", Values::Logits, TailMass::Unknown),
        ("raw", Values::Logits, TailMass::Unknown),
        ("raw_log_probs", Values::LogProbs, TailMass::Derived),
    ];
    for (form, values, tail_mass) in cases {
        let (folder, expected) = table(dir.path(), form);
        let out = dir.path().join(format!("{form} set"));
        let made = bring_in(&folder, &out, &ImportOptions::default()).unwrap();
        assert_eq!((made.form.to_string().as_str(), made.values), (form.split('_').next().unwrap(), values));
        let set = Reader::open(&out).unwrap();
        assert_eq!(set.spec().tail_mass, tail_mass);
        compare(&set, &expected, values);
        set.alignment().unwrap();
        // The tokens beside it are the corpus of the set.
        let corpus = read_corpus(&small_tokenizer(), &CorpusOptions::new(vec![made.tokens])).unwrap();
        assert_eq!(corpus.digest(), set.spec().corpus_digest);
        set.check_tokens(0, corpus.ids()).unwrap();
        if form == "raw" {
            assert_eq!(corpus.loss()[..4], [false, false, true, true]);
            assert!(made.why.contains("above 0 at") && made.why.contains("row 0, position 0"), "{}", made.why);
        }
        if form == "raw_log_probs" {
            assert!(made.why.contains("none above 0"), "{}", made.why);
            let told = ImportOptions { values: Some(Values::Logits), ..ImportOptions::default() };
            let made = bring_in(&folder, &dir.path().join("told"), &told).unwrap();
            assert_eq!(made.manifest.spec.tail_mass, TailMass::Unknown);
        }
        // The same command again changes nothing.
        let before = fs::read(out.join("manifest.json")).unwrap();
        bring_in(&folder, &out, &ImportOptions::default()).unwrap();
        assert_eq!(fs::read(out.join("manifest.json")).unwrap(), before);
    }
}

#[test]
fn lists_are_read_whatever_the_file_calls_them_and_end_where_they_should() {
    let table = Table::open(&golden("distillkit/new.parquet")).unwrap();
    assert_eq!(table.columns().len(), 3);
    let mut rows = table.read(&[("compressed_logprobs", 2), ("input_ids", 1)]).unwrap();
    let mut lengths = Vec::new();
    while let Some(cells) = rows.next().unwrap() {
        assert!(matches!(cells[0].numbers, Numbers::I32(_)) && matches!(cells[1].numbers, Numbers::I64(_)));
        lengths.push((cells[0].ends.len(), cells[1].ends[0]));
    }
    assert_eq!(lengths, [(8, 9), (5, 5), (0, 1), (11, 12)]);
    let says = |columns: &[(&str, usize)], words: &str| {
        let error = table.read(columns).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    };
    says(&[("input_ids", 2)], "lists of another depth");
    says(&[("labels", 1)], "no such column");
    let legacy = Table::open(&golden("distillkit/legacy.parquet")).unwrap();
    assert!(legacy.read(&[("source", 1)]).err().unwrap().to_string().contains("another type"));
}

fn config(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("settings.yaml");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn settings_are_read_strictly() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, expected) = table(dir.path(), "new");
    let refused = |settings: &str, words: &[&str]| {
        let options = ImportOptions { config: Some(config(dir.path(), settings)), ..ImportOptions::default() };
        let error = bring_in(&folder, &dir.path().join("refused"), &options).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{settings}: {error}");
        assert!(!dir.path().join("refused").exists());
    };
    let base = "d: 384, k: 16, exact_k: 4, residual_bins: []";
    refused("{ d: 384, k: 16, exactk: 4, residual_bins: [] }", &["exactk", "did you mean `exact_k`?"]);
    refused("{ d: 384, k: 16, residual_bins: [] }", &["exact_k", "nothing"]);
    refused("{ d: 384, k: 16, exact_k: 4 }", &["residual_bins"]);
    refused(&format!("{{ {base} }}"), &["exact_k", "polynomial_terms"]);
    refused(&format!("{{ {base}, polynomial_terms: [0, -1] }}"), &["polynomial_terms[1]", "-1", "infinite"]);
    refused(&format!("{{ {base}, polynomial_terms: [0, cube] }}"), &["polynomial_terms[1]", "cube"]);
    refused(&format!("{{ {base}, polynomial_terms: [9], term_dtype: float16 }}"), &["term_dtype", "overflow"]);
    refused(&format!("{{ {base}, polynomial_terms: [0], term_dtype: float8 }}"), &["term_dtype", "float16"]);
    refused("{ d: 384, k: 16, exact_k: 17, residual_bins: [] }", &["exact_k", "17"]);
    refused("{ d: 384, k: 500, exact_k: 5, residual_bins: [] }", &["`k`", "500"]);
    let bins = "residual_bins: [{ scale_dtype: float32, element_bits: BITS, num_elements: COUNT }]";
    for (bits, count, word) in [("65", "4", "65"), ("0", "4", "0"), ("4", "13", "13"), ("4", "0", "num_elements")] {
        let bins = bins.replace("BITS", bits).replace("COUNT", count);
        refused(&format!("{{ d: 384, k: 16, exact_k: 4, {bins} }}"), &["residual_bins", word]);
    }
    refused("{ logprob_compressor: {}, legacy_logit_compression: {} }", &["both"]);
    refused("{ teacher: { kind: hf } }", &["teacher", "neither"]);
    refused(
        "{ legacy_logit_compression: { k: 4, exact_k: 4, polynomial_degree: 0, vocab_size: 340 } }",
        &["the new form", "the legacy form"],
    );
    // A recipe of DistillKit's holds them too.
    let text = format!("{{ model: x, teacher: {{ kind: dataset, logprob_compressor: {} }} }}", expected["config"]);
    let options = ImportOptions { config: Some(config(dir.path(), &text)), ..ImportOptions::default() };
    bring_in(&folder, &dir.path().join("set"), &options).unwrap();
    // None at all.
    fs::remove_file(folder.join("compression_config.yaml")).unwrap();
    let error = bring_in(&folder, &dir.path().join("no"), &ImportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("compression_config.yaml") && error.contains("--config"), "{error}");
}

/// A table of the new form with one exact entry a position: 2 bytes of bfloat16, and ids of 9 bits.
fn write_new(path: &Path, tokens: &[u32], values: &[Vec<u8>], ids: &[Vec<u8>]) {
    let columns = [("input_ids", Kind::Ids), ("compressed_logprobs", Kind::Bytes), ("bytepacked_indices", Kind::Bytes)];
    let mut table = TableWriter::new(fs::File::create(path).unwrap(), path, &columns).unwrap();
    table.push(&[Cell::Ids(&[5, 6]), Cell::Bytes(&[value(-0.25)]), Cell::Bytes(&[id(6)])]).unwrap();
    table.push(&[Cell::Ids(tokens), Cell::Bytes(values), Cell::Bytes(ids)]).unwrap();
    table.finish().unwrap();
    let settings = "{ d: 400, k: 1, exact_k: 1, exact_dtype: bfloat16, residual_bins: [], delta_encoding: false }";
    fs::write(path.with_file_name("compression_config.yaml"), settings).unwrap();
}

fn value(x: f32) -> Vec<u8> {
    half::bf16::from_f32(x).to_le_bytes().to_vec()
}

fn id(id: u16) -> Vec<u8> {
    (id << 7).to_be_bytes().to_vec()
}

/// Byte strings, one a position.
type Cells = Vec<Vec<u8>>;

#[test]
fn a_bad_position_is_named_with_file_and_row() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data_0.parquet");
    let good = || (vec![value(-0.5), value(-1.0)], vec![id(9), id(8)]);
    let mut number = 0;
    let mut refused = |tokens: &[u32], (values, ids): (Vec<Vec<u8>>, Vec<Vec<u8>>), words: &[&str]| {
        write_new(&path, tokens, &values, &ids);
        number += 1;
        let error = bring_in(&path, &dir.path().join(number.to_string()), &ImportOptions::default()).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("data_0.parquet: row 1") && words.iter().all(|w| error.contains(w)),
            "{words:?}: {error}"
        );
    };
    let with = |change: &dyn Fn(&mut Cells, &mut Cells)| {
        let (mut values, mut ids) = good();
        change(&mut values, &mut ids);
        (values, ids)
    };
    let tokens = [7, 8, 9];
    refused(
        &tokens,
        with(&|_, ids| ids[1] = id(400)),
        &["position 1: `bytepacked_indices`", "ids below 400", "found 400"],
    );
    refused(&tokens, with(&|values, _| values[1] = value(f32::NAN)), &["position 1: `compressed_logprobs`", "NaN"]);
    refused(&tokens, with(&|v, _| v[0] = value(f32::NEG_INFINITY)), &["position 0: `compressed_logprobs`", "-inf"]);
    refused(&tokens, with(&|values, _| values[0] = value(0.5)), &["position 0", "log-probabilities", "1.6"]);
    refused(&tokens, with(&|values, _| values[1].truncate(1)), &["position 1", "2 bytes", "found 1"]);
    refused(&tokens, with(&|_, ids| ids[0].push(0)), &["position 0: `bytepacked_indices`", "2 bytes", "found 3"]);
    refused(&tokens, with(&|_, ids| ids.truncate(1)), &["`bytepacked_indices`", "3 positions", "found 1"]);
    let uneven = with(&|values, _| values.push(value(-2.0)));
    refused(&tokens, uneven, &["`compressed_logprobs`", "2 positions, as many as `bytepacked_indices`", "found 3"]);
    refused(&[7, 8, 9, 1], good(), &["4 positions", "found 2"]);
    refused(&[7], good(), &["1 positions", "found 2"]);
    refused(&[7, 340, 9], good(), &["position 1: `input_ids`", "340"]);
    // An id between the tokenizer's 340 and the vocabulary's 400 is padding: its probability is the tail's.
    let (values, mut ids) = good();
    ids[0] = id(350);
    write_new(&path, &tokens, &values, &ids);
    let made = bring_in(&path, &dir.path().join("padded"), &ImportOptions::default()).unwrap();
    assert_eq!((made.padding, made.hits), (1, (1, 3)));
    Reader::open(&dir.path().join("padded")).unwrap().alignment().unwrap();
}

#[test]
fn other_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |input: &Path, words: &[&str]| {
        let error = bring_in(input, &dir.path().join("out"), &ImportOptions::default()).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    };
    refused(&dir.path().join("missing"), &["missing"]);
    refused(dir.path(), &[".parquet file", "none"]);
    let torn = dir.path().join("torn.parquet");
    let whole = fs::read(golden("distillkit/new.parquet")).unwrap();
    for length in [0, 3, whole.len() / 2, whole.len() - 1] {
        fs::write(&torn, &whole[..length]).unwrap();
        refused(&torn, &["torn.parquet", "a readable Parquet file"]);
    }
    // Every byte of the data damaged in turn: an error or other numbers, never a panic.
    for at in (4..whole.len()).step_by(97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        fs::write(&torn, &bytes).unwrap();
        let _ = bring_in(&torn, &dir.path().join(format!("set{at}")), &ImportOptions::default());
    }
    let plain = dir.path().join("plain.parquet");
    let mut table = TableWriter::new(fs::File::create(&plain).unwrap(), &plain, &[("input_ids", Kind::Ids)]).unwrap();
    table.push(&[Cell::Ids(&[1, 2])]).unwrap();
    table.finish().unwrap();
    refused(&plain, &["columns", "token_ids + top_values", "found input_ids"]);
    let (folder, _) = self::table(dir.path(), "new");
    fs::copy(golden("distillkit/legacy.parquet"), folder.join("data_1.parquet")).unwrap();
    refused(&folder, &["data_1.parquet", "the new form", "the legacy form", "one by one"]);
}

/// A copy of the golden table as `Dataset.save_to_disk` left it, its settings beside it.
fn saved(dir: &Path, form: &str) -> (PathBuf, Value) {
    let (folder, expected) = table(dir, form);
    fs::remove_file(folder.join("data_0.parquet")).unwrap();
    copy(&golden(&format!("distillkit/saved/{form}")), &folder);
    (folder, expected)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (entry, name) = (entry.as_ref().unwrap().path(), entry.as_ref().unwrap().file_name());
        if entry.is_dir() { copy(&entry, &to.join(name)) } else { fs::copy(&entry, to.join(name)).map(drop).unwrap() }
    }
}

#[test]
fn a_saved_data_set_becomes_the_set_that_its_parquet_file_becomes() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("new", Values::LogProbs),
        ("legacy", Values::Logits),
        ("raw", Values::Logits),
        ("raw_log_probs", Values::LogProbs),
    ];
    for (form, values) in cases {
        let parquet = dir.path().join(format!("{form} of parquet"));
        bring_in(&table(dir.path(), form).0, &parquet, &ImportOptions::default()).unwrap();
        let (folder, expected) = saved(dir.path(), form);
        // What `Dataset.map` leaves beside the data is no part of it.
        fs::write(folder.join("cache-9e182dba9e69de65.arrow"), "not even one").unwrap();
        let out = dir.path().join(format!("{form} of arrow"));
        let made = bring_in(&folder, &out, &ImportOptions::default()).unwrap();
        assert_eq!(made.values, values);
        compare(&Reader::open(&out).unwrap(), &expected, values);
        for file in ["manifest.json", "tokens.jsonl", "00000.shard"] {
            assert!(fs::read(out.join(file)).unwrap() == fs::read(parquet.join(file)).unwrap(), "{form}: {file}");
        }
    }
}

#[test]
fn a_saved_data_set_that_is_damaged_or_not_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |input: &Path, words: &[&str]| {
        let out = dir.path().join("out");
        let error = bring_in(input, &out, &ImportOptions::default()).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    };
    let (folder, _) = saved(dir.path(), "legacy");
    let dict = folder.join("dataset_dict.json");
    fs::write(&dict, "{\"splits\": [\"train\", \"test\"]}").unwrap();
    refused(&folder, &["dataset_dict.json: `splits`", "found train, test", "the folder of one split"]);
    fs::write(&dict, "{\"splits\": [\"../train\"]}").unwrap();
    refused(&folder, &["`splits`", "expected one", "found none"]);

    let (folder, _) = saved(dir.path(), "raw");
    let state = folder.join("state.json");
    let whole = fs::read_to_string(&state).unwrap();
    for (from, to, words) in [
        ("data-00000-of-00001.arrow", "../raw/data.arrow", ["state.json: `_data_files`", "../raw/data.arrow"]),
        ("data-00000-of-00001.arrow", "gone.arrow", ["cannot open", "gone.arrow"]),
        ("\"_split\"", "\"_indices_data_files\": [{}], \"_split\"", ["picked by indices", "save it again"]),
    ] {
        fs::write(&state, whole.replace(from, to)).unwrap();
        refused(&folder, &words);
    }
    fs::write(&state, "{}").unwrap();
    refused(&folder, &["save_to_disk", "found none"]);
    fs::write(&state, whole).unwrap();

    let data = folder.join("data-00000-of-00001.arrow");
    let whole = fs::read(&data).unwrap();
    // Every cut is seen: even behind a whole batch there has to be the end mark.
    for length in 0..whole.len() {
        fs::write(&data, &whole[..length]).unwrap();
        refused(&folder, &["data-00000-of-00001.arrow: expected a whole Arrow stream"]);
    }
    fs::write(&data, b"ARROW1\0\0 the other format, with a footer").unwrap();
    refused(&folder, &["a whole Arrow stream", "another format", "save the data set again"]);
    // Every byte damaged in turn: an error or other numbers, never a panic, nor memory without end.
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        fs::write(&data, &bytes).unwrap();
        let Ok(table) = Table::open(&data) else { continue };
        for depth in [1, 2] {
            for column in table.columns() {
                let Ok(mut rows) = table.read(&[(column, depth)]) else { continue };
                while let Ok(Some(cells)) = rows.next() {
                    assert!(cells.iter().all(|cell| cell.numbers.len() <= whole.len()));
                }
            }
        }
    }
}
