//! The text of a small experiment and a tokenizer for it; of the page's demo too (examples/page_assets.rs).

use potstill::formats::Tokenizer;
use potstill::random::SplitMix64;
use potstill::{Error, Result};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerBuilder};

const END: &str = "<|endoftext|>";
/// Bytes after which a text is cut at the end of a sentence.
const PIECE_BYTES: usize = 1000;

/// Where the experiment's text lies.
pub struct Text {
    /// Folder with the tokenizer.
    pub tokenizer: PathBuf,
    /// All texts: what the teacher learns from.
    pub all: PathBuf,
    /// The last of them: what students learn from, and what is held out at the end of both.
    pub students: PathBuf,
}

/// How large an experiment is.
pub struct Sizes {
    /// Tokens of the tokenizer, the end-of-text token among them.
    pub vocabulary: usize,
    /// Bytes that students learn from.
    pub students_bytes: usize,
}

/// Prepares tokenizer and texts from the addresses in `sotu` below `folder`, once. They are cut into pieces and shuffled,
/// so that what is held out is of the same time and speakers as what is learned.
pub fn prepare(sotu: &Path, folder: &Path, sizes: &Sizes) -> Result<Text> {
    let text = Text {
        tokenizer: folder.join("tokenizer"),
        all: folder.join("all.jsonl"),
        students: folder.join("students.jsonl"),
    };
    if text.students.is_file() {
        return Ok(text);
    }
    std::fs::create_dir_all(&text.tokenizer).map_err(Error::io("create", &text.tokenizer))?;
    let entries = std::fs::read_dir(sotu).map_err(Error::io("read", sotu))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "txt"));
    paths.sort();
    let read = |path: &PathBuf| std::fs::read_to_string(path).map_err(Error::io("read", path));
    let documents: Vec<String> = paths.iter().map(read).collect::<Result<_>>()?;
    train_tokenizer(&documents, sizes.vocabulary, &text.tokenizer)?;
    let mut pieces: Vec<&str> = documents.iter().flat_map(|document| pieces(document)).collect();
    shuffle(&mut pieces);
    let mut first = pieces.len();
    let mut bytes = 0;
    while first > 0 && bytes < sizes.students_bytes {
        first -= 1;
        bytes += pieces[first].len();
    }
    write(&text.all, &pieces)?;
    write(&text.students, &pieces[first..])?;
    Ok(text)
}

/// A text in pieces of whole sentences.
fn pieces(mut text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    while !text.is_empty() {
        let mut ends = text.match_indices(". ").map(|(at, _)| at).filter(|at| *at >= PIECE_BYTES);
        let end = ends.next().map_or(text.len(), |at| at + 2);
        pieces.push(text[..end].trim());
        text = &text[end..];
    }
    pieces
}

/// Fisher and Yates's.
fn shuffle(pieces: &mut [&str]) {
    let mut random = SplitMix64::new(1);
    for i in (1..pieces.len()).rev() {
        pieces.swap(i, (random.bits() % (i as u64 + 1)) as usize);
    }
}

fn write(path: &Path, documents: &[&str]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let lines = || -> std::io::Result<()> {
        let mut out = std::io::BufWriter::new(std::fs::File::create(&temporary)?);
        for text in documents {
            writeln!(out, "{}", json!({ "text": text }))?;
        }
        out.into_inner()?.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    lines().map_err(Error::io("write", path))
}

/// Byte-level BPE, as GPT-2's, trained on the documents.
fn train_tokenizer(documents: &[String], vocabulary: usize, folder: &Path) -> Result<()> {
    let bad = |error: tokenizers::Error| Error::internal(format!("training a tokenizer: {error}"));
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocabulary)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(END, true)])
        .build();
    let level = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(level))
        .with_post_processor(Some(level))
        .with_decoder(Some(level))
        .build()
        .map_err(bad)?;
    tokenizer.train(&mut trainer, documents.iter().map(String::as_str)).map_err(bad)?;
    tokenizer.save(folder.join("tokenizer.json"), false).map_err(bad)?;
    let config = folder.join("tokenizer_config.json");
    std::fs::write(&config, json!({ "eos_token": END }).to_string()).map_err(Error::io("write", &config))?;
    Tokenizer::from_folder(folder).map(drop)
}
