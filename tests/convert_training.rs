//! Records from DistillKit's files train a student, an interrupted conversion ends as an unbroken one, and memory does
//! not grow with the file.
#![cfg(all(feature = "parquet", feature = "cli"))]

use crate::common::{golden, novel, recipe, small_config, small_model, small_tokenizer};
use potstill::device::Device;
use potstill::distill::convert::{ExportOptions, ImportOptions, export, import};
use potstill::distill::corpus::{CorpusOptions, read_corpus};
use potstill::distill::metrics::{self, Record as Line};
use potstill::distill::{CaptureOptions, Recipe, capture, distill};
use potstill::formats::ModelFolder;
use potstill::formats::parquet::{Cell, Kind, TableWriter};
use potstill::shards::foreign::Term;
use potstill::shards::rows::Records;
use potstill::shards::{LogProbType, Reader, Record};
use potstill::{Error, Result};
use serde_json::json;
use std::fs;
use std::ops::ControlFlow::{Break, Continue};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const CONTEXT: usize = 64;

/// Tokens of the novel as documents of one context each, so that packing cuts none.
fn documents(dir: &Path, count: usize) -> PathBuf {
    let text = fs::read_to_string(novel(dir, "novel.txt", 30_000..60_000)).unwrap();
    let ids = small_tokenizer().encode(&text, false).unwrap();
    let lines: Vec<String> =
        ids.chunks_exact(CONTEXT).take(count).map(|ids| json!({"input_ids": ids}).to_string()).collect();
    assert_eq!(lines.len(), count);
    let path = dir.join("documents.jsonl");
    fs::write(&path, lines.join("\n")).unwrap();
    path
}

/// Records a teacher of random weights, sharpened by a little training, over the documents.
fn record(dir: &Path, text: &Path, k: u32, log_probs: LogProbType) -> PathBuf {
    let (start, folder, out) = (dir.join("start"), dir.join("teacher"), dir.join("captured"));
    small_model(&start, 32, 1, 1);
    run(&recipe(&format!(
        "{{ output_path: {}, device: cpu, sequence_length: {CONTEXT}, model: {}, dataset: {{ train: {} }}, \
         training_args: {{ max_steps: 40, per_device_train_batch_size: 8, learning_rate: 1e-2 }} }}",
        folder.display(),
        start.display(),
        text.display()
    )));
    let teacher = ModelFolder::open(folder).unwrap();
    let corpus = read_corpus(&small_tokenizer(), &CorpusOptions::new(vec![text.to_owned()])).unwrap();
    let record = Record::TopK { k, log_probs };
    let options = CaptureOptions { record, sequence_length: CONTEXT, ..CaptureOptions::default() };
    capture(&Device::cpu(), &teacher, &Arc::new(corpus), &out, &options, &mut |_| (), &mut |_| Continue(())).unwrap();
    out
}

fn run(recipe: &Recipe) -> Vec<f64> {
    distill(recipe, false, &mut |_| Continue(())).unwrap();
    let lines = metrics::read(&recipe.output_path.join("metrics.jsonl")).unwrap();
    lines.iter().filter_map(|line| if let Line::Train(train) = line { Some(train.loss) } else { None }).collect()
}

/// A student from the same weights on the same tokens; only the records differ.
fn student(dir: &Path, name: &str, shards: &Path, text: &Path, missing: &str, steps: usize) -> Recipe {
    recipe(&format!(
        "{{ output_path: {}, device: cpu, sequence_length: {CONTEXT}, teacher: {{ kind: shards, path: {} }}, \
         model: {{ config: {}, init_seed: 5, tokenizer: {} }}, dataset: {{ train: {} }}, \
         loss_functions: [{{ function: kl, weight: 1, missing_probability_handling: {missing} }}], \
         training_args: {{ max_steps: {steps}, per_device_train_batch_size: 4, learning_rate: 4e-3, \
         logging_steps: 5 }} }}",
        dir.join(name).display(),
        shards.display(),
        small_config(32, 1),
        dir.join("start").display(),
        text.display()
    ))
}

fn there_and_back(dir: &Path, set: &Path, name: &str, options: &ExportOptions) -> PathBuf {
    let (data, back) = (dir.join(name), dir.join(format!("{name} back")));
    export(set, &data, options, &mut |_| Continue(())).unwrap();
    import(&data, &back, &small_tokenizer(), &ImportOptions::default(), &mut |_| Continue(())).unwrap();
    back
}

