//! Recording a teacher: text through the model, one record a token into a shard set.

use super::batch::{write_batch, write_weights};
use super::capture_states;
use super::memory::{self, Memory};
use super::step::provide;
use crate::data::packing::{Batch, Cursor, IGNORE, PADDING, Packer};
use crate::data::tokens::Corpus;
use crate::device::{Device, Precision};
use crate::formats::{ModelFolder, Tokenizer};
use crate::graph::{DType, Graph, Plan, Runner, Store};
use crate::losses::{self, Capture, Head, capture_head, chunk_rows};
use crate::models::{self, Decoder, FrozenWeights, load_parameters};
use crate::nn::BatchInputs;
use crate::shards::sample::{counts_from_draws, limit_unique};
use crate::shards::spec::DEFAULT_ROWS_PER_SHARD;
use crate::shards::{
    CONTEXT_START, DOCUMENT_START, Manifest, Record, Records, RowBatch, SetSpec, TailMass, Teacher, VALID, Writer,
};
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// What to record.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// What of each distribution, and how stored. Of hidden states `hidden_size` and the final layer are filled in.
    pub record: Record,
    /// Temperatures whose log-partition and tail mass are stored; the first must be 1. Sampled records have the one
    /// they are drawn at. Hidden states serve every temperature: 1 alone is what to give for them.
    pub temperatures: Vec<f32>,
    /// T: tokens of context at most; the trainer's `sequence_length` must be the same.
    pub sequence_length: usize,
    /// Sequences at a time.
    pub batch_size: usize,
    /// Rows of a shard: what a kill can cost at most.
    pub rows_per_shard: u32,
    /// How the teacher's products treat their factors; the set says so.
    pub precision: Precision,
    /// How the teacher's matrices lie in memory; the set is the same.
    pub weights: FrozenWeights,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        CaptureOptions {
            record: Record::TopK { k: crate::shards::spec::DEFAULT_K, log_probs: crate::shards::LogProbType::DEFAULT },
            temperatures: vec![1.0],
            sequence_length: 512,
            batch_size: 2,
            rows_per_shard: DEFAULT_ROWS_PER_SHARD,
            precision: Precision::F32,
            weights: FrozenWeights::default(),
        }
    }
}

impl CaptureOptions {
    /// What the shard set's own check cannot see.
    fn check(&self) -> Result<()> {
        let rule = |holds: bool, name: &str, expected: &str, found: usize| match holds {
            true => Ok(()),
            false => Error::at("capture").field(format!("`{name}`")).expected(expected).found(found).err(),
        };
        let (length, batch) = (self.sequence_length, self.batch_size);
        rule((1..=MAX_TOKENS).contains(&length), "sequence_length", "1 to 16777216 tokens", length)?;
        rule(batch > 0, "batch_size", "at least 1 sequence", batch)?;
        if matches!(self.record, Record::Hidden { .. }) && self.temperatures != [1.0] {
            let expected = "no such choice with hidden states: they serve every temperature";
            let complaint = Error::at("capture").field("`temperatures`").expected(expected);
            return complaint.found(format!("{:?}", self.temperatures)).help("leave it out").err();
        }
        let tokens = length.checked_mul(batch).is_some_and(|tokens| tokens <= MAX_TOKENS);
        rule(tokens, "batch_size", "at most 16777216 tokens (sequences times `sequence_length`) at a time", batch)
    }
}

/// Most tokens of a batch: far above what any memory holds, and low enough that no count overflows.
const MAX_TOKENS: usize = 1 << 24;

/// How far a capture is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Rows recorded, those of an earlier process included.
    pub rows: u64,
    /// Rows of the whole set.
    pub total: u64,
    /// Bytes in finished shards.
    pub bytes: u64,
}

