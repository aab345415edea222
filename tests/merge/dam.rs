//! Learned coefficients: what a merge by DAM writes, that it lowers what it says it lowers, that it goes on after a
//! stop, and what it refuses.

use super::{difference, filled, open, run, run_with};
use crate::common::{gpu_names, novel, recipe, small_config, small_model, small_tokenizer};
use potstill::device::{Choice, Device};
use potstill::distill::distill;
use potstill::distill::recipe::SaveDtype;
use potstill::distill::student::write_folder;
use potstill::formats::{ModelFolder, Tensors, write_json};
use potstill::graph::{DType, Graph, Plan, Runner, Store};
use potstill::merge::{MergeConfig, MergeOptions, Stage, merge};
use potstill::models::{self, load_parameters};
use potstill::nn::{BatchInputs, Params};
use potstill::{Error, Result};
use serde_json::{Value, json};
use std::ops::ControlFlow::{Break, Continue};
use std::path::{Path, PathBuf};

const COEFFICIENTS: &str = "dam_coefficients.safetensors";

/// Two fine-tunes, `a` and `b`, of one small model, each of a text of its own: `a.txt`, prose, and `b.txt`, sums.
fn fine_tunes(dir: &Path) {
    small_model(&dir.join("base"), 32, 2, 1);
    novel(dir, "a.txt", 30_000..50_000);
    let sums = |i: usize| format!("{} + {} = {}\n", i % 37, i * 7 % 53, i % 37 + i * 7 % 53);
    std::fs::write(dir.join("b.txt"), (0..1200).map(sums).collect::<String>()).unwrap();
    for name in ["a", "b"] {
        let at = |name: &str| dir.join(name).display().to_string();
        let recipe = recipe(&format!(
            "{{ output_path: {}, device: cpu, sequence_length: 32, model: {}, dataset: {{ train: {} }}, \
             training_args: {{ max_steps: 60, learning_rate: 1e-2, per_device_train_batch_size: 4 }} }}",
            at(name),
            at("base"),
            at(&format!("{name}.txt"))
        ));
        distill(&recipe, false, &mut |_| Continue(())).unwrap();
    }
}

/// A merge of both by what `parameters` say.
fn both(dir: &Path, parameters: &str) -> String {
    let model = |name: &str| {
        let at = |name: &str| dir.join(name).display().to_string();
        format!("- {{ model: {}, parameters: {{ data: {} }} }}\n", at(name), at(&format!("{name}.txt")))
    };
    format!("merge_method: dam\nparameters: {{ {parameters} }}\nmodels:\n{}{}", model("a"), model("b"))
}

fn values(folder: &Path, name: &str) -> Vec<f32> {
    open(folder).tensors.read_f32(name).unwrap()
}

fn coefficients(folder: &Path) -> Tensors {
    Tensors::open_safetensors(&[folder.join(COEFFICIENTS)]).unwrap()
}

/// The mean over the rows of KL(teacher || student) at temperature 1, from whole logits: another way than the merge's.
fn divergence(teacher: &Path, student: &Path, tokens: &[u32]) -> f64 {
    let [p, q] = [teacher, student].map(|folder| logits(folder, tokens));
    let log_softmax = |row: &[f32]| {
        let most = row.iter().fold(f64::MIN, |m, z| m.max(f64::from(*z)));
        let sum: f64 = row.iter().map(|z| (f64::from(*z) - most).exp()).sum();
        row.iter().map(|z| f64::from(*z) - most - sum.ln()).collect::<Vec<f64>>()
    };
    let rows = p.chunks(340).zip(q.chunks(340)).map(|(p, q)| {
        let (p, q) = (log_softmax(p), log_softmax(q));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    });
    rows.sum::<f64>() / tokens.len() as f64
}