#[test]
fn a_set_that_went_through_distillkits_files_trains_to_the_same_losses() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let text = documents(dir, 48);
    let set = record(dir, &text, 20, LogProbType::DEFAULT);
    // 20 entries: all as half-precision numbers, whose step is 2^-11 of the number.
    let back = there_and_back(dir, &set, "exact", &ExportOptions::default());
    let (captured, converted) = (Reader::open(&set).unwrap(), Reader::open(&back).unwrap());
    let (a, b) = (captured.spec(), converted.spec());
    assert_eq!(
        (&a.corpus_digest, a.context_length, a.rows, &a.tokenizer_digest, a.vocab_size, &a.record),
        (&b.corpus_digest, b.context_length, b.rows, &b.tokenizer_digest, b.vocab_size, &b.record)
    );
    let expected = run(&student(dir, "student a", &set, &text, "symmetric_uniform", 40));
    let tokens = back.join("tokens.jsonl");
    let found = run(&student(dir, "student b", &back, &tokens, "symmetric_uniform", 40));
    assert_eq!(expected.len(), 8);
    assert!(expected[7] < 0.5 * expected[0], "the student learns: {expected:?}");
    for (a, b) in expected.iter().zip(&found) {
        assert!((a - b).abs() < 2e-3 * expected[0], "{expected:?} {found:?}");
    }

    // A polynomial through the last 12 entries.
    let terms = Some(vec![Term::Power(0), Term::Power(1), Term::Power(2), Term::Sqrt]);
    let options = ExportOptions { exact_k: Some(8), terms, ..ExportOptions::default() };
    let back = there_and_back(dir, &set, "polynomial", &options);
    let rows = |set: &Path| Reader::open(set).unwrap().read_rows(0, a.rows).unwrap();
    let (original, fitted) = (rows(&set), rows(&back));
    let (Records::TopK { log_probs: x, .. }, Records::TopK { log_probs: y, .. }) = (&original.records, &fitted.records)
    else {
        panic!()
    };
    let valid = |i: &usize| original.flags[i / 20] & 1 != 0;
    let squares: Vec<f64> = (0..x.len()).filter(valid).map(|i| f64::from(x[i] - y[i]).powi(2)).collect();
    let rms = (squares.iter().sum::<f64>() / squares.len() as f64).sqrt();
    assert!(rms < 0.05, "{rms}");
}

#[test]
fn documents_that_the_teacher_saw_in_pieces_become_rows_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let text = novel(dir, "text.txt", 30_000..31_000);
    let set = record(dir, &text, 8, LogProbType::F32);
    let back = there_and_back(dir, &set, "pieces", &ExportOptions::default());
    let (set, back) = (Reader::open(&set).unwrap(), Reader::open(&back).unwrap());
    let pieces = set.rows().div_ceil(CONTEXT as u64);
    assert_eq!(back.manifest().statistics.documents, pieces);
    // The tokens stay; a piece's last row loses its place in the loss.
    assert_eq!(set.manifest().statistics.valid_rows, back.manifest().statistics.valid_rows + pieces - 1);
    let tokens = set.read_rows(0, set.rows()).unwrap().tokens;
    back.check_tokens(0, &tokens).unwrap();
}

#[test]
fn records_without_a_tail_train_with_zero_handling_alone() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    small_model(&dir.join("start"), 32, 1, 1);
    let raw = golden("distillkit/raw.parquet");
    let options = ImportOptions { sequence_length: Some(CONTEXT), ..ImportOptions::default() };
    let set = dir.join("set");
    let made = import(&raw, &set, &small_tokenizer(), &options, &mut |_| Continue(())).unwrap();
    let ghost = student(dir, "ghost", &set, &made.tokens, "symmetric_uniform", 2);
    let error = distill(&ghost, false, &mut |_| Continue(())).unwrap_err().to_string();
    assert!(["tail_mass", "logits", "`zero` or `both_renormalised`"].iter().all(|w| error.contains(w)), "{error}");
    let losses = run(&student(dir, "zero", &set, &made.tokens, "zero", 2));
    assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    let error = export(&set, &dir.join("out"), &ExportOptions::default(), &mut |_| Continue(())).unwrap_err();
    assert!(error.to_string().contains("logits scaled"), "{error}");
}

