//! Tests of whole sets, and the small teacher that they share.

mod damage;
mod format;
mod refusals;
mod resume;

use crate::device::Precision;
use std::path::Path;

use super::sample::{counts_from_draws, draw, limit_unique};
use super::*;
use crate::random::philox;

/// Ids that the small teacher gives any probability to.
const REAL: usize = 990;

/// A set of `rows` rows in shards of 16, vocabulary 1000, 990 of them real.
fn spec(record: Record, temperatures: &[f32], rows: u64) -> SetSpec {
    SetSpec {
        teacher: Teacher { name: "small/teacher".into(), digest: "a1".into() },
        tokenizer_digest: "b2".into(),
        vocab_size: 1000,
        real_vocab_size: REAL as u32,
        record,
        temperatures: temperatures.to_vec(),
        corpus_digest: "c3".into(),
        context_length: 64,
        rows,
        rows_per_shard: 16,
        entropy: true,
        tail_mass: Default::default(),
        source: None,
        precision: Precision::F32,
    }
}

fn top_k(k: u32, log_probs: LogProbType) -> Record {
    Record::TopK { k, log_probs }
}

fn sampled(draws: u32, max_unique: u32) -> Record {
    Record::Sampled { draws, max_unique, seed: 5 }
}

/// States of 5 numbers of block 1 and at the end of a model of 3 blocks.
fn hidden(states: StateType) -> Record {
    Record::Hidden { states, hidden_size: 5, layers: vec![1, 3] }
}

/// Numbers of a row's states, some of them halves of a unit in f16's last place.
fn states(row: u64, count: usize) -> impl Iterator<Item = f32> {
    let noise = move |i: u32| philox([i, 1, row as u32, 7], [1, 2])[0] as f32 / u32::MAX as f32;
    (0..count as u32).map(move |i| if i % 4 == 3 { 1.0 + 0.5f32.powi(11) } else { 16.0 * noise(i) - 8.0 })
}

/// Logits of a row: Zipf-like with the order of the ids shuffled by the row.
fn logits(row: u64) -> Vec<f32> {
    let noise = |id: u32| philox([id, 0, row as u32, 7], [1, 2])[0] as f32 / u32::MAX as f32;
    (0..REAL as u32).map(|id| 12.0 * noise(id) - 2.0 * (1.0 + (id / 30) as f32).ln()).collect()
}

fn log_softmax(v: &[f32], temperature: f64) -> (Vec<f64>, f64) {
    let scaled: Vec<f64> = v.iter().map(|&x| f64::from(x) / temperature).collect();
    let most = scaled.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    let lse = most + scaled.iter().map(|x| (x - most).exp()).sum::<f64>().ln();
    (scaled.iter().map(|x| x - lse).collect(), lse)
}

/// The corpus is drawn from the teacher itself, in documents of 13 tokens.
fn token(row: u64) -> u32 {
    let p: Vec<f32> = log_softmax(&logits(row.wrapping_sub(1)), 1.0).0.iter().map(|l| l.exp() as f32).collect();
    draw(&p, 1, 99, row).unwrap()[0]
}

/// What a capture of rows `first .. first + n` would push.
fn batch(spec: &SetSpec, first: u64, n: u64) -> RowBatch {
    let mut batch = RowBatch::empty(spec);
    for row in first..first + n {
        let v = logits(row);
        let (log_p, lse) = log_softmax(&v, 1.0);
        let last = row % 13 == 12 || row + 1 == spec.rows;
        let start = if row % 13 == 0 { DOCUMENT_START | CONTEXT_START } else { 0 };
        batch.tokens.push(token(row));
        batch.flags.push(start | if last { 0 } else { VALID });
        batch.nll.push(if last { 0.0 } else { -log_p[token(row + 1) as usize] as f32 });
        batch.entropy.push(-log_p.iter().map(|l| l * l.exp()).sum::<f64>() as f32);
        match (&mut batch.records, &spec.record) {
            (Records::TopK { ids, log_probs, tails, log_partitions }, &Record::TopK { k, .. }) => {
                let mut order: Vec<u32> = (0..REAL as u32).collect();
                order.sort_by(|&a, &b| log_p[b as usize].total_cmp(&log_p[a as usize]).then(a.cmp(&b)));
                let rest = order.split_off(k as usize);
                for &temperature in &spec.temperatures {
                    let t = f64::from(temperature);
                    let (log_p_t, lse_t) = log_softmax(&v, t);
                    tails.push(rest.iter().map(|&id| log_p_t[id as usize].exp()).sum::<f64>() as f32);
                    log_partitions.push(if temperature == 1.0 { 0.0 } else { (lse_t - lse / t) as f32 });
                }
                log_probs.extend(order.iter().map(|&id| log_p[id as usize] as f32));
                ids.extend(order);
            }
            (Records::Sampled { ids, counts }, &Record::Sampled { draws, max_unique, seed }) => {
                let p: Vec<f32> = log_p.iter().map(|l| l.exp() as f32).collect();
                let (mut i, mut c) = counts_from_draws(&draw(&p, draws, seed, row).unwrap());
                limit_unique(&mut i, &mut c, max_unique, seed, row);
                i.resize(max_unique as usize, 0);
                c.resize(max_unique as usize, 0);
                ids.extend(i);
                counts.extend(c);
            }
            (Records::Hidden { states: all }, Record::Hidden { hidden_size, layers, .. }) => {
                all.extend(states(row, *hidden_size as usize * layers.len()));
            }
            _ => unreachable!(),
        }
    }
    batch
}

/// Captures what is missing of the set in `dir`, `step` rows at a time.
fn capture(dir: &Path, spec: &SetSpec, step: u64) -> crate::Result<Manifest> {
    let (mut writer, mut next) = Writer::resume_or_create(dir, spec.clone())?;
    while next < spec.rows {
        let n = step.min(spec.rows - next);
        writer.push_rows(&batch(spec, next, n))?;
        next += n;
    }
    writer.finish()
}

/// Every file of a folder, by name.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).unwrap()))
        .collect();
    files.sort();
    files
}
