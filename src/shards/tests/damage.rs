//! Every truncation and bit flip is seen, and nothing panics.

use std::fs;

use super::super::journal::{JOURNAL_FILE, Journal};
use super::super::reader::verify_shard;
use super::*;
use crate::digest::sha256;

/// Truncations to every length, and every single-bit flip.
fn damaged(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    let flips = (0..8 * bytes.len()).map(|bit| {
        let mut copy = bytes.to_vec();
        copy[bit / 8] ^= 1 << (bit % 8);
        copy
    });
    (0..bytes.len()).map(|n| bytes[..n].to_vec()).chain(flips)
}

fn specs() -> [SetSpec; 4] {
    [
        spec(top_k(3, LogProbType::Unorm(12)), &[1.0, 2.0], 5),
        spec(sampled(9, 4), &[1.0], 5),
        spec(hidden(StateType::F16), &[], 5),
        spec(hidden(StateType::Bf16), &[], 5),
    ]
}

#[test]
fn a_damaged_manifest_is_refused() {
    for spec in specs() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = capture(dir.path(), &spec, 5).unwrap();
        let bytes = fs::read(dir.path().join("manifest.json")).unwrap();
        assert_eq!(Manifest::parse(&bytes, Path::new("m")).unwrap(), manifest);
        for copy in damaged(&bytes) {
            assert!(Manifest::parse(&copy, Path::new("m")).is_err());
        }
    }
}

#[test]
fn a_damaged_shard_is_refused_even_with_its_digest_forged() {
    for spec in specs() {
        let dir = tempfile::tempdir().unwrap();
        let entry = capture(dir.path(), &spec, 5).unwrap().shards.remove(0);
        let bytes = fs::read(dir.path().join(&entry.file)).unwrap();
        let verify = |entry: &ShardEntry, bytes: &[u8]| verify_shard(&spec, entry, 0, bytes, Path::new("s"));
        verify(&entry, &bytes).unwrap();
        for copy in damaged(&bytes) {
            assert!(verify(&entry, &copy).is_err());
            // A forger gets past the digest, but no id leaves the vocabulary and nothing panics.
            let forged = ShardEntry { sha256: sha256(&copy), bytes: copy.len() as u64, ..entry.clone() };
            if verify(&forged, &copy).is_ok() {
                let words = manifest::words_from_bytes(&copy[64..]);
                let row = rows::decode(&spec, &words, 0, Path::new("s")).unwrap();
                match row.records {
                    Records::TopK { ids, .. } | Records::Sampled { ids, .. } => {
                        assert!(ids.iter().all(|&id| id < spec.real_vocab_size));
                    }
                    Records::Hidden { states } => assert!(states.iter().all(|x| x.is_finite())),
                }
            }
        }
    }
}

#[test]
fn a_damaged_shard_is_found_when_it_is_read() {
    let spec = spec(top_k(3, LogProbType::F32), &[1.0], 40);
    let dir = tempfile::tempdir().unwrap();
    capture(dir.path(), &spec, 40).unwrap();
    let path = dir.path().join("00001.shard");
    let mut bytes = fs::read(&path).unwrap();
    bytes[70] ^= 1;
    fs::write(&path, bytes).unwrap();
    let reader = Reader::open(dir.path()).unwrap();
    reader.read_rows(0, 16).unwrap();
    let error = reader.read_rows(15, 2).unwrap_err().to_string();
    assert!(error.contains("00001.shard") && error.contains("SHA-256"), "{error}");
    assert!(reader.verify().is_err() && reader.alignment().is_err());
    fs::remove_file(&path).unwrap();
    assert!(reader.read_rows(16, 1).unwrap_err().to_string().contains("00001.shard"));
}

#[test]
fn a_damaged_journal_never_panics_and_never_changes_the_result() {
    let spec = spec(top_k(3, LogProbType::F32), &[1.0], 40);
    let (dir, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    capture(whole.path(), &spec, 40).unwrap();
    let (mut writer, _) = Writer::resume_or_create(dir.path(), spec.clone()).unwrap();
    writer.push_rows(&batch(&spec, 0, 33)).unwrap();
    drop(writer);
    let path = dir.path().join(JOURNAL_FILE);
    let bytes = fs::read(&path).unwrap();
    for (i, copy) in damaged(&bytes).enumerate() {
        fs::write(&path, &copy).unwrap();
        let resumed = Journal::resume(dir.path(), &spec).map(drop);
        let head = bytes.iter().position(|&b| b == b'\n').unwrap();
        // A cut after the head is a kill; it resumes. A cut inside it is not one: the head is written whole.
        if i < bytes.len() {
            assert_eq!(resumed.is_ok(), i >= head, "cut to {i} bytes");
        }
    }
    fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
    let (_, next) = Writer::resume_or_create(dir.path(), spec.clone()).unwrap();
    assert_eq!(next, 16);
    capture(dir.path(), &spec, 5).unwrap();
    assert_eq!(contents(dir.path()), contents(whole.path()));
}