/// A table of `rows` rows of `tokens` tokens with `k` equally likely entries each.
fn write_wide(path: &Path, rows: usize, tokens: usize, k: u16) {
    let columns = [("input_ids", Kind::Ids), ("compressed_logprobs", Kind::Bytes), ("bytepacked_indices", Kind::Bytes)];
    let mut table = TableWriter::new(fs::File::create(path).unwrap(), path, &columns).unwrap();
    let value = half::bf16::from_f32(-(f32::from(k) * 2.0).ln()).to_le_bytes();
    let values = vec![value.repeat(k as usize); tokens];
    let bits: String = (0..k).map(|id| format!("{id:09b}")).collect::<String>() + "0000000";
    let ids: Vec<u8> =
        (0..(k as usize * 9).div_ceil(8)).map(|i| u8::from_str_radix(&bits[8 * i..8 * i + 8], 2).unwrap()).collect();
    let ids = vec![ids; tokens];
    for row in 0..rows {
        let tokens: Vec<u32> = (0..tokens).map(|i| ((i * 31 + row * 7) % 339) as u32).collect();
        table.push(&[Cell::Ids(&tokens), Cell::Bytes(&values), Cell::Bytes(&ids)]).unwrap();
    }
    table.finish().unwrap();
    let settings =
        format!("{{ d: 340, k: {k}, exact_k: {k}, exact_dtype: bfloat16, residual_bins: [], delta_encoding: false }}");
    fs::write(path.with_file_name("compression_config.yaml"), settings).unwrap();
}

#[test]
fn an_import_that_was_stopped_ends_as_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let (data, whole, broken) = (dir.path().join("data.parquet"), dir.path().join("whole"), dir.path().join("broken"));
    write_wide(&data, 6, 5000, 2);
    let convert = |out: &Path, until: u64| -> Result<(u64, u64)> {
        let mut first = None;
        let options = ImportOptions::default();
        let made = import(&data, out, &small_tokenizer(), &options, &mut |progress| {
            first.get_or_insert(progress.rows);
            if progress.rows > until { Break(()) } else { Continue(()) }
        })?;
        Ok((first.unwrap_or(0), made.manifest.statistics.rows))
    };
    assert_eq!(convert(&whole, u64::MAX).unwrap(), (5000, 30_000));
    assert!(matches!(convert(&broken, 22_000), Err(Error::Cancelled)));
    assert!(Reader::open(&broken).is_err());
    // The first shard, 16384 rows, stays.
    assert_eq!(convert(&broken, u64::MAX).unwrap(), (16_384, 30_000));
    for name in ["manifest.json", "00000.shard", "00001.shard", "tokens.jsonl"] {
        assert_eq!(fs::read(whole.join(name)).unwrap(), fs::read(broken.join(name)).unwrap(), "{name}");
    }
}

/// Largest resident size of `potstill convert`, in bytes, as far as looking often can tell.
#[cfg(target_os = "linux")]
fn peak_of_conversion(data: &Path, out: &Path, tokenizer: &Path) -> u64 {
    use std::process::{Command, Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_potstill"))
        .args(["convert".as_ref(), data, out, "--tokenizer".as_ref(), tokenizer])
        .env("RAYON_NUM_THREADS", "2")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let size = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        peak = peak.max(size.unwrap_or(0) * 1024);
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return peak;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn memory_does_not_grow_with_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = dir.path().join("model");
    small_model(&tokenizer, 32, 1, 1);
    let peak = |rows: usize| {
        let folder = dir.path().join(rows.to_string());
        fs::create_dir_all(&folder).unwrap();
        write_wide(&folder.join("data.parquet"), rows, 2048, 100);
        peak_of_conversion(&folder, &dir.path().join(format!("set {rows}")), &tokenizer)
    };
    // A row is 2048 positions of 313 numbers, 8 bytes each while it is read: 5 MB. The last file is 200 MB of them.
    let (few, many) = (peak(10), peak(40));
    assert!(few > 5 << 20 && many < few + (24 << 20), "{few} {many}");
}
