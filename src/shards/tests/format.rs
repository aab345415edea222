//! The bytes of the format, and what comes back from them.

use super::super::rows;
use super::*;
use crate::digest::{hex, sha256};

const DOC: &str = include_str!("../../../docs/shards.md");

fn example(record: Record, temperatures: &[f32]) -> SetSpec {
    SetSpec {
        teacher: Teacher { name: "example/teacher".into(), digest: "7ea".into() },
        tokenizer_digest: "70c".into(),
        corpus_digest: "c09".into(),
        context_length: 8,
        rows_per_shard: 16_384,
        ..spec(record, temperatures, 2)
    }
}

fn heads(records: Records) -> RowBatch {
    let flags = vec![VALID | DOCUMENT_START | CONTEXT_START, 0];
    let nll = vec![-(0.25f64.ln()) as f32, 0.0];
    RowBatch { tokens: vec![17, 4], flags, nll, entropy: vec![1.75, 0.5], records }
}

fn example_top_k() -> (SetSpec, RowBatch) {
    // Unordered on purpose: the writer sorts.
    let rows =
        [[(4, 0.25), (512, 0.5), (3, 0.0625), (985, 0.125)], [(17, 1. / 32.), (77, 0.125), (640, 0.0625), (256, 0.75)]];
    let rest: [f64; 2] = [1.0 / 16.0, 1.0 / 32.0];
    let (mut tails, mut log_partitions) = (vec![], vec![]);
    for (row, rest) in rows.iter().zip(rest) {
        let total = row.iter().map(|e: &(u32, f64)| e.1.sqrt()).sum::<f64>() + rest.sqrt();
        tails.extend([rest as f32, (rest.sqrt() / total) as f32]);
        log_partitions.extend([0.0, total.ln() as f32]);
    }
    let ids = rows.iter().flatten().map(|e| e.0).collect();
    let log_probs = rows.iter().flatten().map(|e| e.1.ln() as f32).collect();
    let batch = heads(Records::TopK { ids, log_probs, tails, log_partitions });
    (example(top_k(4, LogProbType::Unorm(16)), &[1.0, 2.0]), batch)
}

fn example_sampled() -> (SetSpec, RowBatch) {
    let records = Records::Sampled { ids: vec![512, 985, 4, 0, 256, 0], counts: vec![3, 1, 1, 0, 5, 0] };
    (example(Record::Sampled { draws: 5, max_unique: 3, seed: 9 }, &[1.0]), heads(records))
}

/// Row 0: 1, -0.5, 65504 and 2^-24 at the end, 0.1, 3, -2, 1000 behind block 1; row 1: small whole numbers.
fn example_hidden() -> (SetSpec, RowBatch) {
    let first = [0.1, 3.0, -2.0, 1000.0, 1.0, -0.5, 65504.0, 0.5f32.powi(24)];
    let states = first.into_iter().chain((0..8).map(|i| i as f32)).collect();
    let record = Record::Hidden { states: StateType::F16, hidden_size: 4, layers: vec![1, 3] };
    (
        SetSpec { entropy: false, ..example(record, &[]) },
        RowBatch { entropy: vec![], ..heads(Records::Hidden { states }) },
    )
}

/// The hex block of the documentation that follows the line `marker`, comments after `|` left out.
fn documented_hex(marker: &str) -> String {
    let block = DOC.split(marker).nth(1).unwrap().split("```").nth(1).unwrap();
    let lines = block.lines().skip(1).map(|line| line.split('|').next().unwrap());
    lines.flat_map(str::chars).filter(|c| !c.is_whitespace()).collect()
}

/// The digests are those that tests/golden.py, an independent writer, prints.
fn assert_golden((spec, batch): (SetSpec, RowBatch), manifest: &str, shard: &str, marker: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, next) = Writer::resume_or_create(dir.path(), spec).unwrap();
    assert_eq!(next, 0);
    writer.push_rows(&batch).unwrap();
    writer.finish().unwrap();
    let files = contents(dir.path());
    let names: Vec<&str> = files.iter().map(|f| f.0.as_str()).collect();
    assert_eq!(names, ["00000.shard", "manifest.json"]);
    assert_eq!(hex(&files[0].1), documented_hex(marker));
    assert_eq!(sha256(&files[0].1), shard);
    assert_eq!(sha256(&files[1].1), manifest, "{}", String::from_utf8_lossy(&files[1].1));
    Reader::open(dir.path()).unwrap().alignment().unwrap();
}

#[test]
fn golden_bytes_of_a_top_k_set() {
    let manifest = "0cfa067857e99e0b4c95364af42c542488ddea15d386e8c549d536c46f29a3c1";
    let shard = "a169fa646bbd8d917e5f09eb52f4575caefb627a15f047cdc15ec23c77c89f5d";
    assert_golden(example_top_k(), manifest, shard, "<!-- example: top-k -->");
}

#[test]
fn golden_bytes_of_a_sampled_set() {
    let manifest = "f04b91bdf77016fb89f2a9cdf76c07dbfe5426076370a4d87cdc4fbf8e18d46e";
    let shard = "6363909b4f6591c3f038e97e94662184367646b57b21b05800c1ab534c499dea";
    assert_golden(example_sampled(), manifest, shard, "<!-- example: sampled -->");
}

