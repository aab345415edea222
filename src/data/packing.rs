//! Packing: documents into batches of equal length, no token lost, none twice, no document seeing another.
//!
//! Documents are laid end to end in corpus order and cut every T tokens. Where a cut falls inside a document, its rest
//! starts a new **piece**: attention and positions start anew there, but the last row before the cut keeps its label,
//! the document's next token, so no prediction is lost either. The last row of a document has no label. A document
//! longer than T becomes consecutive pieces by the same rule.
//!
//! So each row's context depends on the corpus, T and the held-out split alone, never on batch size, epoch or order:
//! what a teacher recorded for a global position fits the row with that `row_id`.
//!
//! An epoch visits every sequence once, in corpus order or shuffled. The one sequence that may be shorter than T always
//! comes last, so padding lies only at the end of an epoch's last batch.

use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::data::tokens::{Corpus, NO_ROUTE};
use crate::{Error, Result};

/// The label of a row that is not learned.
pub const IGNORE: u32 = u32::MAX;
/// The `row_id` of a padding row.
pub const PADDING: u64 = u64::MAX;

/// B sequences of T rows, flattened: row `b * T + t`. Every vector has B * T items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The token of each row; 0 in padding.
    pub tokens: Vec<u32>,
    /// Its place in its piece, from 0, for rotary or learned positions; always below T.
    pub positions: Vec<u32>,
    /// The token after it, where that is to be learned, else [`IGNORE`].
    pub labels: Vec<u32>,
    /// Which rows it sees as a query: the first key row and one past the last, which is itself.
    pub query_range: Vec<[u32; 2]>,
    /// Which rows see it as a key: the first query row, which is itself, and one past the last.
    pub key_range: Vec<[u32; 2]>,
    /// Its global position in the corpus, else [`PADDING`].
    pub row_id: Vec<u64>,
    /// The route of its document, as a place in [`Corpus::routes`], else [`NO_ROUTE`]; so in padding.
    pub route: Vec<u32>,
    /// The number of labels that are not [`IGNORE`].
    pub valid: usize,
    /// Bytes of text that those labels cover, if the corpus knows them: what bits per byte are counted over.
    pub valid_bytes: Option<u64>,
}

impl Batch {
    /// `query_range` and `key_range` under a sliding window: a query sees itself and the `window - 1` rows before it
    /// (transformers' `sliding_window`).
    pub fn windowed(&self, window: NonZeroU32) -> (Vec<[u32; 2]>, Vec<[u32; 2]>) {
        let window = window.get();
        let query = |&[first, end]: &[u32; 2]| [first.max(end.saturating_sub(window)), end];
        let key = |&[first, end]: &[u32; 2]| [first, end.min(first.saturating_add(window))];
        (self.query_range.iter().map(query).collect(), self.key_range.iter().map(key).collect())
    }

    fn with_capacity(rows: usize, knows_bytes: bool) -> Batch {
        Batch {
            tokens: Vec::with_capacity(rows),
            positions: Vec::with_capacity(rows),
            labels: Vec::with_capacity(rows),
            query_range: Vec::with_capacity(rows),
            key_range: Vec::with_capacity(rows),
            row_id: Vec::with_capacity(rows),
            route: Vec::with_capacity(rows),
            valid: 0,
            valid_bytes: knows_bytes.then_some(0),
        }
    }

    /// Appends the rows of one piece; `document_end` is where its document ends in the corpus. The caller keeps the
    /// number of rows below 2^32.
    fn push_piece(&mut self, corpus: &Corpus, piece: Range<usize>, document_end: usize) {
        let first = self.tokens.len() as u32;
        let end = first + piece.len() as u32;
        self.route.resize(end as usize, corpus.route_id_at(piece.start));
        for (row, id) in (first..end).zip(piece) {
            let next = id + 1;
            let learned = next < document_end && corpus.loss()[next];
            self.tokens.push(corpus.ids()[id]);
            self.positions.push(row - first);
            self.labels.push(if learned { corpus.ids()[next] } else { IGNORE });
            self.query_range.push([first, row + 1]);
            self.key_range.push([row, end]);
            self.row_id.push(id as u64);
            self.valid += usize::from(learned);
            if let (true, Some(sum), Some(bytes)) = (learned, &mut self.valid_bytes, corpus.bytes()) {
                *sum += u64::from(bytes[next]);
            }
        }
    }

    /// Appends padding: rows that see themselves, are seen by none else and have no label.
    fn pad(&mut self, rows: usize) {
        for row in self.tokens.len() as u32..rows as u32 {
            self.tokens.push(0);
            self.positions.push(0);
            self.labels.push(IGNORE);
            self.query_range.push([row, row + 1]);
            self.key_range.push([row, row + 1]);
            self.row_id.push(PADDING);
            self.route.push(NO_ROUTE);
        }
    }
}

/// Where an iteration stands: all there is to save and restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The next batch of it, from 0.
    pub batch: u64,
}

/// Cuts documents of a corpus into batches.
pub struct Packer {
    corpus: Arc<Corpus>,
    documents: Vec<Range<usize>>,
    /// Tokens before each document, and behind the last the number of all.
    offsets: Vec<usize>,
    length: usize,
    batch_size: usize,
    seed: Option<u64>,
    /// The epoch whose order this is, and its full sequences in that order.
    order: (u64, Vec<u32>),
}