fn logits(folder: &Path, tokens: &[u32]) -> Vec<f32> {
    let (folder, n) = (open(folder), tokens.len());
    let decoder = models::from_config(folder.path(), &folder.config).unwrap();
    let mut store = Store::new(&Device::cpu());
    decoder.allocate(&mut store, "", n).unwrap();
    load_parameters(&decoder, &store, "", &folder.tensors, None).unwrap();
    let mut g = Graph::new();
    let inputs = BatchInputs::declare(&mut g, "t", n, n, false);
    let hidden = decoder.forward(&mut g, &Params::frozen(""), &inputs, false).unwrap();
    let logits = decoder.logits(&mut g, &Params::frozen(""), hidden);
    g.output("logits", logits);
    let seen: Vec<[u32; 2]> = (0..n as u32).map(|row| [0, row + 1]).collect();
    for (name, shape) in [("tokens", [n, 1]), ("positions", [n, 1]), ("query_range", [n, 2])] {
        store.add(&format!("t.{name}"), shape, DType::U32).unwrap();
    }
    store.write("t.tokens", tokens).unwrap();
    store.write("t.positions", &(0..n as u32).collect::<Vec<u32>>()).unwrap();
    store.write("t.query_range", &seen).unwrap();
    let mut runner = Runner::new(Plan::new(&g).unwrap(), &store, &mut Vec::new()).unwrap();
    runner.run().unwrap();
    pollster::block_on(runner.read_f32("logits")).unwrap()
}

#[test]
fn two_fine_tunes_come_nearer_to_both_than_their_average() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fine_tunes(dir);
    let out = dir.join("dam");
    let keys = "max_steps: 60, learning_rate: 0.02, sequence_length: 32, per_device_train_batch_size: 4, \
                temperature: 1, holdout: 0.1";
    let merged = run(&both(dir, keys), &out).unwrap();
    let average = dir.join("average");
    let model = |name: &str| format!("{{ model: {}, parameters: {{ weight: 0.5 }} }}", dir.join(name).display());
    run(&format!("{{ merge_method: linear, models: [{}, {}] }}", model("a"), model("b")), &average).unwrap();
    // What it says of itself: the plain average before, less of it now, in the sum of both.
    let learned = merged.learned.unwrap();
    assert_eq!((learned.steps, learned.models.len()), (60, 2));
    let sum = |of: fn(&potstill::merge::Divergence) -> Option<f64>| learned.models.iter().filter_map(of).sum::<f64>();
    let (before, after) = (sum(|d| d.before), sum(|d| d.after));
    assert!(after < 0.8 * before, "{after} after {before}: {learned:?}");
    // And on text that neither has seen, measured in another way.
    let prose = std::fs::read_to_string(novel(dir, "new.txt", 60_000..60_400)).unwrap();
    let sums: String =
        (1300..1340).map(|i| format!("{} + {} = {}\n", i % 37, i * 7 % 53, i % 37 + i * 7 % 53)).collect();
    let texts = [prose, sums].map(|text| small_tokenizer().encode(&text, false).unwrap());
    let of =
        |folder: &Path| ["a", "b"].iter().zip(&texts).map(|(m, t)| divergence(&dir.join(m), folder, t)).sum::<f64>();
    let (linear, dam) = (of(&average), of(&out));
    assert!(dam < 0.8 * linear, "{dam} against {linear} of the plain average");
    // What it wrote is what the coefficients say.
    let found = coefficients(&out);
    let sources = ["a", "b"].map(|name| dir.join(name));
    let mut seen = 0;
    for name in open(&out).tensors.names() {
        let parts = sources.each_ref().map(|folder| values(folder, name));
        let expected: Vec<f32> = match found.contains(name) {
            false => parts[0].iter().zip(&parts[1]).map(|(a, b)| 0.5 * a + 0.5 * b).collect(),
            true => {
                seen += 1;
                let c = found.read_f32(name).unwrap();
                let columns = c.len() / 2;
                let at = |i: usize| c[i % columns] * parts[0][i] + c[columns + i % columns] * parts[1][i];
                (0..parts[0].len()).map(at).collect()
            }
        };
        let most = difference(&values(&out, name), &expected);
        assert!(most <= 1e-6, "{name}: {most}");
    }
    assert_eq!(seen, 2 * 7, "the linear weights of two blocks; the embedding, its head and the norms are averaged");
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("## Learned coefficients") && card.contains("60 steps") && !out.join("learning").exists());
}

