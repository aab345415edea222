//! What a shard set holds: everything that is fixed before its first row is captured.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::layout::RowLayout;
use crate::device::Precision;
use crate::{Error, Result};

/// Entries of a top-k row unless asked otherwise; `docs/shards.md` has the table behind it.
pub const DEFAULT_K: u32 = 64;
/// Draws of a sampled row unless asked otherwise (N = 50 in arXiv 2503.16870).
pub const DEFAULT_DRAWS: u32 = 50;
/// Slots of a sampled row unless asked otherwise; a row with more distinct tokens is merged without bias.
pub const DEFAULT_MAX_UNIQUE: u32 = 24;
/// Rows of a shard file unless asked otherwise; also the most work that a killed capture repeats.
pub const DEFAULT_ROWS_PER_SHARD: u32 = 16_384;

/// A token id shares its word with eight flag bits.
const MAX_VOCAB: u32 = 1 << 24;
/// A writer holds one shard in memory.
const MAX_SHARD_BYTES: u64 = 1 << 30;
const MAX_TEMPERATURES: usize = 16;
const MAX_HIDDEN: u32 = 1 << 20;
const MAX_LAYERS: u32 = 4096;

/// The fixed part of a shard set. Two captures with equal specs and the same teacher give the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetSpec {
    /// Whose distributions these are.
    pub teacher: Teacher,
    /// Digest of the tokenizer that made the token ids.
    pub tokenizer_digest: String,
    /// Rows of the teacher's output matrix, padding included.
    pub vocab_size: u32,
    /// Ids that the tokenizer can produce; the surplus up to `vocab_size` never occurs in a record.
    pub real_vocab_size: u32,
    /// What each row records.
    pub record: Record,
    /// Top-k: temperatures with stored tail mass and log-partition; the first is 1. Sampled: the one temperature
    /// that the draws were made at. Hidden states: none, they serve all.
    pub temperatures: Vec<f32>,
    /// Digest of the tokenised corpus, token positions and document borders included.
    pub corpus_digest: String,
    /// Most tokens of context that the teacher saw.
    pub context_length: u32,
    /// Token positions of the corpus, each of which is one row.
    pub rows: u64,
    /// Rows of every shard but the last.
    pub rows_per_shard: u32,
    /// Whether the capture reports each row's entropy (it needs the full distribution).
    pub entropy: bool,
    /// Where the tail masses of top-k rows come from; left out of the JSON where they are a capture's own.
    #[serde(default, skip_serializing_if = "TailMass::is_captured")]
    pub tail_mass: TailMass,
    /// Where the numbers come from, if not from a capture that saw every logit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// How the teacher's matrix products treated their factors; left out of the JSON where that is f32, or unknown.
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    pub precision: Precision,
}

/// Where the tail masses of a top-k set come from. Anything but `Captured` also makes a row's NLL of a token outside
/// its record the least that it can be, since the record does not say it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TailMass {
    /// From the whole distribution.
    #[default]
    Captured,
    /// 1 less the sum of the recorded probabilities, as they were stored elsewhere: right to their rounding.
    Derived,
    /// Nothing is known of it: the source holds logits of the recorded tokens alone. Their probabilities are scaled to
    /// sum to 1 and the tail is written as 0.
    Unknown,
}

impl TailMass {
    fn is_captured(&self) -> bool {
        *self == TailMass::Captured
    }
}

/// A source of numbers that sees less than every logit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// A server that shows its likeliest tokens.
    Endpoint {
        /// The server's API: `vllm`, `sglang` or `llama-cpp`.
        dialect: String,
    },
}

/// [`Teacher::digest`] where nobody told the weights.
pub const UNKNOWN_DIGEST: &str = "unknown";

/// Name and weights of the teacher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Teacher {
    /// What the user called it: a hub id or folder name.
    pub name: String,
    /// Digest of its weights, or [`UNKNOWN_DIGEST`].
    pub digest: String,
}

/// The kinds of record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Record {
    /// The `k` most probable tokens, most probable first.
    TopK {
        /// Entries of a row.
        k: u32,
        /// How log-probabilities are stored.
        log_probs: LogProbType,
    },
    /// Tokens drawn with replacement, by ascending id, with how often each was drawn.
    Sampled {
        /// Draws of a row: its counts add up to this.
        draws: u32,
        /// Slots of a row; unused ones have count 0.
        max_unique: u32,
        /// Seed of the draws; a row's random numbers depend on the seed and its row number alone.
        seed: u64,
    },
    /// The teacher's hidden states. With its head the last one is its whole distribution.
    Hidden {
        /// How a state's numbers are stored.
        states: StateType,
        /// d, the numbers of a state.
        hidden_size: u32,
        /// Which states, rising, by transformers' `hidden_states` index: 0 is the embedding's output, i that of block i
        /// (counted from 1). The last is always the final one, after the norm.
        layers: Vec<u32>,
    },
}

