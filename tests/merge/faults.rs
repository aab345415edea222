//! Damaged inputs: a clear error, and nothing that loads.

use super::{filled, open, run, tiny};
use crate::common::golden;
use potstill::formats::{TensorSpec, write_safetensors};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A copy of the tiny model `a` whose tensors `change` may alter; none leaves a tensor out.
fn altered(dir: &Path, change: impl Fn(&str, &mut Vec<f32>, &mut Vec<usize>) -> bool) -> PathBuf {
    let (folder, source) = (dir.join("altered"), open(&tiny("a")));
    fs::create_dir_all(&folder).unwrap();
    fs::copy(tiny("a").join("config.json"), folder.join("config.json")).unwrap();
    let (mut specs, mut all) = (Vec::new(), BTreeMap::new());
    for name in source.tensors.names() {
        let mut values = source.tensors.read_f32(name).unwrap();
        let mut shape = source.tensors.shape(name).unwrap().to_vec();
        if change(name, &mut values, &mut shape) {
            specs.push(TensorSpec { name: name.into(), dtype: source.tensors.dtype(name).unwrap(), shape });
            all.insert(name.to_string(), values);
        }
    }
    let path = folder.join("model.safetensors");
    let fill = async |spec: &TensorSpec| Ok(Cow::Borrowed(&all[&spec.name][..]));
    pollster::block_on(write_safetensors(&path, &specs, &BTreeMap::new(), fill)).unwrap();
    folder
}

fn linear(model: &Path) -> String {
    format!(
        "merge_method: linear\nparameters: {{ weight: 1 }}\nmodels: [{{ model: '{{b}}' }}, {{ model: '{}' }}]\n",
        model.display()
    )
}

/// The error of a merge with the altered model, and what is left in the folder.
fn failure(model: &Path) -> (String, PathBuf) {
    let out = model.with_file_name("out");
    let error = run(&filled(&linear(model)), &out).unwrap_err().to_string();
    assert!(!out.join("config.json").exists() && !out.join("model.safetensors").exists());
    assert!(fs::read_dir(&out).map_or(0, |entries| entries.count()) <= 1, "more than the journal is left");
    (error, out)
}

#[test]
fn a_value_that_is_no_number_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let name = "model.layers.1.mlp.up_proj.weight";
    let model = altered(dir.path(), |tensor, values, _| {
        if tensor == name {
            values[37] = f32::NAN;
        }
        true
    });
    let (error, out) = failure(&model);
    for part in ["altered", name, "value 37", "found NaN"] {
        assert!(error.contains(part), "{error}");
    }
    // A repaired model is another input: what was begun with the old one is not gone on with.
    altered(dir.path(), |_, _, _| true);
    let again = run(&filled(&linear(&model)), &out).unwrap_err().to_string();
    assert!(again.contains("another merge, unfinished"), "{again}");
}

#[test]
fn shapes_and_tensors_that_differ_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let model = altered(dir.path(), |tensor, values, shape| {
        if tensor == "model.layers.0.mlp.down_proj.weight" {
            values.truncate(8 * 11);
            shape[1] = 11;
        }
        tensor != "model.norm.weight" && tensor != "model.layers.2.mlp.gate_proj.weight"
    });
    let (error, _) = failure(&model);
    for part in ["2 problems", "[8, 12]", "[8, 11]", "`norm.weight`", "`layers.2.mlp.gate_proj.weight`"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_truncated_file_and_another_architecture_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = altered(dir.path(), |_, _, _| true);
    let path = model.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for length in [0, 5, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        let (error, _) = failure(&model);
        assert!(error.contains("model.safetensors"), "{length}: {error}");
    }
    let (error, _) = failure_of(&golden("families/gpt2"), dir.path());
    assert!(error.contains("`llama`") && error.contains("`gpt2`"), "{error}");
}

fn failure_of(model: &Path, dir: &Path) -> (String, PathBuf) {
    let out = dir.join("other");
    (run(&filled(&linear(model)), &out).unwrap_err().to_string(), out)
}

#[test]
fn what_the_type_cannot_hold_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let yaml = filled(
        "{ merge_method: passthrough, out_dtype: float16, models: [{ model: '{a}', parameters: { scale: 1e6 } }] }",
    );
    let error = run(&yaml, &dir.path().join("out")).unwrap_err().to_string();
    assert!(error.contains("a number that F16 holds") && error.contains("`out_dtype`"), "{error}");
}

#[test]
fn a_folder_in_use_is_left_alone_unless_asked() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("notes.txt"), "mine").unwrap();
    let yaml = filled("{ merge_method: passthrough, models: [{ model: '{a}' }] }");
    let error = run(&yaml, &out).unwrap_err().to_string();
    assert!(error.contains("a new or empty directory"), "{error}");
    let options = potstill::merge::MergeOptions { overwrite: true, ..Default::default() };
    super::run_with(&yaml, &out, &options).unwrap();
    assert_eq!(fs::read_to_string(out.join("notes.txt")).unwrap(), "mine");
    assert_eq!(open(&out).digest(), open(&tiny("a")).digest());
}

#[test]
fn a_model_is_never_written_over_by_its_own_merge() {
    let dir = tempfile::tempdir().unwrap();
    let model = altered(dir.path(), |_, _, _| true);
    let options = potstill::merge::MergeOptions { overwrite: true, ..Default::default() };
    let error = super::run_with(&filled(&linear(&model)), &model, &options).unwrap_err().to_string();
    assert!(error.contains("another folder than those of the models"), "{error}");
    assert_eq!(open(&model).digest(), open(&tiny("a")).digest());
}