/// Runs `teacher` over `corpus` and writes the shard set `out`, or goes on with one that a stopped process left there.
/// `planned` hears the memory before anything is allocated; `progress` hears each batch and may stop the capture,
/// which is [`Error::Cancelled`] and can be resumed.
pub fn capture(
    device: &Device,
    teacher: &ModelFolder,
    corpus: &Arc<Corpus>,
    out: &Path,
    options: &CaptureOptions,
    planned: &mut dyn FnMut(&Memory),
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Manifest> {
    options.check()?;
    device.check_precision(options.precision, "capture's `precision`")?;
    let tokenizer = teacher.tokenizer()?;
    let decoder = models::from_config(teacher.path(), &teacher.config)?;
    let decoder = decoder.with_frozen(options.weights, &teacher.tensors)?;
    let record = capture_states::complete(&options.record, &decoder.config)?;
    let options = &CaptureOptions { record, ..options.clone() };
    let spec = set_spec(teacher, &decoder, &tokenizer, corpus, options);
    let (mut writer, done) = Writer::resume_or_create(out, spec.clone())?;
    let total = spec.rows;
    if done < total {
        let mut recorder = Recorder::new(device, teacher, &decoder, corpus, tokenizer.vocab_size(), options, planned)?;
        let ranges = (0..corpus.documents()).map(|i| corpus.range(i)).collect();
        let mut packer = Packer::new(corpus.clone(), ranges, options.sequence_length, options.batch_size, None)?;
        let rows_per_batch = (options.sequence_length * options.batch_size) as u64;
        // Whole batches again: the first may hold rows that are on disk already, which are then left out.
        let mut cursor = Cursor { epoch: 0, batch: done / rows_per_batch };
        while cursor.epoch == 0 {
            let batch = packer.next_batch(&mut cursor)?;
            let rows = recorder.record(&batch, corpus, &spec, writer.next_row())?;
            writer.push_rows(&rows)?;
            let (rows, bytes) = (writer.next_row(), writer.bytes_written());
            if progress(Progress { rows, total, bytes }).is_break() {
                return Err(Error::Cancelled);
            }
        }
    }
    writer.finish()
}

fn set_spec(
    teacher: &ModelFolder,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    corpus: &Corpus,
    options: &CaptureOptions,
) -> SetSpec {
    let name = teacher.path().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let hidden = matches!(options.record, Record::Hidden { .. });
    SetSpec {
        teacher: Teacher { name, digest: teacher.digest() },
        tokenizer_digest: tokenizer.digest(),
        vocab_size: decoder.config.vocab_size as u32,
        real_vocab_size: tokenizer.vocab_size() as u32,
        record: options.record.clone(),
        temperatures: if hidden { Vec::new() } else { options.temperatures.clone() },
        corpus_digest: corpus.digest(),
        context_length: options.sequence_length as u32,
        rows: corpus.ids().len() as u64,
        rows_per_shard: options.rows_per_shard,
        entropy: !hidden,
        tail_mass: TailMass::Captured,
        source: None,
        precision: options.precision,
    }
}

/// What to keep of each distribution; nothing where states are kept.
fn distributions<'a>(g: &mut Graph, options: &'a CaptureOptions) -> Option<losses::Record<'a>> {
    match options.record {
        Record::TopK { k, .. } => Some(losses::Record::TopK { k: k as usize, temperatures: &options.temperatures }),
        Record::Sampled { draws, .. } => Some(losses::Record::Sampled {
            draws: draws as usize,
            temperature: options.temperatures.first().copied().unwrap_or(1.0),
            key: g.external("capture.key", [4], DType::U32),
        }),
        Record::Hidden { .. } => None,
    }
}

/// Makes what was recorded of the distributions outputs of the graph.
fn name_outputs(g: &mut Graph, captured: &Capture) {
    g.output("nll", captured.nll);
    g.output("entropy", captured.entropy);
    g.output("ids", captured.ids);
    if let Some(log_probs) = captured.log_probs {
        g.output("log_probs", log_probs);
    }
    for (j, (tail, partition)) in captured.tails.iter().zip(&captured.log_partitions).enumerate() {
        g.output(&format!("tail.{j}"), *tail);
        g.output(&format!("log_partition.{j}"), *partition);
    }
}

/// The teacher on the device with its plan.
struct Recorder {
    store: Store,
    runner: Runner,
    record: Record,
    temperatures: usize,
    /// First token positions of the documents.
    starts: BTreeSet<usize>,
}

impl Recorder {
    fn new(
        device: &Device,
        teacher: &ModelFolder,
        decoder: &Decoder,
        corpus: &Corpus,
        vocabulary: usize,
        options: &CaptureOptions,
        planned: &mut dyn FnMut(&Memory),
    ) -> Result<Recorder> {
        let n = options.sequence_length * options.batch_size;
        let mut g = Graph::new();
        g.set_precision(options.precision);
        let batch = BatchInputs::declare(&mut g, "capture", n, options.sequence_length, false);
        let params = decoder.frozen("");
        let traced = decoder.forward_traced(&mut g, &params, &batch, false, &capture_states::taps(&options.record))?;
        let weight = [decoder.head_weight(&mut g, &params)];
        let head = Head { weight: &weight, vocab: vocabulary, softcap: decoder.config.logit_softcap };
        let labels = g.external("capture.labels", [n], DType::U32);
        let weights = g.external("capture.weights", [n], DType::F32);
        let rows = chunk_rows(decoder.config.vocab_size, device.caps());
        match distributions(&mut g, options) {
            Some(record) => {
                let captured = capture_head(&mut g, traced.hidden, &head, labels, weights, record, rows)?;
                name_outputs(&mut g, &captured);
            }
            None => capture_states::outputs(&mut g, traced.hidden, &traced.states, &head, [labels, weights], rows)?,
        }
        let plan = Plan::new(&g)?;
        let parameters = decoder.parameter_bytes();
        let inputs = plan.kept.iter().sum::<u64>();
        let memory = Memory { parameters, inputs, activations: plan.slots.iter().sum(), ..Memory::default() };
        planned(&memory);
        memory::check(memory, memory::available(device), [])?;
        let mut store = Store::new(device);
        decoder.allocate(&mut store, "", options.sequence_length)?;
        load_parameters(decoder, &store, "", &teacher.tensors, None)?;
        provide(&mut store, &g)?;
        let runner = Runner::new(plan, &store, &mut Vec::new())?;
        let temperatures = options.temperatures.len();
        let starts = (0..corpus.documents()).map(|i| corpus.range(i).start).collect();
        Ok(Recorder { store, runner, record: options.record.clone(), temperatures, starts })
    }