/// How a hidden state's numbers are stored, two bytes each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateType {
    /// IEEE half precision: 11 significant bits, magnitudes up to 65,504.
    #[default]
    F16,
    /// Brain float: 8 significant bits, the range of f32.
    Bf16,
}

impl StateType {
    /// The stored bits of the nearest number. Past the type's range that is an infinity.
    pub fn encode(self, x: f32) -> u16 {
        match self {
            StateType::F16 => half::f16::from_f32(x).to_bits(),
            StateType::Bf16 => half::bf16::from_f32(x).to_bits(),
        }
    }

    /// The number behind stored bits.
    pub fn decode(self, bits: u16) -> f32 {
        match self {
            StateType::F16 => half::f16::from_bits(bits).to_f32(),
            StateType::Bf16 => half::bf16::from_bits(bits).to_f32(),
        }
    }

    /// Its name in a manifest and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            StateType::F16 => "f16",
            StateType::Bf16 => "bf16",
        }
    }
}

impl Record {
    /// The format version that can say this: sets of the first two kinds stay as they were.
    pub fn version(&self) -> u32 {
        match self {
            Record::TopK { .. } | Record::Sampled { .. } => 1,
            Record::Hidden { .. } => 2,
        }
    }

    /// Its number in a shard's header.
    pub fn kind(&self) -> u32 {
        match self {
            Record::TopK { .. } => 0,
            Record::Sampled { .. } => 1,
            Record::Hidden { .. } => 2,
        }
    }

    /// What its rows are called in messages.
    pub(crate) fn rows_name(&self) -> &'static str {
        match self {
            Record::TopK { .. } => "top-k rows",
            Record::Sampled { .. } => "sampled rows",
            Record::Hidden { .. } => "rows of hidden states",
        }
    }
}

/// How a top-k row stores log-probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LogProbType {
    /// IEEE single precision.
    F32,
    /// `8..=16` bits, evenly spaced over `[floor, 0]`, floor = -24 x the greatest temperature (at least 1).
    Unorm(u8),
}

impl LogProbType {
    /// The default: IEEE half precision has its bytes and up to twice its error, and is not offered.
    pub const DEFAULT: LogProbType = LogProbType::Unorm(16);
}

impl fmt::Display for LogProbType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogProbType::F32 => write!(f, "f32"),
            LogProbType::Unorm(bits) => write!(f, "unorm{bits}"),
        }
    }
}

impl From<LogProbType> for String {
    fn from(t: LogProbType) -> String {
        t.to_string()
    }
}

impl TryFrom<String> for LogProbType {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let known = (8..=16).map(LogProbType::Unorm).chain([LogProbType::F32]);
        let unknown = || format!("log-probability type {name:?} is none of f32, unorm8 to unorm16");
        known.into_iter().find(|t| t.to_string() == name).ok_or_else(unknown)
    }
}

impl SetSpec {
    /// Refuses a spec that no set can have; `place` heads the message.
    pub fn validate(&self, place: &Path) -> Result<()> {
        let refuse = |field: &str, expected: &str, found: &dyn fmt::Display| {
            let help = "change what is asked of the capture";
            Error::file(place).field(format!("`{field}`")).expected(expected).found(found).help(help).err()
        };
        if self.vocab_size > MAX_VOCAB {
            return refuse("vocab_size", "at most 16777216", &self.vocab_size);
        }
        if self.real_vocab_size < 2 || self.real_vocab_size > self.vocab_size {
            let expected = format!("2 to {}, the model's `vocab_size`", self.vocab_size);
            return refuse("real_vocab_size", &expected, &self.real_vocab_size);
        }
        if self.context_length == 0 || self.rows == 0 || self.rows_per_shard == 0 {
            let found = format!("{}, {}, {}", self.context_length, self.rows, self.rows_per_shard);
            return refuse("context_length, rows, rows_per_shard", "each at least 1", &found);
        }
        self.validate_record(&refuse)?;
        if self.layout().stride_bytes().saturating_mul(self.rows_per_shard.into()) > MAX_SHARD_BYTES {
            let found = format!("{} rows of {} bytes", self.rows_per_shard, self.layout().stride_bytes());
            return refuse("rows_per_shard", "shards of at most 1 GiB", &found);
        }
        Ok(())
    }