#[test]
fn one_model_keeps_its_coefficients_at_one_and_its_weights() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    small_model(&dir.join("a"), 16, 2, 1);
    novel(dir, "a.txt", 30_000..34_000);
    let (model, text, out) = (dir.join("a"), dir.join("a.txt"), dir.join("out"));
    let yaml = format!(
        "{{ merge_method: dam, parameters: {{ max_steps: 3, sequence_length: 16, embeddings: true, norms: true }}, \
         models: [{{ model: {}, parameters: {{ data: [{}] }} }}] }}",
        model.display(),
        text.display()
    );
    let learned = run(&yaml, &out).unwrap().learned.unwrap();
    assert_eq!([learned.models[0].before, learned.models[0].after], [Some(0.0); 2]);
    let found = coefficients(&out);
    for name in open(&model).tensors.names() {
        assert!(found.read_f32(name).unwrap().iter().all(|c| *c == 1.0), "{name}");
        assert_eq!(values(&out, name), values(&model, name), "{name}");
    }
}

/// A GPT-2: matrices stored as [in, out], biases, learned positions.
fn gpt2(folder: &Path, seed: u64) {
    let config = json!({
        "model_type": "gpt2", "vocab_size": 340, "n_embd": 12, "n_inner": 20, "n_layer": 2, "n_head": 3,
        "n_positions": 32, "initializer_range": 0.3, "eos_token_id": 0, "bos_token_id": 0,
    });
    let decoder = models::from_config(folder, &config).unwrap();
    let mut store = Store::new(&Device::cpu());
    decoder.allocate(&mut store, "", 1).unwrap();
    models::random_parameters(&decoder, &store, "", seed).unwrap();
    let tokenizer = small_tokenizer();
    let dtype = SaveDtype::Float32;
    pollster::block_on(write_folder(folder, &decoder, &store, "", Some(&tokenizer), &Value::Null, dtype)).unwrap();
}

#[test]
fn transposed_weights_are_written_column_by_column_and_learned_tensors_are_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    gpt2(&dir.join("a"), 1);
    gpt2(&dir.join("b"), 2);
    novel(dir, "a.txt", 30_000..33_000);
    novel(dir, "b.txt", 70_000..73_000);
    let out = dir.join("out");
    let keys = "max_steps: 4, sequence_length: 16, learning_rate: 0.05, norms: true, overlap: 0.01, holdout: 0";
    let learned = run(&both(dir, keys), &out).unwrap().learned.unwrap();
    assert!(learned.models.iter().all(|model| model.before.is_none() && model.after.is_none()));
    let found = coefficients(&out);
    assert!(!found.contains("transformer.wte.weight") && found.contains("transformer.ln_f.bias"));
    assert_eq!(found.shape("transformer.h.0.mlp.c_fc.weight").unwrap(), [2, 12]);
    assert_eq!(found.shape("transformer.h.0.mlp.c_fc.bias").unwrap(), [2, 1]);
    for (name, rows, cols) in
        [("mlp.c_fc.weight", 12, 20), ("mlp.c_proj.weight", 20, 12), ("attn.c_attn.weight", 12, 36)]
    {
        let name = format!("transformer.h.1.{name}");
        let c = found.read_f32(&name).unwrap();
        assert!(c.iter().any(|c| (c - 0.5).abs() > 0.01), "{name} was not learned");
        let [a, b] = ["a", "b"].map(|model| values(&dir.join(model), &name));
        // [in, out]: the inputs are the rows.
        let expected: Vec<f32> = (0..rows * cols).map(|i| c[i / cols] * a[i] + c[rows + i / cols] * b[i]).collect();
        assert!(difference(&values(&out, &name), &expected) <= 1e-6, "{name}");
    }
}

