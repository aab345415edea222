//! Held-out splits and packing, checked by brute force, and digests and orders as Python computes them
//! (`golden/data.json`).

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;

use potstill::data::packing::{Batch, Cursor, IGNORE, PADDING, Packer};
use potstill::data::split::{Holdout, split};
use potstill::data::tokens::{Corpus, Document, NO_ROUTE};
use serde_json::{Value, json};

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/data.json")).unwrap()
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
        let route = ["b", "", "a", "c"][random.below(4)];
        corpus.push_routed(Document { ids, loss, bytes }, (!route.is_empty()).then_some(route)).unwrap();
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
            assert_eq!((batch.labels[row], batch.tokens[row], batch.route[row]), (IGNORE, 0, NO_ROUTE));
            assert!(batch.row_id[row..].iter().all(|&id| id == PADDING), "padding is at the end");
            continue;
        }
        *seen.entry(id).or_default() += 1;
        let id = id as usize;
        assert_eq!(batch.tokens[row], corpus.ids()[id]);
        let document = (0..corpus.documents()).find(|&i| corpus.range(i).contains(&id)).unwrap();
        let route = corpus.routes().get(batch.route[row] as usize).map(String::as_str);
        assert_eq!(route, corpus.route(document));
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
        let mut packer = Packer::new(corpus, one(0..count), 1, count, Some(seed)).unwrap();
        let batch = packer.batch(Cursor { epoch, batch: 0 }).unwrap();
        assert_eq!(json!(batch.row_id), entry["order"]);
    }
}

fn one(range: Range<usize>) -> Vec<Range<usize>> {
    std::iter::once(range).collect()
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
    assert!(Packer::new(corpus.clone(), one(0..144), 8, 1, None).is_err());
    assert!(Packer::new(corpus.clone(), vec![], 8, 1, None).is_err());
    assert!(Packer::new(corpus, one(0..143), usize::MAX, 2, None).is_err());
}
