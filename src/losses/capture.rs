//! A model's distributions, row by row, in the form in which they are stored.

use super::head::{Head, Normalisers, check_rows, check_temperature, chunks};
use crate::graph::{Graph, Tensor};
use crate::ops::{self, Chunk, LossInto, RowsInto};
use crate::{Error, Result};

/// What to keep of each row.
#[derive(Debug, Clone, Copy)]
pub enum Record<'a> {
    /// The `k` best tokens (at most [`crate::ops::top_k::MAX_K`]) with tail mass and log-partition at each temperature.
    TopK {
        /// Tokens of a row.
        k: usize,
        /// Temperatures to be able to soften the row with later.
        temperatures: &'a [f32],
    },
    /// Tokens drawn with replacement, in the order they were drawn.
    Sampled {
        /// Draws of a row.
        draws: usize,
        /// Temperature drawn at.
        temperature: f32,
        /// Seed and number of the batch's first row: see [`crate::ops::sample_rows`].
        key: Tensor,
    },
}

/// What [`capture_head`] recorded. Ops behind a tensor that is not made an output are left out of the plan.
#[derive(Debug, Clone)]
pub struct Capture {
    /// Negative log-likelihood of the label at temperature 1, nats, `[N]`; 0 where the row's weight is 0.
    pub nll: Tensor,
    /// Entropy at temperature 1, nats, `[N]`.
    pub entropy: Tensor,
    /// Token ids, u32 `[N, k]`, best first, `u32::MAX` in slots that the vocabulary does not fill; or `[N, draws]`.
    pub ids: Tensor,
    /// Log-probabilities of `ids` at temperature 1, `[N, k]`. Only of [`Record::TopK`], as what follows.
    pub log_probs: Option<Tensor>,
    /// For each temperature the mass outside `ids`, `[N]`.
    pub tails: Vec<Tensor>,
    /// For each temperature c_T = lse(z / T) - lse(z) / T, `[N]`, so that log p_T = log p_1 / T - c_T.
    pub log_partitions: Vec<Tensor>,
}

/// Captures the distributions of `head` on the last hidden states `[N, d]`, at most `chunk_rows` rows at a time, with
/// each label's NLL. With [`Record::TopK`] and no temperatures it is what scoring needs.
pub fn capture_head(
    g: &mut Graph,
    hidden: Tensor,
    head: &Head<'_>,
    labels: Tensor,
    weights: Tensor,
    record: Record<'_>,
    chunk_rows: usize,
) -> Result<Capture> {
    let batch = head.check(hidden)?;
    check_rows(batch, &[labels, weights])?;
    record.check()?;
    let mut nll = ops::zeros(g, [batch]);
    let mut rows_so_far = Gathered { batch, tensors: Vec::new() };
    for rows in chunks(batch, chunk_rows) {
        let z = head.logits(g, hidden, &rows);
        let chunk = Chunk { z, first_row: rows.start, vocab: head.vocab };
        let mut normalisers = Normalisers::of(z);
        let lse = normalisers.get(g, head.vocab, 1.0);
        nll = ops::cross_entropy(g, chunk, lse, labels, weights, LossInto { loss_rows: nll, dz: None }).loss_rows;
        let entropy = ops::entropy(g, z, lse, head.vocab);
        let mut found = vec![Piece::plain(entropy)];
        found.extend(record.pieces(g, chunk, &mut normalisers));
        rows_so_far.put(g, rows.start, found);
    }
    let tensors = &mut rows_so_far.tensors.into_iter();
    let (Some(entropy), Some(ids)) = (tensors.next(), tensors.next()) else {
        return Err(Error::internal("nothing to capture: a batch without rows"));
    };
    let log_probs = tensors.next();
    let rest: Vec<Tensor> = tensors.collect();
    let (tails, log_partitions) = rest.chunks_exact(2).map(|pair| (pair[0], pair[1])).unzip();
    Ok(Capture { nll, entropy, ids, log_probs, tails, log_partitions })
}

/// One chunk's rows of one result: a tensor, from which factor * shift may still have to be taken away.
struct Piece {
    rows: Tensor,
    minus: Option<(Tensor, f32)>,
}

impl Piece {
    fn plain(rows: Tensor) -> Piece {
        Piece { rows, minus: None }
    }
}

impl Record<'_> {
    fn check(&self) -> Result<()> {
        match *self {
            Record::TopK { k, temperatures } => {
                if !(1..=ops::top_k::MAX_K).contains(&k) {
                    return Error::at("capture")
                        .field("k")
                        .expected(format!("1 to {}", ops::top_k::MAX_K))
                        .found(k)
                        .err();
                }
                temperatures.iter().try_for_each(|&t| check_temperature(t))
            }
            Record::Sampled { draws: 0, .. } => {
                Error::at("capture").field("draws").expected("at least 1").found(0).err()
            }
            Record::Sampled { temperature, .. } => check_temperature(temperature),
        }
    }

    /// Of one chunk: ids; then for top-k the log-probabilities and a tail and a log-partition for each temperature.
    fn pieces(&self, g: &mut Graph, chunk: Chunk, normalisers: &mut Normalisers) -> Vec<Piece> {
        match *self {
            Record::Sampled { draws, temperature, key } => {
                let lse = normalisers.get(g, chunk.vocab, temperature);
                vec![Piece::plain(ops::sample_rows(g, chunk, lse, draws, temperature, key))]
            }
            Record::TopK { k, temperatures } => {
                let lse = normalisers.get(g, chunk.vocab, 1.0);
                let (ids, values) = ops::top_k(g, chunk.z, chunk.vocab, k);
                let mut pieces = vec![Piece::plain(ids), Piece { rows: values, minus: Some((lse, 1.0)) }];
                for &temperature in temperatures {
                    let softened = normalisers.get(g, chunk.vocab, temperature);
                    let tail = ops::tail_mass(g, chunk.z, softened, ids, chunk.vocab, temperature);
                    pieces.push(Piece::plain(tail));
                    pieces.push(Piece { rows: softened, minus: Some((lse, 1.0 / temperature)) });
                }
                pieces
            }
        }
    }
}

/// The results of all chunks so far, each as one tensor of the whole batch.
struct Gathered {
    batch: usize,
    tensors: Vec<Tensor>,
}

impl Gathered {
    fn put(&mut self, g: &mut Graph, first_row: usize, pieces: Vec<Piece>) {
        let batch = self.batch;
        let old = std::mem::take(&mut self.tensors);
        let into = old.into_iter().map(RowsInto::Old).chain(std::iter::repeat(RowsInto::New(batch)));
        for (piece, into) in pieces.into_iter().zip(into) {
            self.tensors.push(match piece.minus {
                None => ops::put_rows(g, into, first_row, piece.rows),
                Some((shift, factor)) => ops::put_rows_minus(g, into, first_row, piece.rows, shift, factor),
            });
        }
    }
}