fn files(folder: &Path) -> [Vec<u8>; 2] {
    [COEFFICIENTS, "model.safetensors"].map(|name| std::fs::read(folder.join(name)).unwrap())
}

/// Merges until `stop` says so of a step's number.
fn stopped(yaml: &str, out: &Path, stop: impl Fn(u64) -> bool) -> Result<()> {
    let documents = MergeConfig::parse(yaml, Path::new("merge.yaml"))?;
    let merged = merge(&documents, out, &MergeOptions::default(), &mut |progress| match progress.stage {
        Stage::Learning { .. } if stop(progress.done) => Break(()),
        _ => Continue(()),
    });
    merged.map(|_| ())
}

#[test]
fn learning_that_stops_goes_on_and_ends_bit_for_bit_where_an_unbroken_one_ends() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (name, seed) in [("a", 1), ("b", 2)] {
        small_model(&dir.join(name), 16, 2, seed);
        novel(dir, &format!("{name}.txt"), 20_000 * seed as usize..20_000 * seed as usize + 3_000);
    }
    let yaml = both(dir, "max_steps: 9, sequence_length: 16, learning_rate: 0.01, save_steps: 4");
    let (whole, broken) = (dir.join("whole"), dir.join("broken"));
    let expected = run(&yaml, &whole).unwrap().learned;
    // Stopped twice by the user; what is left is no model.
    for at in [3, 6] {
        assert!(matches!(stopped(&yaml, &broken, |step| step == at), Err(Error::Cancelled)));
        assert!(broken.join(format!("learning/checkpoint-{at}")).is_dir() && ModelFolder::open(&broken).is_err());
    }
    // Another text under the same name is another merge.
    let text = std::fs::read(dir.join("b.txt")).unwrap();
    std::fs::write(dir.join("b.txt"), "something else").unwrap();
    let error = run(&yaml, &broken).unwrap_err().to_string();
    assert!(error.contains("another merge, unfinished"), "{error}");
    std::fs::write(dir.join("b.txt"), &text).unwrap();
    // The file's date is another one now: what was begun is begun again when it is asked for.
    let again = MergeOptions { overwrite: true, ..MergeOptions::default() };
    assert_eq!(run_with(&yaml, &broken, &again).unwrap().learned, expected);
    assert!(files(&whole)[1] == files(&broken)[1]);
    let resumed = dir.join("resumed");
    assert!(stopped(&yaml, &resumed, |step| step == 6).is_err());
    assert_eq!(run(&yaml, &resumed).unwrap().learned, expected);
    assert!(files(&resumed) == files(&broken), "the resumed merge's files differ");
}

fn refused(yaml: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let error = run(&filled(yaml), &out).unwrap_err();
    assert!(!out.join("config.json").exists() && !out.join(COEFFICIENTS).exists());
    error.to_string()
}