    /// Records of a batch's rows from corpus position `from` on.
    fn record(&mut self, batch: &Batch, corpus: &Corpus, spec: &SetSpec, from: u64) -> Result<RowBatch> {
        // Every token with a successor in its document is a row of the set, learned or not: whoever trains decides.
        let mut batch = batch.clone();
        let starts = &self.starts;
        for (label, &row) in batch.labels.iter_mut().zip(&batch.row_id) {
            let next = row.wrapping_add(1) as usize;
            let inside = row != PADDING && next < corpus.ids().len() && !starts.contains(&next);
            *label = if inside { corpus.ids()[next] } else { IGNORE };
        }
        write_batch(&self.store, "capture", &batch)?;
        write_weights(&self.store, "capture", &batch, 1.0)?;
        if let Record::Sampled { seed, .. } = self.record {
            let words = |x: u64| [x as u32, (x >> 32) as u32];
            self.store.write("capture.key", &[words(seed), words(batch.row_id[0])].concat())?;
        }
        self.runner.run()?;
        let kept: Vec<usize> =
            (0..batch.row_id.len()).filter(|&i| batch.row_id[i] != PADDING && batch.row_id[i] >= from).collect();
        let flags = |i: usize| {
            let row = batch.row_id[i] as usize;
            let document = if starts.contains(&row) { DOCUMENT_START } else { 0 };
            let context = if batch.positions[i] == 0 { CONTEXT_START } else { 0 };
            let valid = if batch.labels[i] == IGNORE { 0 } else { VALID };
            valid | document | context
        };
        let floats = |name: &str| pollster::block_on(self.runner.read_f32(name));
        let nll = floats("nll")?;
        let mut rows = RowBatch::empty(spec);
        rows.tokens = kept.iter().map(|&i| batch.tokens[i]).collect();
        rows.flags = kept.iter().map(|&i| flags(i)).collect();
        rows.nll = kept.iter().map(|&i| nll[i]).collect();
        if spec.entropy {
            let entropy = floats("entropy")?;
            rows.entropy = kept.iter().map(|&i| entropy[i]).collect();
        }
        rows.records = match &self.record {
            &Record::TopK { k, .. } => self.top_k(&kept, k as usize)?,
            &Record::Sampled { max_unique, seed, .. } => self.sampled(&kept, &batch, max_unique, seed)?,
            Record::Hidden { hidden_size, layers, .. } => {
                capture_states::read(&self.runner, &kept, *hidden_size as usize, layers.len())?
            }
        };
        Ok(rows)
    }

    fn top_k(&self, kept: &[usize], k: usize) -> Result<Records> {
        let all_ids = pollster::block_on(self.runner.read_u32("ids"))?;
        let all_log_probs = pollster::block_on(self.runner.read_f32("log_probs"))?;
        let mut tails = vec![0.0; kept.len() * self.temperatures];
        let mut log_partitions = tails.clone();
        for j in 0..self.temperatures {
            let tail = pollster::block_on(self.runner.read_f32(&format!("tail.{j}")))?;
            let partition = pollster::block_on(self.runner.read_f32(&format!("log_partition.{j}")))?;
            for (row, &i) in kept.iter().enumerate() {
                tails[row * self.temperatures + j] = tail[i];
                log_partitions[row * self.temperatures + j] = partition[i];
            }
        }
        let ids = kept.iter().flat_map(|&i| all_ids[i * k..(i + 1) * k].iter().copied()).collect();
        let log_probs = kept.iter().flat_map(|&i| all_log_probs[i * k..(i + 1) * k].iter().copied()).collect();
        Ok(Records::TopK { ids, log_probs, tails, log_partitions })
    }

    fn sampled(&self, kept: &[usize], batch: &Batch, max_unique: u32, seed: u64) -> Result<Records> {
        let draws = pollster::block_on(self.runner.read_u32("ids"))?;
        let per_row = draws.len() / batch.row_id.len();
        let (mut ids, mut counts) = (Vec::new(), Vec::new());
        for &i in kept {
            let (mut row_ids, mut row_counts) = counts_from_draws(&draws[i * per_row..(i + 1) * per_row]);
            limit_unique(&mut row_ids, &mut row_counts, max_unique, seed, batch.row_id[i]);
            row_ids.resize(max_unique as usize, 0);
            row_counts.resize(max_unique as usize, 0);
            ids.extend(row_ids);
            counts.extend(row_counts);
        }
        Ok(Records::Sampled { ids, counts })
    }
}