    fn validate_record(&self, refuse: &dyn Fn(&str, &str, &dyn fmt::Display) -> Result<()>) -> Result<()> {
        let temperatures = &self.temperatures;
        let found = format!("{temperatures:?}");
        if temperatures.iter().any(|t| !(t.is_finite() && *t > 0.0)) || temperatures.len() > MAX_TEMPERATURES {
            return refuse("temperatures", "up to 16 positive numbers", &found);
        }
        if (1..temperatures.len()).any(|i| temperatures[..i].contains(&temperatures[i])) {
            return refuse("temperatures", "each temperature once", &found);
        }
        match &self.record {
            Record::Hidden { hidden_size, layers, .. } => self.validate_states(*hidden_size, layers, refuse),
            &Record::TopK { k, .. } if k == 0 || k > self.real_vocab_size => {
                refuse("record.k", &format!("1 to {}, the tokenizer's ids", self.real_vocab_size), &k)
            }
            &Record::TopK { log_probs: LogProbType::Unorm(bits), .. } if !(8..=16).contains(&bits) => {
                refuse("record.log_probs", "unorm8 to unorm16", &bits)
            }
            Record::TopK { .. } if temperatures.first() != Some(&1.0) => {
                refuse("temperatures", "1 first, then any others", &found)
            }
            Record::Sampled { .. } if !self.tail_mass.is_captured() => {
                refuse("tail_mass", "no such key in a sampled set", &"one")
            }
            Record::TopK { .. } if !self.tail_mass.is_captured() && temperatures.len() != 1 => {
                refuse("temperatures", "1 alone, where the tail mass is not the capture's own", &found)
            }
            Record::Sampled { .. } if temperatures.len() != 1 => {
                refuse("temperatures", "the one temperature of the draws", &found)
            }
            &Record::Sampled { draws, .. } if draws == 0 || draws > 65_535 => {
                refuse("record.draws", "1 to 65535", &draws)
            }
            &Record::Sampled { draws, max_unique, .. }
                if max_unique == 0 || max_unique > draws.min(self.real_vocab_size) =>
            {
                refuse("record.max_unique", "1 to the number of draws (and of tokens)", &max_unique)
            }
            _ => Ok(()),
        }
    }

    fn validate_states(
        &self,
        hidden_size: u32,
        layers: &[u32],
        refuse: &dyn Fn(&str, &str, &dyn fmt::Display) -> Result<()>,
    ) -> Result<()> {
        if !self.temperatures.is_empty() {
            let expected = "none: hidden states serve every temperature";
            return refuse("temperatures", expected, &format!("{:?}", self.temperatures));
        }
        if !self.tail_mass.is_captured() {
            return refuse("tail_mass", "no such key in a set of hidden states", &"one");
        }
        if hidden_size == 0 || hidden_size > MAX_HIDDEN {
            return refuse("record.hidden_size", "1 to 1048576", &hidden_size);
        }
        let rising = layers.windows(2).all(|pair| pair[0] < pair[1]);
        if layers.is_empty() || !rising || layers.iter().any(|&layer| layer > MAX_LAYERS) {
            return refuse("record.layers", "rising layer numbers up to 4096", &format!("{layers:?}"));
        }
        Ok(())
    }

    /// Where each number of a row lies.
    pub fn layout(&self) -> RowLayout {
        RowLayout::new(self)
    }

    /// Shard files of the finished set.
    pub fn shard_count(&self) -> u64 {
        self.rows.div_ceil(u64::from(self.rows_per_shard.max(1)))
    }

    /// SHA-256 of this spec's compact JSON: stands in every shard's header and binds it to its set.
    pub fn set_id(&self) -> [u8; 32] {
        let json = serde_json::to_vec(self).unwrap_or_default();
        Sha256::digest(json).into()
    }

    /// Refuses to continue a set made for `self` (found at `place`) with the spec `wanted`, naming the first field
    /// that differs and both values.
    pub fn refuse_difference(&self, wanted: &SetSpec, place: &Path) -> Result<()> {
        let json = |spec: &SetSpec| {
            let mut json = serde_json::to_value(spec).unwrap_or_default();
            json["tail_mass"] = serde_json::to_value(spec.tail_mass).unwrap_or_default();
            json
        };
        match first_difference(&json(self), &json(wanted), "") {
            None => Ok(()),
            Some((field, found, expected)) => Error::file(place)
                .field(format!("`{field}`"))
                .expected(format!("{expected} (this capture)"))
                .found(format!("{found} (the set that is there)"))
                .help("write to another folder, or give the settings the set was begun with")
                .err(),
        }
    }
}

/// Path and both values of the first leaf at which two JSON values differ.
fn first_difference(a: &Value, b: &Value, path: &str) -> Option<(String, Value, Value)> {
    if let (Value::Object(a), Value::Object(b)) = (a, b)
        && (path.is_empty() || a.keys().eq(b.keys()))
    {
        let join = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
        let get = |map: &Map<String, Value>, key: &str| map.get(key).cloned().unwrap_or_default();
        let mut keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
        return keys.find_map(|key| first_difference(&get(a, key), &get(b, key), &join(key)));
    }
    (a != b).then(|| (path.to_string(), a.clone(), b.clone()))
}