#[test]
fn golden_bytes_of_a_set_of_hidden_states() {
    let manifest = "a93308fe853e5abac3e636f738d11bb2e75edb4326c23b9c2eb9a724bcc0a69a";
    let shard = "dcc7d7406b2b5053ecc222416041383dbe9edd3d461f8ab136b729de69403759";
    assert_golden(example_hidden(), manifest, shard, "<!-- example: hidden -->");
}

#[test]
fn hidden_states_come_back_rounded_to_their_type() {
    for kind in [StateType::F16, StateType::Bf16] {
        let spec = spec(hidden(kind), &[], 40);
        let dir = tempfile::tempdir().unwrap();
        let manifest = capture(dir.path(), &spec, 7).unwrap();
        let statistics = &manifest.statistics;
        assert_eq!((statistics.mean_tail_mass, statistics.mean_unique), (None, None));
        let reader = Reader::open(dir.path()).unwrap();
        // Two states of five 16-bit numbers after two words.
        assert_eq!(reader.layout().stride_words, 2 + 5);
        for (first, n) in [(30, 10), (0, 40), (15, 2), (39, 1)] {
            let (want, got) = (batch(&spec, first, n), reader.read_rows(first, n).unwrap());
            assert_eq!((want.tokens, want.flags, want.nll), (got.tokens, got.flags, got.nll));
            let (Records::Hidden { states: want }, Records::Hidden { states: got }) = (want.records, got.records)
            else {
                panic!("another kind");
            };
            assert_eq!(want.len(), got.len());
            // Half a unit in the last of 11 or 8 bits.
            let half = if kind == StateType::F16 { 0.5f32.powi(11) } else { 0.5f32.powi(8) };
            for (want, got) in want.into_iter().zip(got) {
                assert!((want - got).abs() <= half * want.abs() + 1e-7, "{want} read as {got}");
                assert_eq!(kind.decode(kind.encode(got)), got);
            }
        }
        let found = reader.alignment().unwrap();
        assert_eq!((found.valid_rows, found.in_record), (statistics.valid_rows, 0));
    }
}

#[test]
fn the_documented_shader_code_compiles() {
    let wgsl = DOC.split("```wgsl").nth(1).unwrap().split("```").next().unwrap();
    let module = naga::front::wgsl::parse_str(wgsl).unwrap();
    let (flags, capabilities) = (naga::valid::ValidationFlags::all(), naga::valid::Capabilities::empty());
    naga::valid::Validator::new(flags, capabilities).validate(&module).unwrap();
}

#[test]
fn every_kind_and_type_round_trips() {
    let types = [LogProbType::F32, LogProbType::Unorm(16), LogProbType::Unorm(11)];
    for (vocab_size, log_probs) in [1000, 1 << 16, 151_936].into_iter().flat_map(|v| types.map(|t| (v, t))) {
        let spec = SetSpec { vocab_size, ..spec(top_k(9, log_probs), &[1.0, 3.0, 0.5], 40) };
        let dir = tempfile::tempdir().unwrap();
        capture(dir.path(), &spec, 7).unwrap();
        let reader = Reader::open(dir.path()).unwrap();
        // Ranges across shard borders, in no order.
        for (first, n) in [(30, 10), (0, 40), (15, 2), (16, 16), (39, 1), (40, 0)] {
            let (want, got) = (batch(&spec, first, n), reader.read_rows(first, n).unwrap());
            assert_eq!((want.tokens, want.flags, want.nll), (got.tokens, got.flags, got.nll));
            let (
                Records::TopK { ids, log_probs, tails, log_partitions },
                Records::TopK { ids: i, log_probs: l, tails: t, log_partitions: c },
            ) = (want.records, got.records)
            else {
                panic!("another kind");
            };
            assert_eq!((ids, tails, log_partitions), (i, t, c));
            for (want, got) in log_probs.into_iter().zip(l) {
                // Half a code, the range being 24 x 3 nats.
                let bound = match spec.layout().values {
                    ValueType::Unorm => 0.5 * 72.0 / ((1u32 << spec.layout().value_bits) - 1) as f32 + 1e-5,
                    _ => 0.0,
                };
                assert!((want - got).abs() <= bound, "{want} read as {got}");
            }
        }
    }
}

#[test]
fn sampled_sets_round_trip() {
    for (draws, max_unique) in [(1, 1), (22, 22), (50, 8), (300, 64), (65_535, 200)] {
        let spec = spec(sampled(draws, max_unique), &[1.0], 40);
        let dir = tempfile::tempdir().unwrap();
        let manifest = capture(dir.path(), &spec, 40).unwrap();
        let reader = Reader::open(dir.path()).unwrap();
        let want = RowBatch { entropy: vec![], ..batch(&spec, 0, 40) };
        assert_eq!(reader.read_rows(0, 40).unwrap(), want);
        assert!(manifest.statistics.mean_unique.unwrap() <= f64::from(max_unique));
    }
}