#[test]
fn what_cannot_be_learned_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    small_model(&dir.join("a"), 16, 2, 1);
    small_model(&dir.join("b"), 16, 2, 2);
    novel(dir, "a.txt", 30_000..33_000);
    novel(dir, "b.txt", 40_000..43_000);
    let plain =
        |keys: &str, model: &str| format!("{{ merge_method: dam, parameters: {{ {keys} }}, models: [{model}] }}");
    let a =
        format!("{{ model: {}, parameters: {{ data: {} }} }}", dir.join("a").display(), dir.join("a.txt").display());
    let error = refused(&plain(
        "learning_rte: 1, temperature: 0, max_steps: 1.5, holdout: 1, overlap: -1, norms: 1",
        "{ model: '{a}', parameters: { weight: 1 } }",
    ));
    for part in ["did you mean `learning_rate`?", "`models[0].parameters.weight`"] {
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
    let error = refused(&plain("temperature: 0, max_steps: 1.5, holdout: 1, overlap: -1, norms: 1", &a));
    for part in ["5 problems", "`parameters.temperature`: expected a positive number", "parameters.norms"] {
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
    let error = refused(&plain("max_steps: 3, num_train_epochs: 1", &a));
    assert!(error.contains("expected this or `max_steps`: found both"), "{error}");
    let error = refused("{ merge_method: dam, models: [{ model: '{a}' }, { model: '{b}' }] }");
    assert!(error.contains("expected a model with `parameters: { data: FILE }`: found none"), "{error}");
    let error = refused(&format!("{{ merge_method: dam, tokenizer_source: union, models: [{a}] }}"));
    assert!(error.contains("`tokenizer_source`: expected no such key with `merge_method: dam`"), "{error}");
    let error = refused(&format!("{{ merge_method: dam, slices: [{{ sources: [{a}] }}] }}"));
    assert!(error.contains("`slices`: expected no such key with `merge_method: dam`"), "{error}");
    let error = refused(&plain("", &a.replace("a.txt", "none.txt")));
    assert!(error.contains("none.txt"), "{error}");
    let error = refused(&plain("sequence_length: 4096", &a));
    assert!(error.contains("the text of") && error.contains("held-out split"), "{error}");
    // Networks that differ in more than their weights, and tokenizers.
    let b = a.replace("/a,", "/b,").replace("a.txt", "b.txt");
    let config = dir.join("b/config.json");
    let mut other = small_config(16, 2);
    other["vocab_size"] = json!(339);
    write_json(&config, &other).unwrap();
    let error = refused(&plain("", &format!("{a}, {b}")));
    assert!(error.contains("expected the same network as the others have"), "{error}");
    write_json(&config, &small_config(16, 2)).unwrap();
    let tokenizer = dir.join("b/tokenizer.json");
    let text = std::fs::read_to_string(&tokenizer).unwrap().replace("<|end|>", "<|fin|>");
    std::fs::write(&tokenizer, text).unwrap();
    let error = refused(&plain("", &format!("{a}, {b}")));
    assert!(error.contains("tokenizer: expected the same as the others have"), "{error}");
}

#[test]
fn a_gpu_learns_what_the_cpu_learns() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (name, seed) in [("a", 1), ("b", 2)] {
        small_model(&dir.join(name), 16, 2, seed);
        novel(dir, &format!("{name}.txt"), 20_000 * seed as usize..20_000 * seed as usize + 2_000);
    }
    let keys = "max_steps: 3, sequence_length: 16, learning_rate: 0.01, overlap: 0.001, embeddings: true, norms: true";
    let yaml = both(dir, keys);
    let cpu = dir.join("cpu");
    let expected = run(&yaml, &cpu).unwrap().learned.unwrap();
    for (i, name) in gpu_names().into_iter().enumerate() {
        let out: PathBuf = dir.join(format!("gpu{i}"));
        let options = MergeOptions { device: Choice::Gpu(name.clone()), ..MergeOptions::default() };
        let found = run_with(&yaml, &out, &options).unwrap().learned.unwrap();
        for (found, expected) in found.models.iter().zip(&expected.models) {
            let pairs = [(found.before, expected.before), (found.after, expected.after)];
            for (found, expected) in pairs.map(|(f, e)| (f.unwrap(), e.unwrap())) {
                // Sums of some thousand f32 terms; after three steps of Adam also what is said below.
                assert!((found - expected).abs() <= 1e-3 * expected, "{name}: {found}, not {expected}");
            }
        }
        let (found, expected) = (coefficients(&out), coefficients(&cpu));
        let (mut apart, mut moved) = (0.0, 0.0);
        for name in expected.names() {
            for (f, e) in found.read_f32(name).unwrap().iter().zip(expected.read_f32(name).unwrap()) {
                apart += f64::from(f - e).powi(2);
                moved += f64::from(e - 0.5).powi(2);
            }
        }
        // Adam's first steps are as long for a gradient of 1e-9 as for one of 1, and below a hundred-thousandth of the
        // largest even its sign is rounding: so it is for about as small a share of the coefficients, whose root this
        // is.
        assert!((apart / moved).sqrt() < 1e-2, "{name}: {apart} of {moved}");
    }
}
