//! The table of `docs/shards.md`: bytes a row against what the record loses, on synthetic distributions over SmolLM2's
//! vocabulary. `cargo test --release --lib shards::measure -- --ignored --nocapture` prints it.

use super::sample::{counts_from_draws, draw, limit_unique};
use super::*;
use crate::device::Precision;
use crate::random::philox;

const V: usize = 49_152;

/// A standard normal number per key (Box-Muller).
fn normal(a: u32, b: u32, c: u32) -> f64 {
    let [x, y, ..] = philox([a, b, c, 0], [17, 4]).map(|w| (f64::from(w) + 0.5) / 4_294_967_296.0);
    (-2.0 * x.ln()).sqrt() * (std::f64::consts::TAU * y).cos()
}

fn softmax(v: &[f64]) -> Vec<f64> {
    let most = v.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    let e: Vec<f64> = v.iter().map(|x| (x - most).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|x| x / sum).collect()
}

/// One row: the teacher's distribution, its ids by falling probability, and a student's distribution about 0.36 nats
/// away, half of whose error is the same in every row.
struct Row {
    p: Vec<f64>,
    order: Vec<u32>,
    q: Vec<f64>,
    kl: f64,
}

impl Row {
    /// Zipf's law over all ids, seen through a context that moves each logit; `sharpness` scales the whole.
    fn new(row: u32, sharpness: f64) -> Row {
        let v: Vec<f64> =
            (0..V as u32).map(|id| sharpness * (2.0 * normal(id, row, 0) - f64::from(id + 2).ln())).collect();
        let z: Vec<f64> =
            (0..V as u32).map(|id| v[id as usize] + 0.6 * (normal(id, 0, 1) + normal(id, row, 2))).collect();
        let (p, q) = (softmax(&v), softmax(&z));
        let mut order: Vec<u32> = (0..V as u32).collect();
        order.sort_by(|&a, &b| p[b as usize].total_cmp(&p[a as usize]));
        let kl = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        Row { p, order, q, kl }
    }
}

/// Sums over rows of one record's losses.
struct Tally {
    spec: SetSpec,
    /// Stand-in for a 16-bit type that the format does not have: IEEE half precision.
    half: bool,
    rows: f64,
    /// Tail mass, or distinct ids.
    extent: f64,
    /// Share of KL(p, q) that k + 1 buckets do not see.
    unseen: f64,
    /// |KL over the buckets as stored - exact|, nats.
    stored_error: f64,
    /// Mean gradient with respect to the student's logits.
    gradient: Vec<f64>,
}

impl Tally {
    fn new((record, half): (Record, bool)) -> Tally {
        let spec = SetSpec {
            teacher: Teacher { name: String::new(), digest: String::new() },
            tokenizer_digest: String::new(),
            vocab_size: V as u32,
            real_vocab_size: V as u32,
            record,
            temperatures: vec![1.0],
            corpus_digest: String::new(),
            context_length: 1,
            rows: 1,
            rows_per_shard: 1,
            entropy: false,
            tail_mass: Default::default(),
            source: None,
            precision: Precision::F32,
        };
        spec.validate(std::path::Path::new("measure")).unwrap();
        Tally { spec, half, rows: 0.0, extent: 0.0, unseen: 0.0, stored_error: 0.0, gradient: vec![0.0; V] }
    }

    fn add(&mut self, row: &Row, number: u64) {
        self.rows += 1.0;
        match self.spec.record {
            Record::TopK { k, .. } => self.add_top_k(row, &row.order[..k as usize]),
            Record::Sampled { draws, max_unique, seed } => {
                let p: Vec<f32> = row.p.iter().map(|&p| p as f32).collect();
                let (mut ids, mut counts) = counts_from_draws(&draw(&p, draws, seed, number).unwrap());
                limit_unique(&mut ids, &mut counts, max_unique, seed, number);
                self.extent += ids.len() as f64;
                self.gradient.iter_mut().zip(&row.q).for_each(|(g, q)| *g += q);
                for (id, count) in ids.into_iter().zip(counts) {
                    self.gradient[id as usize] -= f64::from(count) / f64::from(draws);
                }
            }
            Record::Hidden { .. } => unreachable!("whole distributions have nothing to measure"),
        }
    }