#[test]
fn distributions_come_back_at_every_temperature() {
    let spec = spec(top_k(12, LogProbType::F32), &[1.0, 2.0, 0.7], 5);
    let dir = tempfile::tempdir().unwrap();
    capture(dir.path(), &spec, 5).unwrap();
    let rows = Reader::open(dir.path()).unwrap().read_rows(0, 5).unwrap();
    for row in 0..5 {
        for (j, &temperature) in spec.temperatures.iter().enumerate() {
            let (ids, log_probs, tail) = rows.top_k_at(&spec, row, j).unwrap();
            let exact = log_softmax(&logits(row as u64), f64::from(temperature)).0;
            let mut head = 0.0;
            for (&id, &l) in ids.iter().zip(&log_probs) {
                // f32 roundings of l (|l| <= 24) and of c.
                assert!((f64::from(l) - exact[id as usize]).abs() < 1e-5);
                head += exact[id as usize].exp();
            }
            assert!((f64::from(tail) - (1.0 - head)).abs() < 1e-6);
        }
    }
    assert!(rows.top_k_at(&spec, 5, 0).is_none() && rows.top_k_at(&spec, 0, 3).is_none());
    assert!(rows.top_k_at(&spec, usize::MAX, 0).is_none());
}

#[test]
fn what_is_impossible_stays_finite() {
    for log_probs in [LogProbType::F32, LogProbType::Unorm(16)] {
        let spec = SetSpec { entropy: false, ..spec(top_k(2, log_probs), &[1.0], 1) };
        let records = Records::TopK {
            ids: vec![3, 8],
            log_probs: vec![f32::NEG_INFINITY, 1e-7],
            tails: vec![-0.0],
            log_partitions: vec![-0.0],
        };
        let batch = RowBatch { tokens: vec![1], flags: vec![0], nll: vec![0.0], entropy: vec![], records };
        let words = rows::encode(&spec, &batch, 0, Path::new("x")).unwrap();
        let Records::TopK { ids, log_probs, tails, log_partitions } =
            rows::decode(&spec, &words, 0, Path::new("x")).unwrap().records
        else {
            panic!("another kind");
        };
        assert_eq!((ids, tails[0].to_bits(), log_partitions[0].to_bits()), (vec![8, 3], 0, 0));
        assert_eq!(log_probs[0].abs(), 0.0);
        assert!(log_probs[1].is_finite() && log_probs[1].exp() < 4e-11);
    }
}

#[test]
fn statistics_are_the_means_over_valid_rows() {
    let spec = spec(top_k(20, LogProbType::DEFAULT), &[1.0], 60);
    let dir = tempfile::tempdir().unwrap();
    let statistics = capture(dir.path(), &spec, 60).unwrap().statistics;
    let all = batch(&spec, 0, 60);
    let valid: Vec<usize> = (0..60).filter(|&r| all.flags[r] & VALID != 0).collect();
    let Records::TopK { tails, .. } = &all.records else { panic!("another kind") };
    let mean = |of: &[f32]| valid.iter().map(|&r| f64::from(of[r])).sum::<f64>() / valid.len() as f64;
    // 60 rows in documents of 13: 4 whole, one of 8; each loses its last row.
    assert_eq!((statistics.rows, statistics.valid_rows, statistics.documents), (60, 55, 5));
    for (got, of) in
        [(statistics.mean_nll, &all.nll), (statistics.mean_entropy, &all.entropy), (statistics.mean_tail_mass, tails)]
    {
        assert!((got.unwrap() - mean(of)).abs() < 1e-9);
    }
}

#[test]
fn alignment_holds_and_a_shift_by_one_is_refused() {
    for record in [top_k(20, LogProbType::DEFAULT), top_k(20, LogProbType::F32), sampled(50, 32)] {
        let spec = SetSpec { rows_per_shard: 128, ..spec(record, &[1.0], 400) };
        let dir = tempfile::tempdir().unwrap();
        let manifest = capture(dir.path(), &spec, 100).unwrap();
        let found = Reader::open(dir.path()).unwrap().alignment().unwrap();
        assert_eq!(found.valid_rows, manifest.statistics.valid_rows);
        assert_eq!(found.mean_nll, manifest.statistics.mean_nll);
        assert!(found.in_record > 100 && found.worst_difference < 0.01, "{found:?}");

        let shifted = tempfile::tempdir().unwrap();
        let (mut writer, _) = Writer::resume_or_create(shifted.path(), spec.clone()).unwrap();
        let mut rows = batch(&spec, 0, 400);
        let width = spec.layout().entries as usize;
        match &mut rows.records {
            Records::TopK { ids, log_probs, tails, .. } => {
                ids.rotate_left(width);
                log_probs.rotate_left(width);
                tails.rotate_left(1);
            }
            Records::Sampled { ids, counts } => {
                ids.rotate_left(width);
                counts.rotate_left(width);
            }
            Records::Hidden { .. } => unreachable!(),
        }
        writer.push_rows(&rows).unwrap();
        writer.finish().unwrap();
        let error = Reader::open(shifted.path()).unwrap().alignment().unwrap_err().to_string();
        assert!(error.contains("do not belong to these tokens"), "{error}");
    }
}
