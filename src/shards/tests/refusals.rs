//! What does not fit is refused, naming both sides.

use std::fs;

use super::*;

fn assert_says(error: crate::Error, words: &[&str]) {
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text:?} lacks one of {words:?}");
}

fn good() -> SetSpec {
    spec(top_k(4, LogProbType::DEFAULT), &[1.0], 20)
}

#[test]
fn another_spec_is_refused_by_its_first_differing_field() {
    let dir = tempfile::tempdir().unwrap();
    drop(Writer::resume_or_create(dir.path(), good()).unwrap());
    let finished = tempfile::tempdir().unwrap();
    capture(finished.path(), &good(), 20).unwrap();
    let teacher = Teacher { name: "small/teacher".into(), digest: "a9".into() };
    let cases = [
        (SetSpec { teacher, ..good() }, ["`teacher.digest`", "a9", "a1"]),
        (SetSpec { tokenizer_digest: "b9".into(), ..good() }, ["`tokenizer_digest`", "b9", "b2"]),
        (SetSpec { vocab_size: 1024, ..good() }, ["`vocab_size`", "1024", "1000"]),
        (SetSpec { record: top_k(8, LogProbType::DEFAULT), ..good() }, ["`record.k`", "8", "4"]),
        (SetSpec { record: top_k(4, LogProbType::F32), ..good() }, ["`record.log_probs`", "f32", "unorm16"]),
        (SetSpec { record: sampled(9, 4), ..good() }, ["`record`", "sampled", "top_k"]),
        (SetSpec { record: hidden(StateType::F16), temperatures: vec![], ..good() }, ["`record`", "hidden", "top_k"]),
        (SetSpec { temperatures: vec![1.0, 2.0], ..good() }, ["`temperatures`", "[1.0,2.0]", "[1.0]"]),
        (SetSpec { corpus_digest: "c9".into(), ..good() }, ["`corpus_digest`", "c9", "c3"]),
        (SetSpec { context_length: 32, ..good() }, ["`context_length`", "32", "64"]),
        (SetSpec { rows: 21, ..good() }, ["`rows`", "21", "20"]),
        (SetSpec { rows_per_shard: 8, ..good() }, ["`rows_per_shard`", "8", "16"]),
        (SetSpec { entropy: false, ..good() }, ["`entropy`", "false", "true"]),
    ];
    for (other, words) in cases {
        assert_says(Writer::resume_or_create(dir.path(), other.clone()).unwrap_err(), &words);
        assert_says(Writer::resume_or_create(finished.path(), other).unwrap_err(), &words);
    }
}

fn states_of(hidden_size: u32, layers: &[u32]) -> SetSpec {
    let record = Record::Hidden { states: StateType::F16, hidden_size, layers: layers.to_vec() };
    SetSpec { record, temperatures: vec![], ..good() }
}

#[test]
fn impossible_specs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        (SetSpec { vocab_size: 1 << 25, ..good() }, "vocab_size"),
        (SetSpec { real_vocab_size: 1001, ..good() }, "real_vocab_size"),
        (SetSpec { rows: 0, ..good() }, "rows"),
        (SetSpec { rows_per_shard: 0, ..good() }, "rows_per_shard"),
        (SetSpec { rows_per_shard: u32::MAX, ..good() }, "1 GiB"),
        (SetSpec { temperatures: vec![], ..good() }, "temperatures"),
        (SetSpec { temperatures: vec![2.0, 1.0], ..good() }, "temperatures"),
        (SetSpec { temperatures: vec![1.0, 0.0], ..good() }, "temperatures"),
        (SetSpec { temperatures: vec![1.0, f32::NAN], ..good() }, "temperatures"),
        (SetSpec { temperatures: vec![1.0, 2.0, 2.0], ..good() }, "temperatures"),
        (SetSpec { record: top_k(0, LogProbType::F32), ..good() }, "record.k"),
        (SetSpec { record: top_k(991, LogProbType::F32), ..good() }, "record.k"),
        (SetSpec { record: top_k(4, LogProbType::Unorm(33)), ..good() }, "record.log_probs"),
        (SetSpec { record: sampled(0, 1), ..good() }, "record.draws"),
        (SetSpec { record: sampled(70_000, 1), ..good() }, "record.draws"),
        (SetSpec { record: sampled(5, 6), ..good() }, "record.max_unique"),
        (SetSpec { record: sampled(5, 5), temperatures: vec![1.0, 2.0], ..good() }, "temperatures"),
        (SetSpec { record: hidden(StateType::F16), ..good() }, "temperatures"),
        (states_of(0, &[3]), "record.hidden_size"),
        (states_of(u32::MAX, &[3]), "record.hidden_size"),
        (states_of(5, &[]), "record.layers"),
        (states_of(5, &[3, 3]), "record.layers"),
        (states_of(5, &[u32::MAX]), "record.layers"),
        (SetSpec { rows_per_shard: u32::MAX, ..states_of(1 << 20, &(0..4000).collect::<Vec<_>>()) }, "1 GiB"),
    ];
    for (spec, field) in cases {
        assert_says(Writer::resume_or_create(dir.path(), spec).unwrap_err(), &[field]);
    }
    assert!(contents(dir.path()).is_empty());
}