impl Packer {
    /// `documents` are ranges of the corpus, from [`crate::data::split::split`]; `length` is T, `batch_size` B. With a
    /// `seed`, each epoch has an order of its own; without, all have the corpus's.
    ///
    /// Errors if there is no token, a range is outside the corpus, or B * T is 0 or does not fit 32 bits.
    pub fn new(
        corpus: Arc<Corpus>,
        documents: Vec<Range<usize>>,
        length: usize,
        batch_size: usize,
        seed: Option<u64>,
    ) -> Result<Packer> {
        if !length.checked_mul(batch_size).is_some_and(|rows| rows > 0 && rows < u32::MAX as usize) {
            return Error::at("packing")
                .expected("a sequence length and a batch size of at least 1, less than 2^32 rows together")
                .found(format!("{length} and {batch_size}"))
                .help("choose others")
                .err();
        }
        let mut offsets = vec![0];
        let mut total = 0usize;
        for range in &documents {
            if range.is_empty() || range.end > corpus.ids().len() {
                return Err(Error::internal(format!("packing: {range:?} of {} tokens", corpus.ids().len())));
            }
            total = total.checked_add(range.len()).ok_or_else(|| Error::internal("packing: overlapping ranges"))?;
            offsets.push(total);
        }
        if total == 0 || total / length >= u32::MAX as usize {
            return Error::at("packing")
                .expected("at least one token and less than 2^32 sequences")
                .found(format!("{total} tokens"))
                .help("check the dataset")
                .err();
        }
        let order = (0, order(total / length, seed, 0));
        Ok(Packer { corpus, documents, offsets, length, batch_size, seed, order })
    }

    /// The number of tokens in an epoch.
    pub fn tokens(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// The number of sequences in an epoch, counting a shorter last one.
    pub fn sequences(&self) -> usize {
        self.tokens().div_ceil(self.length)
    }

    /// The number of batches in an epoch.
    pub fn batches(&self) -> u64 {
        self.sequences().div_ceil(self.batch_size) as u64
    }

    /// The batch at `cursor`, whatever was asked for before.
    ///
    /// Errors if the epoch has no such batch: the cursor was saved with another corpus, length or batch size.
    pub fn batch(&mut self, cursor: Cursor) -> Result<Batch> {
        if cursor.batch >= self.batches() {
            return Error::at("packing")
                .expected(format!("a batch below {}, the number in an epoch", self.batches()))
                .found(cursor.batch)
                .help("the position was saved with another dataset, sequence length or batch size: start anew")
                .err();
        }
        if self.order.0 != cursor.epoch {
            self.order = (cursor.epoch, order(self.tokens() / self.length, self.seed, cursor.epoch));
        }
        let rows = self.length * self.batch_size;
        let mut batch = Batch::with_capacity(rows, self.corpus.bytes().is_some());
        let first = cursor.batch as usize * self.batch_size;
        for slot in first..self.sequences().min(first + self.batch_size) {
            // The slot behind the full sequences is the shorter one's.
            self.push_sequence(&mut batch, self.order.1.get(slot).map_or(slot, |&sequence| sequence as usize));
        }
        batch.pad(rows);
        Ok(batch)
    }

    /// The batch at `cursor`, which moves on to the next, at an epoch's end to the next epoch's first.
    pub fn next_batch(&mut self, cursor: &mut Cursor) -> Result<Batch> {
        let batch = self.batch(*cursor)?;
        cursor.batch += 1;
        if cursor.batch == self.batches() {
            *cursor = Cursor { epoch: cursor.epoch.wrapping_add(1), batch: 0 };
        }
        Ok(batch)
    }

    fn push_sequence(&self, batch: &mut Batch, sequence: usize) {
        let mut at = sequence * self.length;
        let end = self.tokens().min(at + self.length);
        let mut index = self.offsets.partition_point(|&offset| offset <= at) - 1;
        while at < end {
            let document = self.documents[index].clone();
            let start = document.start + (at - self.offsets[index]);
            let piece = start..document.end.min(start + (end - at));
            at += piece.len();
            index += 1;
            batch.push_piece(&self.corpus, piece, document.end);
        }
    }
}

/// The finaliser of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
fn mix(z: u64) -> u64 {
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// The order of an epoch's `count` sequences: a Fisher-Yates shuffle from the back, whose draw for place i is
/// `mix(mix(seed + g * (epoch + 1)) + g * (i + 1))` scaled to 0..=i by its upper bits, with splitmix64's g.
/// Each draw is a function of its place alone, so any epoch's order is made without those before it.
fn order(count: usize, seed: Option<u64>, epoch: u64) -> Vec<u32> {
    const G: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut order: Vec<u32> = (0..count as u32).collect();
    let Some(seed) = seed else { return order };
    let key = mix(seed.wrapping_add(G.wrapping_mul(epoch.wrapping_add(1))));
    for i in (1..count).rev() {
        let draw = mix(key.wrapping_add(G.wrapping_mul(i as u64 + 1)));
        order.swap(i, ((u128::from(draw) * (i as u128 + 1)) >> 64) as usize);
    }
    order
}
