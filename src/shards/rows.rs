//! Rows as numbers ([`RowBatch`]) and as words, both ways. Everything that enters or leaves a shard passes the checks
//! here, so that no id, count or probability in a verified set is out of range.

use std::fmt;
use std::path::Path;

use super::layout::{NLL_AT, RowLayout, TOKEN_AT, get_bits, put_bits};
use super::spec::{Record, SetSpec};
use crate::{Error, Result};

/// Flag: the next token counts in the loss.
pub const VALID: u8 = 1;
/// Flag: this token is the first of its document.
pub const DOCUMENT_START: u8 = 2;
/// Flag: the teacher's context begins at this token (every document start, and every window inside a long document).
pub const CONTEXT_START: u8 = 4;

const TOKEN_BITS: u32 = 24;
/// f32 rounding may push a probability above 1 and a log-probability above 0 by this much; what is above is a mistake.
const SLACK: f32 = 1e-3;

/// Consecutive rows as plain numbers; arrays are row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct RowBatch {
    /// Token id at each row's position, `[n]`.
    pub tokens: Vec<u32>,
    /// [`VALID`], [`DOCUMENT_START`], [`CONTEXT_START`], `[n]`.
    pub flags: Vec<u8>,
    /// Teacher's negative log-likelihood of the true next token at T = 1, nats, `[n]`; 0 where there is none.
    pub nll: Vec<f32>,
    /// Entropy of each row at T = 1, nats, `[n]`, when the spec says so, else empty. Not stored per row: reading gives
    /// an empty array.
    pub entropy: Vec<f32>,
    /// The distributions.
    pub records: Records,
}

/// The distributions of a [`RowBatch`]. `n` rows, `k` entries or `u` slots, `t` temperatures.
#[derive(Clone, Debug, PartialEq)]
pub enum Records {
    /// The most probable tokens. Any order within a row is taken; stored and read: descending, ties by ascending id.
    TopK {
        /// `[n, k]`
        ids: Vec<u32>,
        /// Log-probabilities at T = 1, `[n, k]`.
        log_probs: Vec<f32>,
        /// Mass outside the `k` at each temperature, `[n, t]`.
        tails: Vec<f32>,
        /// `c_T = lse(v/T) - lse(v)/T` of the raw logits `v`, `[n, t]`: `log p_T(i) = l_i/T - c_T`, and `c_1 = 0`.
        log_partitions: Vec<f32>,
    },
    /// Tokens drawn with replacement. Any order within a row is taken; stored and read: ascending ids, unused slots
    /// (id 0, count 0) last.
    Sampled {
        /// `[n, u]`
        ids: Vec<u32>,
        /// `[n, u]`; a row's counts add up to the spec's draws.
        counts: Vec<u32>,
    },
    /// Hidden states. Stored and read: rounded to the spec's type.
    Hidden {
        /// `[n, states, d]`, finite numbers.
        states: Vec<f32>,
    },
}

impl RowBatch {
    /// A batch without rows for a set with this spec.
    pub fn empty(spec: &SetSpec) -> RowBatch {
        let records = match spec.record {
            Record::TopK { .. } => {
                Records::TopK { ids: vec![], log_probs: vec![], tails: vec![], log_partitions: vec![] }
            }
            Record::Sampled { .. } => Records::Sampled { ids: vec![], counts: vec![] },
            Record::Hidden { .. } => Records::Hidden { states: vec![] },
        };
        RowBatch { tokens: vec![], flags: vec![], nll: vec![], entropy: vec![], records }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Top-k row `row` at temperature number `j` of `spec`: ids, log-probabilities at that temperature and tail mass.
    /// `None` for sampled rows and for rows or temperatures that are not there.
    pub fn top_k_at(&self, spec: &SetSpec, row: usize, j: usize) -> Option<(&[u32], Vec<f32>, f32)> {
        let (Records::TopK { ids, log_probs, tails, log_partitions }, Record::TopK { k, .. }) =
            (&self.records, &spec.record)
        else {
            return None;
        };
        let (k, t) = (*k as usize, spec.temperatures.len());
        let at_t = t.checked_mul(row)?.checked_add(j).filter(|_| j < t)?;
        let range = k.checked_mul(row)?..k.checked_mul(row.checked_add(1)?)?;
        let (temperature, c) = (spec.temperatures[j], *log_partitions.get(at_t)?);
        let at = log_probs.get(range.clone())?.iter().map(|l| l / temperature - c).collect();
        Some((ids.get(range)?, at, *tails.get(at_t)?))
    }
}

/// Where a complaint about one row points.
struct RowPlace<'a> {
    place: &'a Path,
    row: u64,
}