#[test]
fn folders_with_other_contents_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.txt"), "x").unwrap();
    assert_says(Writer::resume_or_create(dir.path(), good()).unwrap_err(), &["thesis.txt", "another folder"]);
    assert_eq!(contents(dir.path()), [("thesis.txt".to_string(), b"x".to_vec())]);
}

#[test]
fn unfinished_and_missing_sets_do_not_open() {
    let dir = tempfile::tempdir().unwrap();
    assert_says(Reader::open(dir.path()).unwrap_err(), &["manifest.json"]);
    let (mut writer, _) = Writer::resume_or_create(dir.path(), good()).unwrap();
    assert_says(Reader::open(dir.path()).unwrap_err(), &["unfinished", "resumes"]);
    writer.push_rows(&batch(&good(), 0, 19)).unwrap();
    assert_says(writer.finish().unwrap_err(), &["expected 20", "found 19"]);
}

#[test]
fn other_students_versions_and_tokens_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = capture(dir.path(), &good(), 20).unwrap();
    manifest.check_compatible("b2", 990, None).unwrap();
    manifest.check_compatible("b2", 990, Some("c3")).unwrap();
    let refused = |t, v, c| manifest.check_compatible(t, v, c).unwrap_err();
    assert_says(refused("b9", 990, None), &["`tokenizer_digest`", "b9", "b2"]);
    assert_says(refused("b2", 991, None), &["`real_vocab_size`", "991", "990"]);
    assert_says(refused("b2", 990, Some("c9")), &["`corpus_digest`", "c9", "c3"]);

    let text = String::from_utf8(manifest.to_bytes().unwrap()).unwrap();
    let newer = text.replace("\"version\": 1", "\"version\": 3");
    assert_says(Manifest::parse(newer.as_bytes(), Path::new("m")).unwrap_err(), &["potstill-shards, 1", "shards, 3"]);

    let reader = Reader::open(dir.path()).unwrap();
    let mut tokens = batch(&good(), 3, 15).tokens;
    reader.check_tokens(3, &tokens).unwrap();
    tokens[14] += 1;
    let (ours, theirs) = ((tokens[14] - 1).to_string(), tokens[14].to_string());
    assert_says(reader.check_tokens(3, &tokens).unwrap_err(), &["row 17", &ours, &theirs]);
    assert_says(reader.read_rows(15, 6).unwrap_err(), &["6 rows from row 15", "below 20"]);
    assert!(reader.read_rows(u64::MAX, 2).is_err());
}

/// Spoils ids, log-probabilities, tails and log-partitions.
type ChangeTopK<'a> = &'a dyn Fn(&mut [u32], &mut [f32], &mut [f32], &mut [f32]);

