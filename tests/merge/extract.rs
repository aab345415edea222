//! Adapters out of fine-tunes, and back.
#![cfg(feature = "spectrum")]

use super::{difference, open, run};
use crate::common::small_model;
use potstill::formats::{Adapter, Dtype, ModelFolder, TensorSpec, write_safetensors};
use potstill::merge::{ExtractOptions, extract_lora, low_rank};
use potstill::random::SplitMix64;
use potstill::spectrum::singular_values;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

const QUERY: &str = "model.layers.1.self_attn.q_proj.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
const NORM: &str = "model.norm.weight";

fn noise(random: &mut SplitMix64, n: usize) -> Vec<f32> {
    (0..n).map(|_| random.uniform() as f32 - 0.5).collect()
}

fn product(a: &[f32], b: &[f32], m: usize, k: usize, n: usize) -> Vec<f32> {
    let entry = |i: usize, j: usize| (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum::<f64>();
    (0..m * n).map(|at| entry(at / n, at % n) as f32).collect()
}

/// A base, and a fine-tune of it: one weight changed by rank 3, one by full rank, and a norm.
fn pair(dir: &Path) -> (ModelFolder, ModelFolder) {
    let [base, tuned] = ["base", "tuned"].map(|name| dir.join(name));
    for folder in [&base, &tuned] {
        small_model(folder, 16, 2, 4);
    }
    let source = open(&base);
    let mut random = SplitMix64::new(9);
    let changes: BTreeMap<&str, Vec<f32>> = BTreeMap::from([
        (QUERY, product(&noise(&mut random, 16 * 3), &noise(&mut random, 3 * 16), 16, 3, 16)),
        (DOWN, noise(&mut random, 16 * 48)),
        (NORM, noise(&mut random, 16)),
    ]);
    let specs: Vec<TensorSpec> = source
        .tensors
        .names()
        .map(|name| {
            let shape = source.tensors.shape(name).unwrap().to_vec();
            TensorSpec { name: name.into(), dtype: Dtype::F32, shape }
        })
        .collect();
    let fill = async |spec: &TensorSpec| {
        let mut values = source.tensors.read_f32(&spec.name)?;
        if let Some(change) = changes.get(spec.name.as_str()) {
            values.iter_mut().zip(change).for_each(|(x, change)| *x += change);
        }
        Ok(Cow::Owned(values))
    };
    pollster::block_on(write_safetensors(&tuned.join("model.safetensors"), &specs, &BTreeMap::new(), fill)).unwrap();
    (open(&base), open(&tuned))
}

fn extract(
    model: &ModelFolder,
    base: &ModelFolder,
    out: &Path,
    options: &ExtractOptions,
) -> potstill::merge::Extracted {
    pollster::block_on(extract_lora(model, base, out, options, &mut |_, _| ControlFlow::Continue(()))).unwrap()
}

/// What base and adapter are together.
fn rebuilt(dir: &Path, base: &ModelFolder) -> ModelFolder {
    let (adapter, out) = (dir.join("adapter"), dir.join("rebuilt"));
    let model = format!("{}+{}", base.path().display(), adapter.display());
    run(&format!("merge_method: passthrough\nmodels: [{{ model: '{model}' }}]"), &out).unwrap();
    open(&out)
}

#[test]
fn an_adapter_of_full_rank_is_the_fine_tune() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned) = pair(dir.path());
    let extracted = extract(&tuned, &base, &dir.path().join("adapter"), &ExtractOptions::default());
    assert_eq!((extracted.rank, extracted.adapted, extracted.whole), (16, 2, 1));
    assert!((extracted.kept - 1.0).abs() < 1e-9, "{extracted:?}");
    let adapter = Adapter::open(&dir.path().join("adapter")).unwrap();
    assert_eq!(adapter.config.scale(), 1.0);
    assert_eq!(adapter.config.target_modules, ["down_proj", "q_proj"]);
    assert_eq!(adapter.config.modules_to_save, ["model.norm"]);
    let merged = rebuilt(dir.path(), &base);
    for name in tuned.tensors.names() {
        let [own, other] = [&tuned, &merged].map(|model| model.tensors.read_f32(name).unwrap());
        // Sums of 16 products of values below 2 in f32.
        assert!(difference(&own, &other) < 4e-6, "{name}");
    }
}