impl RowPlace<'_> {
    fn refuse<T>(&self, field: &str, expected: impl fmt::Display, found: impl fmt::Display) -> Result<T> {
        Error::file(self.place).field(format!("row {}: {field}", self.row)).expected(expected).found(found).err()
    }

    /// `x` if it is finite and in `[0, most]`; values that rounding took just below 0 become 0.
    fn between(&self, field: &str, x: f32, most: f32) -> Result<f32> {
        if x.is_finite() && (-SLACK..=most).contains(&x) {
            return Ok(if x > 0.0 { x } else { 0.0 });
        }
        self.refuse(field, format!("a number from 0 to {most}"), x)
    }

    fn id(&self, field: &str, id: u32, spec: &SetSpec) -> Result<u32> {
        if id < spec.real_vocab_size {
            return Ok(id);
        }
        self.refuse(field, format!("an id below real_vocab_size {}", spec.real_vocab_size), id)
    }

    fn flags(&self, flags: u8) -> Result<u8> {
        if flags & !(VALID | DOCUMENT_START | CONTEXT_START) == 0 {
            return Ok(flags);
        }
        self.refuse("flags", "only the bits 1, 2 and 4", flags)
    }
}

/// Words of `batch`, whose first row is row `first_row` of the set. Errors name `place`, row and field; nothing is
/// returned unless every row is sound.
pub fn encode(spec: &SetSpec, batch: &RowBatch, first_row: u64, place: &Path) -> Result<Vec<u32>> {
    check_lengths(spec, batch, place)?;
    let layout = spec.layout();
    let stride = layout.stride_words as usize;
    let mut words = vec![0; batch.len() * stride];
    for (r, row) in words.chunks_exact_mut(stride).enumerate() {
        let at = RowPlace { place, row: first_row.saturating_add(r as u64) };
        let token = at.id("token", batch.tokens[r], spec)?;
        row[TOKEN_AT as usize] = token | u32::from(at.flags(batch.flags[r])?) << TOKEN_BITS;
        row[NLL_AT as usize] = at.between("nll", batch.nll[r], f32::MAX)?.to_bits();
        if let Some(&entropy) = batch.entropy.get(r) {
            at.between("entropy", entropy, f32::MAX)?;
        }
        let n = layout.entries as usize;
        match &batch.records {
            Records::TopK { ids, log_probs, tails, log_partitions } => {
                let t = spec.temperatures.len();
                let entries = ids[r * n..][..n].iter().copied().zip(log_probs[r * n..][..n].iter().copied());
                let partitions = (&tails[r * t..][..t], &log_partitions[r * t..][..t]);
                encode_top_k(spec, &layout, entries.collect(), partitions, row, &at)?;
            }
            Records::Sampled { ids, counts } => {
                let entries = ids[r * n..][..n].iter().copied().zip(counts[r * n..][..n].iter().copied());
                encode_sampled(spec, &layout, entries.collect(), row, &at)?;
            }
            Records::Hidden { states } => encode_states(spec, &layout, &states[r * n..][..n], row, &at)?,
        }
    }
    Ok(words)
}

fn check_lengths(spec: &SetSpec, batch: &RowBatch, place: &Path) -> Result<()> {
    let n = batch.len();
    let (e, t) = (spec.layout().entries as usize, spec.temperatures.len());
    let entropy = if spec.entropy { n } else { 0 };
    let mut lengths =
        vec![("flags", batch.flags.len(), n), ("nll", batch.nll.len(), n), ("entropy", batch.entropy.len(), entropy)];
    match (&batch.records, &spec.record) {
        (Records::TopK { ids, log_probs, tails, log_partitions }, Record::TopK { .. }) => lengths.extend([
            ("ids", ids.len(), n * e),
            ("log_probs", log_probs.len(), n * e),
            ("tails", tails.len(), n * t),
            ("log_partitions", log_partitions.len(), n * t),
        ]),
        (Records::Sampled { ids, counts }, Record::Sampled { .. }) => {
            lengths.extend([("ids", ids.len(), n * e), ("counts", counts.len(), n * e)]);
        }
        (Records::Hidden { states }, Record::Hidden { .. }) => lengths.push(("states", states.len(), n * e)),
        (found, expected) => {
            let found = match found {
                Records::TopK { .. } => "top-k rows",
                Records::Sampled { .. } => "sampled rows",
                Records::Hidden { .. } => "rows of hidden states",
            };
            return Error::file(place).field("records").expected(expected.rows_name()).found(found).err();
        }
    }
    match lengths.iter().find(|(_, found, expected)| found != expected) {
        None => Ok(()),
        Some((field, found, expected)) => {
            Error::file(place).field(format!("`{field}` of a batch of {n} rows")).expected(expected).found(found).err()
        }
    }
}