#[test]
fn a_bad_batch_is_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let whole = tempfile::tempdir().unwrap();
    capture(whole.path(), &good(), 20).unwrap();
    let (mut writer, _) = Writer::resume_or_create(dir.path(), good()).unwrap();
    let mut refused = |change: &dyn Fn(&mut RowBatch), words: &[&str]| {
        let mut bad = batch(&good(), 0, 20);
        change(&mut bad);
        assert_says(writer.push_rows(&bad).unwrap_err(), words);
    };
    refused(&|b| b.tokens[6] = 990, &["row 6", "token", "990"]);
    refused(&|b| b.flags[6] |= 8, &["row 6", "flags"]);
    refused(&|b| b.flags[12] |= VALID, &["row 12", "masked"]);
    refused(&|b| b.flags[19] |= VALID, &["row 19", "masked"]);
    refused(&|b| b.nll[6] = f32::NAN, &["row 6", "nll", "NaN"]);
    refused(&|b| b.entropy[6] = -1.0, &["row 6", "entropy"]);
    refused(&|b| b.entropy.clear(), &["`entropy` of a batch of 20", "expected 20", "found 0"]);
    refused(&|b| b.nll.truncate(19), &["`nll`", "expected 20", "found 19"]);
    let mut refused = |change: ChangeTopK, words: &[&str]| {
        let change_records = |b: &mut RowBatch| {
            let Records::TopK { ids, log_probs, tails, log_partitions } = &mut b.records else { panic!() };
            change(ids, log_probs, tails, log_partitions);
        };
        refused(&change_records, words);
    };
    refused(&|ids, _, _, _| ids[24] = 990, &["row 6", "ids", "990"]);
    refused(&|ids, _, _, _| ids[24] = ids[25], &["row 6", "ids", "twice"]);
    refused(&|_, l, _, _| l[24] = f32::NAN, &["row 6", "log_probs", "NaN"]);
    refused(&|_, l, _, _| l[24] = 0.5, &["row 6", "log_probs", "0.5"]);
    refused(&|_, l, _, _| l.iter_mut().for_each(|x| *x -= 0.1), &["row 0", "T = 1", "sum of 1"]);
    refused(&|_, _, t, _| t[6] = f32::NAN, &["row 6", "tails"]);
    refused(&|_, _, t, _| t[6] = 1.5, &["row 6", "tails", "1.5"]);
    refused(&|_, _, _, c| c[6] = 0.1, &["row 6", "log_partitions", "0.1"]);
    let other = batch(&spec(sampled(9, 4), &[1.0], 20), 0, 20);
    assert_says(writer.push_rows(&other).unwrap_err(), &["expected top-k", "found sampled"]);
    assert_says(writer.push_rows(&batch(&SetSpec { rows: 21, ..good() }, 0, 21)).unwrap_err(), &["20 more", "21"]);
    writer.push_rows(&batch(&good(), 0, 20)).unwrap();
    writer.finish().unwrap();
    assert_eq!(contents(dir.path()), contents(whole.path()));
}

#[test]
fn states_that_the_type_cannot_hold_are_refused_with_the_one_that_can() {
    let pushed = |states: StateType, x: f32| {
        let spec = spec(hidden(states), &[], 20);
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _) = Writer::resume_or_create(dir.path(), spec.clone()).unwrap();
        let mut bad = batch(&spec, 0, 20);
        let Records::Hidden { states } = &mut bad.records else { panic!() };
        states[64] = x;
        writer.push_rows(&bad)
    };
    pushed(StateType::F16, 65_504.0).unwrap();
    assert_says(pushed(StateType::F16, -65_520.0).unwrap_err(), &["row 6", "states", "65504", "-65520", "bf16"]);
    pushed(StateType::Bf16, -65_520.0).unwrap();
    for states in [StateType::F16, StateType::Bf16] {
        assert_says(pushed(states, f32::NAN).unwrap_err(), &["row 6", "finite", "NaN"]);
        assert_says(pushed(states, f32::INFINITY).unwrap_err(), &["row 6", "finite", "inf"]);
    }
    let spec = spec(hidden(StateType::F16), &[], 20);
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _) = Writer::resume_or_create(dir.path(), spec.clone()).unwrap();
    let mut short = batch(&spec, 0, 20);
    let Records::Hidden { states } = &mut short.records else { panic!() };
    states.pop();
    assert_says(writer.push_rows(&short).unwrap_err(), &["`states`", "expected 200", "found 199"]);
    assert_says(writer.push_rows(&batch(&good(), 0, 20)).unwrap_err(), &["expected rows of hidden", "found top-k"]);
}

#[test]
fn counts_that_are_not_all_draws_are_refused() {
    let spec = spec(sampled(9, 4), &[1.0], 20);
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _) = Writer::resume_or_create(dir.path(), spec.clone()).unwrap();
    let mut bad = batch(&spec, 0, 20);
    let Records::Sampled { counts, .. } = &mut bad.records else { panic!() };
    counts[24] += 1;
    assert_says(writer.push_rows(&bad).unwrap_err(), &["row 6", "sum of counts", "expected 9", "found 10"]);
}