    /// The ghost bucket's KL and gradient, from the probabilities as they are stored.
    fn add_top_k(&mut self, row: &Row, head: &[u32]) {
        let layout = self.spec.layout();
        let mut outside: Vec<bool> = vec![true; V];
        head.iter().for_each(|&id| outside[id as usize] = false);
        let rest = |of: &[f64]| of.iter().zip(&outside).filter(|x| *x.1).map(|x| x.0).sum::<f64>();
        let (tail, q_tail) = (rest(&row.p), rest(&row.q));
        let stored = |p: f64| match p.ln() as f32 {
            l if self.half => half::f16::from_f32(l).to_f64().exp(),
            l => f64::from(layout.decode_value(layout.encode_log_prob(l))).exp(),
        };
        let bucket = |p: f64, q: f64| if p > 0.0 { p * (p / q).ln() } else { 0.0 };
        let (mut exact, mut kept) = (bucket(tail, q_tail), bucket(tail, q_tail));
        let scale = 1.0 - tail / q_tail;
        self.gradient
            .iter_mut()
            .zip(&row.q)
            .zip(&outside)
            .for_each(|((g, q), &o)| *g += if o { scale * q } else { 0.0 });
        for &id in head {
            let (p, q) = (row.p[id as usize], row.q[id as usize]);
            exact += bucket(p, q);
            kept += bucket(stored(p), q);
            self.gradient[id as usize] += q - stored(p);
        }
        self.extent += tail;
        self.unseen += 1.0 - exact / row.kl;
        self.stored_error += (kept - exact).abs();
    }

    fn line(&self, full: &[f64]) -> String {
        let n = self.rows;
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (norm, full_norm) = (dot(&self.gradient, &self.gradient).sqrt(), dot(full, full).sqrt());
        let angle = (dot(&self.gradient, full) / norm / full_norm).clamp(-1.0, 1.0).acos().to_degrees();
        let (name, lost) = match self.spec.record {
            Record::TopK { k, log_probs } => (
                {
                    let name = if self.half { "f16".to_string() } else { log_probs.to_string() };
                    format!("top-k {k}, {name} | tail {:.3}", self.extent / n)
                },
                format!("{:.1} % | {:.0e}", 100.0 * self.unseen / n, self.stored_error / n),
            ),
            Record::Sampled { draws, max_unique, .. } => {
                (format!("sampled {draws}, slots {max_unique} | ids {:.1}", self.extent / n), "- | -".to_string())
            }
            Record::Hidden { .. } => unreachable!("whole distributions have nothing to measure"),
        };
        format!("| {} | {name} | {lost} | {angle:.1} / {:.2} |", self.spec.layout().stride_bytes(), norm / full_norm)
    }
}

fn records() -> Vec<(Record, bool)> {
    let top_k = |k, log_probs| Record::TopK { k, log_probs };
    let sampled = |draws, max_unique| Record::Sampled { draws, max_unique, seed: 1 };
    let mut records: Vec<Record> = [8, 12, 32, 64, 128, 256].map(|k| top_k(k, LogProbType::DEFAULT)).to_vec();
    let types = [LogProbType::F32, LogProbType::Unorm(12), LogProbType::Unorm(8)];
    records.extend(types.map(|t| top_k(64, t)));
    records.extend([(12, 12), (22, 22), (50, 50), (50, 32), (50, 24), (50, 16), (150, 64)].map(|(n, u)| sampled(n, u)));
    let half = (top_k(64, LogProbType::Unorm(16)), true);
    records.into_iter().map(|record| (record, false)).chain([half]).collect()
}

#[test]
#[ignore = "prints a table"]
fn table() {
    for (sharpness, rows) in [(1.0, 256), (1.5, 256), (2.5, 256), (1.5, 4096)] {
        let mut tallies: Vec<Tally> = records().into_iter().map(Tally::new).collect();
        let (mut full, mut kl, mut entropy) = (vec![0.0; V], 0.0, 0.0);
        for number in 0..rows {
            let row = Row::new(number as u32, sharpness);
            full.iter_mut().zip(row.q.iter().zip(&row.p)).for_each(|(f, (q, p))| *f += q - p);
            kl += row.kl;
            entropy -= row.p.iter().map(|p| if *p > 0.0 { p * p.ln() } else { 0.0 }).sum::<f64>();
            tallies.iter_mut().for_each(|t| t.add(&row, number));
        }
        let n = rows as f64;
        let (entropy, kl) = (entropy / n, kl / n);
        println!("\nsharpness {sharpness}, {rows} rows: entropy {entropy:.2} nats, KL(teacher, student) {kl:.3}\n");
        println!("| bytes | record | extent | KL unseen | KL error | angle / norm |\n|---|---|---|---|---|---|");
        tallies.iter().for_each(|t| println!("{}", t.line(&full)));
    }
}