fn encode_top_k(
    spec: &SetSpec,
    layout: &RowLayout,
    mut entries: Vec<(u32, f32)>,
    (tails, log_partitions): (&[f32], &[f32]),
    row: &mut [u32],
    at: &RowPlace,
) -> Result<()> {
    check_distinct(entries.iter().map(|e| e.0).collect(), spec, at)?;
    for (_, l) in &mut entries {
        if l.is_nan() || *l > SLACK {
            return at.refuse("log_probs", "numbers not above 0", *l);
        }
        *l = if *l < 0.0 { *l } else { 0.0 };
    }
    if !entries.is_sorted_by(|a, b| (a.1, b.0) >= (b.1, a.0)) {
        entries.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    }
    for (j, &temperature) in spec.temperatures.iter().enumerate() {
        let (tail, c) = (at.between("tails", tails[j], 1.0 + SLACK)?, log_partitions[j]);
        if !c.is_finite() || (temperature == 1.0 && c != 0.0) {
            return at.refuse("log_partitions", "finite numbers, 0 at temperature 1", c);
        }
        let head: f64 = entries.iter().map(|e| f64::from(e.1 / temperature - c).exp()).sum();
        let sum = head + f64::from(tail);
        if (sum - 1.0).abs() > f64::from(SLACK) {
            return at.refuse(&format!("probabilities at T = {temperature}"), "a sum of 1 with the tail mass", sum);
        }
        row[layout.tail_at(j as u32) as usize] = tail.to_bits();
        row[layout.log_partition_at(j as u32) as usize] = (c + 0.0).to_bits();
    }
    put_entries(layout, entries.iter().map(|&(id, l)| (id, layout.encode_log_prob(l))), row);
    Ok(())
}

fn encode_sampled(
    spec: &SetSpec,
    layout: &RowLayout,
    mut entries: Vec<(u32, u32)>,
    row: &mut [u32],
    at: &RowPlace,
) -> Result<()> {
    entries.retain(|e| e.1 > 0);
    entries.sort_unstable();
    check_distinct(entries.iter().map(|e| e.0).collect(), spec, at)?;
    check_draws(entries.iter().map(|e| e.1), spec, at)?;
    put_entries(layout, entries.iter().copied(), row);
    Ok(())
}

fn encode_states(spec: &SetSpec, layout: &RowLayout, states: &[f32], row: &mut [u32], at: &RowPlace) -> Result<()> {
    let Record::Hidden { states: kind, .. } = spec.record else { return Ok(()) };
    let values = &mut row[layout.values_at as usize..];
    for (i, &x) in states.iter().enumerate() {
        let bits = kind.encode(x);
        if !x.is_finite() {
            return at.refuse("states", "finite numbers", x);
        }
        if !kind.decode(bits).is_finite() {
            return Error::file(at.place)
                .field(format!("row {}: states", at.row))
                .expected("magnitudes up to 65504, the most that f16 holds")
                .found(x)
                .help("store them as bf16 (`--state-type bf16`), in another folder")
                .err();
        }
        put_bits(values, i, layout.value_bits, bits.into());
    }
    Ok(())
}

fn put_entries(layout: &RowLayout, entries: impl Iterator<Item = (u32, u32)>, row: &mut [u32]) {
    let (head, values) = row.split_at_mut(layout.values_at as usize);
    for (i, (id, value)) in entries.enumerate() {
        put_bits(&mut head[layout.ids_at as usize..], i, layout.id_bits, id);
        put_bits(values, i, layout.value_bits, value);
    }
}