#[test]
fn an_adapter_of_less_rank_is_as_near_as_any_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned) = pair(dir.path());
    let options = ExtractOptions { rank: 5, ..ExtractOptions::default() };
    let extracted = extract(&tuned, &base, &dir.path().join("adapter"), &options);
    let merged = rebuilt(dir.path(), &base);
    let change = |model: &ModelFolder, name: &str| -> Vec<f32> {
        let [own, other] = [model, &base].map(|model| model.tensors.read_f32(name).unwrap());
        own.iter().zip(&other).map(|(x, b)| x - b).collect()
    };
    // Rank 3 is within 5; of the other the squares of the smaller singular values are lost (Eckart and Young).
    assert!(difference(&change(&tuned, QUERY), &change(&merged, QUERY)) < 2e-6);
    let squares = |values: &[f64]| values.iter().map(|s| s * s).sum::<f64>();
    let singular = singular_values(&change(&tuned, DOWN), 16, 48).unwrap();
    let left: f64 = change(&tuned, DOWN).iter().zip(change(&merged, DOWN)).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    assert!((left / squares(&singular[5..]) - 1.0).abs() < 1e-5, "{left}");
    let (worst, share) = extracted.worst.unwrap();
    assert_eq!((extracted.rank, format!("{worst}.weight").as_str()), (5, DOWN));
    assert!((share - squares(&singular[..5]) / squares(&singular)).abs() < 1e-9);
}

#[test]
fn factors_of_any_shape_and_rank_give_the_matrix() {
    let mut random = SplitMix64::new(11);
    for (rows, columns, rank) in [(1, 7, 1), (7, 1, 1), (9, 4, 2), (4, 9, 3), (30, 30, 6), (5, 300, 5)] {
        let matrix =
            product(&noise(&mut random, rows * rank), &noise(&mut random, rank * columns), rows, rank, columns);
        let found = low_rank(&matrix, rows, columns, 100).unwrap();
        assert_eq!(found.rank, rank, "{rows}x{columns}");
        let again = product(&found.left, &found.right, rows, rank, columns);
        assert!(difference(&matrix, &again) < 2e-6, "{rows}x{columns} of rank {rank}");
    }
    assert_eq!(low_rank(&[0.0; 6], 2, 3, 4).unwrap().rank, 0);
    assert!(low_rank(&[1.0; 5], 2, 3, 1).is_err() && low_rank(&[f32::NAN; 6], 2, 3, 1).is_err());
}

#[test]
fn what_is_left_out_and_what_does_not_fit_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned) = pair(dir.path());
    let options = ExtractOptions { exclude: Some("norm|mlp".parse().unwrap()), ..ExtractOptions::default() };
    let extracted = extract(&tuned, &base, &dir.path().join("adapter"), &options);
    assert_eq!((extracted.rank, extracted.adapted, extracted.whole), (3, 1, 0));
    let failed = |model: &ModelFolder, base: &ModelFolder| {
        let out = dir.path().join("none");
        let options = ExtractOptions::default();
        let mut hear = |_, _| ControlFlow::Continue(());
        let error = pollster::block_on(extract_lora(model, base, &out, &options, &mut hear)).unwrap_err();
        assert!(!out.join("adapter_config.json").exists());
        error.to_string()
    };
    assert!(failed(&base, &base).contains("other weights than its base's: found the same"));
    small_model(&dir.path().join("other"), 32, 2, 4);
    let error = failed(&tuned, &open(&dir.path().join("other")));
    assert!(error.contains("problems"), "{error}");
    assert!(error.contains(QUERY), "{error}");
}

/// As PEFT 0.21 wants it: it looks for the head of a tied model under a name of its own.
#[test]
fn a_changed_embedding_is_stored_for_its_head_too() {
    let dir = tempfile::tempdir().unwrap();
    let [base, tuned] = [4, 5].map(|seed| {
        let folder = dir.path().join(seed.to_string());
        small_model(&folder, 16, 2, seed);
        open(&folder)
    });
    let extracted = extract(&tuned, &base, &dir.path().join("adapter"), &ExtractOptions::default());
    let adapter = Adapter::open(&dir.path().join("adapter")).unwrap();
    assert!(adapter.config.ensure_weight_tying && adapter.config.modules_to_save == ["model.embed_tokens"]);
    let [table, head] = ["model.embed_tokens.weight", "lm_head.weight"].map(Adapter::stored);
    let read = |name: &str| adapter.tensors.read_f32(name).unwrap();
    assert_eq!(read(&table), tuned.tensors.read_f32("model.embed_tokens.weight").unwrap());
    assert_eq!(read(&head), read(&table));
    // Here it is one tensor again.
    assert_eq!((extracted.whole, adapter.contents().unwrap().1.len()), (1, 1));
    let merged = rebuilt(dir.path(), &base);
    assert_eq!(merged.tensors.names().collect::<Vec<_>>(), tuned.tensors.names().collect::<Vec<_>>());
    assert_eq!(merged.tensors.read_f32("model.embed_tokens.weight").unwrap(), read(&table));
}