fn check_distinct(mut ids: Vec<u32>, spec: &SetSpec, at: &RowPlace) -> Result<()> {
    ids.sort_unstable();
    if let Some(twice) = ids.windows(2).find(|w| w[0] == w[1]) {
        return at.refuse("ids", "each id once", format!("{} twice", twice[0]));
    }
    ids.last().map_or(Ok(()), |&greatest| at.id("ids", greatest, spec).map(drop))
}

fn check_draws(counts: impl Iterator<Item = u32>, spec: &SetSpec, at: &RowPlace) -> Result<()> {
    let Record::Sampled { draws, .. } = spec.record else { return Ok(()) };
    let sum: u64 = counts.map(u64::from).sum();
    if sum == u64::from(draws) { Ok(()) } else { at.refuse("sum of counts", draws, sum) }
}

/// Token id of a row's words.
pub fn token(row: &[u32]) -> u32 {
    row[TOKEN_AT as usize] & ((1 << TOKEN_BITS) - 1)
}

/// Flags of a row's words.
pub fn flags(row: &[u32]) -> u8 {
    (row[TOKEN_AT as usize] >> TOKEN_BITS) as u8
}

/// Negative log-likelihood of the true next token of a row's words.
pub fn nll(row: &[u32]) -> f32 {
    f32::from_bits(row[NLL_AT as usize])
}

/// Entries of a row's words as (id, value bits); none in rows of hidden states.
pub fn entries<'a>(layout: &'a RowLayout, row: &'a [u32]) -> impl Iterator<Item = (u32, u32)> + 'a {
    let (ids, values) = (&row[layout.ids_at as usize..], &row[layout.values_at as usize..]);
    let entries = if layout.id_bits == 0 { 0 } else { layout.entries as usize };
    (0..entries).map(move |i| (get_bits(ids, i, layout.id_bits), get_bits(values, i, layout.value_bits)))
}

/// Numbers of whole rows of words, the first of which is row `first_row` of the set. Every number is checked; errors
/// name `place`, row and field.
pub fn decode(spec: &SetSpec, words: &[u32], first_row: u64, place: &Path) -> Result<RowBatch> {
    let layout = spec.layout();
    let stride = layout.stride_words as usize;
    if !words.len().is_multiple_of(stride) {
        return Error::file(place).expected(format!("rows of {stride} words")).found(words.len()).err();
    }
    let mut batch = RowBatch::empty(spec);
    for (r, row) in words.chunks_exact(stride).enumerate() {
        let at = RowPlace { place, row: first_row.saturating_add(r as u64) };
        batch.tokens.push(at.id("token", token(row), spec)?);
        batch.flags.push(at.flags(flags(row))?);
        batch.nll.push(at.between("nll", nll(row), f32::MAX)?);
        match &mut batch.records {
            Records::TopK { ids, log_probs, tails, log_partitions } => {
                for j in 0..layout.temperatures {
                    let c = f32::from_bits(row[layout.log_partition_at(j) as usize]);
                    if !c.is_finite() {
                        return at.refuse("log-partition", "a finite number", c);
                    }
                    tails.push(at.between(
                        "tail mass",
                        f32::from_bits(row[layout.tail_at(j) as usize]),
                        1.0 + SLACK,
                    )?);
                    log_partitions.push(c);
                }
                for (id, value) in entries(&layout, row) {
                    let l = layout.decode_value(value);
                    if !(layout.floor..=0.0).contains(&l) {
                        return at.refuse("log-probability", format!("{} to 0", layout.floor), l);
                    }
                    ids.push(at.id("id", id, spec)?);
                    log_probs.push(l);
                }
            }
            Records::Sampled { ids, counts } => {
                check_draws(entries(&layout, row).map(|e| e.1), spec, &at)?;
                for (id, count) in entries(&layout, row) {
                    ids.push(at.id("id", id, spec)?);
                    counts.push(count);
                }
            }
            Records::Hidden { states } => {
                let values = &row[layout.values_at as usize..];
                for i in 0..layout.entries as usize {
                    let x = layout.decode_value(get_bits(values, i, layout.value_bits));
                    if !x.is_finite() {
                        return at.refuse("state", "a finite number", x);
                    }
                    states.push(x);
                }
            }
        }
    }
    Ok(batch)
}
