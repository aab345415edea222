//! Scores of layers against numpy, torch and published numbers; the choice among them; Spectrum's files; and a student
//! trained on a list.
#![cfg(all(feature = "spectrum", feature = "cli"))]

use crate::common::{golden, novel, recipe, small_model, smollm2};
use potstill::distill::distill;
use potstill::formats::{Dtype, ModelFolder, TensorSpec, Tensors, write_safetensors};
use potstill::random::SplitMix64;
use potstill::spectrum::{
    By, Choice, Layers, ReportData, Results, Rounding, Scored, bars, choose, html, modules, mp_edge, mp_median, scan,
    score, singular_values, threshold, unscored, wanted,
};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow::{Break, Continue};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The entries of `golden/spectrum.py`: sums of four numbers of SplitMix64.
fn entries(seed: u64) -> impl FnMut() -> f64 {
    let mut random = SplitMix64::new(seed);
    move || (0..4).map(|_| (random.bits() >> 40) as f64 / f64::from(1 << 23) - 1.0).sum()
}

fn matrix(rows: usize, columns: usize, spiked: bool, seed: u64) -> Vec<f32> {
    let mut entry = entries(seed);
    let size = (rows * columns) as f64;
    let mut value = |i: usize| match spiked {
        true => entry() * 0.25 + ((i / columns + 1) * (i % columns + 1)) as f64 / size,
        false => entry(),
    };
    (0..rows * columns).map(|i| value(i) as f32).collect()
}

fn near(found: f64, expected: f64, relative: f64, what: &str) {
    assert!((found - expected).abs() <= relative * expected.abs() + 1e-300, "{what}: {found}, expected {expected}");
}

fn golden_json() -> Value {
    serde_json::from_slice(&std::fs::read(golden("spectrum.json")).unwrap()).unwrap()
}

#[test]
fn a_worked_example_has_its_known_values() {
    let value = |i: usize, j: usize| (0.1 * (i * j) as f64).sin() + 0.25 * (7.0 * i as f64 + 13.0 * j as f64).cos();
    let values: Vec<f32> = (1..=8).flat_map(|i| (1..=12).map(move |j| value(i, j) as f32)).collect();
    let s = singular_values(&values, 8, 12).unwrap();
    let known = [4.334805, 3.940209, 3.755218, 1.742192, 0.207244, 0.031831, 0.004247, 0.000056];
    // Half the last digit printed, and 1e-7 of the largest for the f32 arithmetic they were found with.
    for (found, known) in s.iter().zip(known) {
        assert!((found - known).abs() < 5e-7 + 4.4e-7, "{s:?}");
    }
    // 5.085289 is more than every singular value: a strongly structured matrix has no signal by this score.
    assert!((threshold(&s, 8, 12) - 5.085289).abs() < 2e-6);
    assert_eq!(score(&s, 8, 12).snr, 0.0);
}

#[test]
fn scores_of_awkward_shapes_are_those_of_numpy() {
    for case in golden_json()["cases"].as_array().unwrap() {
        let number = |key: &str| case[key].as_f64().unwrap();
        let (rows, columns) = (number("rows") as usize, number("columns") as usize);
        let what = format!("{rows} x {columns} {}", case["content"]);
        let values = matrix(rows, columns, case["content"] == "spiked", number("seed") as u64);
        let s = singular_values(&values, rows, columns).unwrap();
        assert_eq!(s.len(), rows.min(columns));
        assert!(s.windows(2).all(|pair| pair[0] >= pair[1]), "{what}");
        // sqrt(eigenvalue): an error of about n eps s_max^2 / s, with n = 600 terms and s > 1e-3 s_max.
        let step = (s.len() / 8).max(1);
        for (i, known) in case["singular"].as_array().unwrap().iter().enumerate() {
            near(s[i * step], known.as_f64().unwrap(), 1e-9, &what);
        }
        near(threshold(&s, rows, columns), number("threshold"), 1e-8, &what);
        near(mp_median(rows.min(columns) as f64 / rows.max(columns) as f64), number("mp_median"), 1e-6, &what);
        near(mp_edge(&s, rows, columns), number("mp_edge"), 1e-6, &what);
        let found = score(&s, rows, columns);
        near(found.snr, number("snr"), 1e-8, &what);
        near(found.mp_snr, number("mp_snr"), 1e-8, &what);
    }
}

#[test]
fn the_median_of_the_marchenko_pastur_law_is_the_published_one() {
    // Gavish and Donoho's table: 2.858 = (4 / sqrt 3) / sqrt(median) for square matrices.
    assert!((4.0 / 3f64.sqrt() / mp_median(1.0).sqrt() - 2.858).abs() < 5e-4);
    // A long, thin noise matrix has all its singular values in one place.
    assert!((mp_median(1e-9) - 1.0).abs() < 1e-4);
}

#[test]
fn noise_alone_has_signal_by_spectrums_score_and_none_by_the_true_edge() {
    let s = singular_values(&matrix(192, 576, false, 5), 192, 576).unwrap();
    let above = |border: f64| s.iter().filter(|s| **s > border).count();
    // merging.md's measurement of pure noise of this shape: 175 of 192.
    assert!((165..=185).contains(&above(threshold(&s, 192, 576))), "{}", above(threshold(&s, 192, 576)));
    // The edge is a limit: a value or two of a finite matrix may lie a little above.
    assert!(above(mp_edge(&s, 192, 576)) <= 3);
    assert!(score(&s, 192, 576).mp_snr < 0.03 * score(&s, 192, 576).snr);
}

#[test]
fn every_matrix_has_a_finite_score() {
    let of = |values: &[f32], rows, columns| {
        let score = score(&singular_values(values, rows, columns).unwrap(), rows, columns);
        assert!(score.snr.is_finite() && score.mp_snr.is_finite(), "{rows} x {columns}: {score:?}");
        score
    };
    assert_eq!(of(&[0.0; 12], 3, 4).snr, 0.0);
    // One value, or others that are exactly zero: all is signal, and the noise is 1.
    assert!((of(&[3.0, 4.0], 1, 2).snr - 1.0).abs() < 1e-12);
    assert!((of(&[2.0; 600], 20, 30).snr - 1.0).abs() < 1e-12);
    let identity: Vec<f32> = (0..49).map(|i| f32::from(u8::from(i % 8 == 0))).collect();
    assert!((of(&identity, 7, 7).snr - 7.0).abs() < 1e-12);
    let twelve = matrix(9, 12, true, 3);
    for scale in [1e-30f32, 1e30] {
        let scaled: Vec<f32> = twelve.iter().map(|value| value * scale).collect();
        of(&scaled, 9, 12);
    }
    of(&[f32::MAX; 6], 2, 3);
    of(&[f32::from_bits(1); 6], 2, 3);
    assert!(singular_values(&[], 0, 3).is_err() && singular_values(&[1.0; 5], 2, 3).is_err());
    assert!(singular_values(&[1.0, f32::NAN], 1, 2).is_err());
}

/// Names, shapes and values as a safetensors file.
fn file(path: &Path, tensors: &[(&str, Vec<usize>, Vec<f32>)]) -> Tensors {
    let spec = |(name, shape, _): &(&str, Vec<usize>, Vec<f32>)| TensorSpec {
        name: name.to_string(),
        dtype: Dtype::F32,
        shape: shape.clone(),
    };
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    let values = async |spec: &TensorSpec| {
        Ok(Cow::Owned(tensors.iter().find(|(name, _, _)| *name == spec.name).unwrap().2.clone()))
    };
    pollster::block_on(write_safetensors(path, &specs, &BTreeMap::new(), values)).unwrap();
    Tensors::open_safetensors(&[path.to_path_buf()]).unwrap()
}

#[test]
fn types_are_found_and_chosen_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let ones = |shape: &[usize]| vec![1.0; shape.iter().product()];
    let names = [
        ("h.0.attn.c_attn.weight", vec![4, 12]),
        ("h.0.attn.c_attn.bias", vec![12]),
        ("h.10.attn.c_attn.weight", vec![4, 12]),
        ("h.2.attn.c_attn.weight", vec![4, 12]),
        ("h.0.mlp.c_fc.weight", vec![4, 16]),
        ("h.0.ln_1.weight", vec![4]),
        ("h.0.mlp.experts", vec![2, 4, 4]),
        ("wte.weight", vec![6, 4]),
    ];
    let tensors = names.map(|(name, shape)| (name, shape.clone(), ones(&shape)));
    let tensors = file(&dir.path().join("a.safetensors"), &tensors);
    let listed = |layers: &Layers| {
        let wanted = wanted(modules(&tensors, None).unwrap(), layers)?;
        Ok::<_, potstill::Error>(wanted.into_iter().map(|module| module.name).collect::<Vec<_>>())
    };
    let linear = ["h.0.attn.c_attn", "h.2.attn.c_attn", "h.10.attn.c_attn", "h.0.mlp.c_fc"];
    assert_eq!(listed(&Layers::Linear).unwrap(), linear);
    let named = |names: &[&str]| Layers::Named(names.iter().map(|name| name.to_string()).collect());
    assert_eq!(listed(&named(&["attn"])).unwrap(), linear[..3]);
    assert_eq!(listed(&named(&["c_fc", "ln_1"])).unwrap(), ["h.0.ln_1", "h.0.mlp.c_fc"]);
    assert_eq!(listed(&Layers::All).unwrap().len(), 6);
    let error = listed(&named(&["c_fcc", "attn", "zebra"])).unwrap_err().to_string();
    let expected = "types of attn.c_attn, ln_1, mlp.c_fc, wte: found";
    assert!(error.contains(&format!("1. --layers: expected {expected} `c_fcc`; did you mean `c_fc`?")), "{error}");
    assert!(error.contains("`zebra`; `all` takes every type"), "{error}");
    assert_eq!(unscored(&tensors).unwrap(), ["h.0.mlp.experts"]);
    // With the configuration the names are those of the trained model.
    let config = serde_json::from_str(include_str!("golden/families/gpt2/config.json")).unwrap();
    let all = modules(&tensors, Some(&config)).unwrap();
    assert!(all.iter().all(|module| module.name.starts_with("transformer.")), "{all:?}");
}

#[test]
fn tensors_that_have_no_score_are_refused_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let values = |bad: Option<f32>| {
        let mut values = matrix(6, 5, false, 1);
        values[7] = bad.unwrap_or(values[7]);
        values
    };
    let names = ["m.0.a.weight", "m.1.a.weight", "m.2.a.weight"];
    let bad = [Some(f32::NAN), None, Some(f32::INFINITY)];
    let tensors: Vec<_> = names.into_iter().zip(bad).map(|(name, bad)| (name, vec![6, 5], values(bad))).collect();
    let tensors = file(&path, &tensors);
    let modules = modules(&tensors, None).unwrap();
    let error = scan(&tensors, &modules, &mut |_| Continue(())).unwrap_err().to_string();
    for found in ["m.0.a.weight`: expected finite numbers: found NaN at value 7", "m.2.a.weight`: expected finite"] {
        assert!(error.starts_with("2 problems") && error.contains(found), "{error}");
    }
    // Integers, as quantisers write them.
    let header = json!({"m.0.a.weight": {"dtype": "I32", "shape": [2, 1], "data_offsets": [0, 8]},
        "m.1.a.weight": {"dtype": "I32", "shape": [2, 1], "data_offsets": [8, 16]}});
    let header = header.to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 16]].concat();
    std::fs::write(&path, bytes).unwrap();
    let tensors = Tensors::open_safetensors(&[path]).unwrap();
    let modules = potstill::spectrum::modules(&tensors, None).unwrap();
    let error = scan(&tensors, &modules, &mut |_| Continue(())).unwrap_err().to_string();
    assert!(error.contains("`m.0.a.weight` and 1 more: expected F32, F16, BF16"), "{error}");
}

#[test]
fn a_real_model_has_spectrums_scores() {
    let model = ModelFolder::open(smollm2()).unwrap();
    let modules = wanted(modules(&model.tensors, Some(&model.config)).unwrap(), &Layers::Linear).unwrap();
    let mut last = 0;
    let results = scan(&model.tensors, &modules, &mut |progress| {
        assert_eq!(progress.total, 210);
        last = progress.done;
        Continue(())
    });
    let (results, golden) = (results.unwrap(), golden_json());
    let known = golden["smollm2"].as_object().unwrap();
    assert_eq!((results.modules.len(), known.len(), last), (210, 210, 210));
    for Scored { name, snr, mp_snr, .. } in &results.modules {
        near(*snr, known[name].as_f64().unwrap(), 1e-4, name);
        assert!(mp_snr.is_some_and(|score| score.is_finite() && score >= 0.0), "{name}: {mp_snr:?}");
    }
    // What was asked to stop does.
    let stopped = scan(&model.tensors, &modules, &mut |_| Break(()));
    assert!(matches!(stopped, Err(potstill::Error::Cancelled)));
}

/// The MLP of Llama-3.1-Storm-8B as Spectrum's repository has it, in the order of its list.
const STORM: [(u32, f64); 8] = [
    (0, 10.714550971984863),
    (1, 10.014122009277344),
    (30, 6.295013904571533),
    (2, 6.056440830230713),
    (21, 5.692781448364258),
    (29, 5.629512786865234),
    (22, 5.589854717254639),
    (5, 5.1289567947387695),
];

fn published() -> [String; 2] {
    let down: Vec<String> = STORM.iter().map(|(i, snr)| format!("\"model.layers.{i}.mlp.down_proj\": {snr}")).collect();
    let norms: Vec<String> = (0..8).map(|i| format!("\"model.layers.{i}.input_layernorm\": Infinity")).collect();
    let sorted = format!(
        "{{\n \"input_layernorm\": {{{}}},\n \"lm_head\": {{\"lm_head\": Infinity}},\n \"mlp.down_proj\": {{{}}}\n}}",
        norms.join(", "),
        down.join(", ")
    );
    let entry = |name: &str, kind: &str, snr: &str| format!("\"{name}\": {{\"snr\": {snr}, \"type\": \"{kind}\"}}");
    let mut plain: Vec<String> = (0..8)
        .map(|i| entry(&format!("model.layers.{i}.input_layernorm"), "input_layernorm", "Infinity"))
        .chain([entry("lm_head", "lm_head", "Infinity")])
        .collect();
    let mut by_block = STORM;
    by_block.sort_by_key(|(i, _)| *i);
    let down = by_block.iter().map(|(i, snr)| (format!("model.layers.{i}.mlp.down_proj"), snr.to_string()));
    plain.extend(down.map(|(name, snr)| entry(&name, "mlp.down_proj", &snr)));
    [format!("{{{}}}", plain.join(",\n")), sorted]
}

fn parse(text: &str) -> potstill::Result<Results> {
    Results::parse(text, Path::new("snr.json"))
}

fn by_snr(top_percent: f64, rounding: Rounding) -> Choice {
    Choice { top_percent, by: By::Snr, rounding }
}

#[test]
fn both_published_layouts_give_spectrums_list() {
    // As in the repository's list of this model, with the layers here.
    let expected = "unfrozen_parameters:\n- ^lm_head.weight$\n- ^model.embed_tokens.weight$\n# input_layernorm layers\n\
        - model.layers.0.input_layernorm\n- model.layers.1.input_layernorm\n- model.layers.2.input_layernorm\n\
        - model.layers.3.input_layernorm\n# lm_head layers\n# mlp.down_proj layers\n- model.layers.0.mlp.down_proj\n\
        - model.layers.1.mlp.down_proj\n- model.layers.30.mlp.down_proj\n- model.layers.2.mlp.down_proj\n";
    for text in published() {
        let results = parse(&text).unwrap();
        assert_eq!(choose(&results, &by_snr(50.0, Rounding::Down)).unwrap().yaml(), expected);
        let counts = |percent, rounding| {
            let chosen = choose(&results, &by_snr(percent, rounding)).unwrap();
            chosen.kinds.iter().map(|kind| kind.chosen).collect::<Vec<_>>()
        };
        assert_eq!(counts(50.0, Rounding::Up), [4, 1, 4]);
        assert_eq!(counts(26.0, Rounding::Up), [3, 1, 3]);
        assert_eq!(counts(26.0, Rounding::Down), [2, 0, 2]);
        assert_eq!(counts(0.1, Rounding::Up), [1, 1, 1]);
        assert_eq!(counts(100.0, Rounding::Down), [8, 1, 8]);
        // Infinite scores reach the top of their bars, and the page has no numbers that are none.
        let chosen = choose(&results, &by_snr(50.0, Rounding::Up)).unwrap();
        let page = html(&ReportData { title: "<storm>".into(), ..ReportData::default() }, &chosen).unwrap();
        assert!(page.contains("&lt;storm&gt;") && !page.contains("<storm>"));
        assert_eq!((page.matches("<svg ").count(), page.matches("<rect ").count()), (3, 17));
        assert_eq!(page.matches("class=\"bar chosen\"").count(), 9);
        for none in ["NaN", "inf\"", "http", "<script", "undefined"] {
            assert!(!page.contains(none), "{none}");
        }
        let only = results.clone().only(&Layers::Named(vec!["mlp".into()])).unwrap();
        assert_eq!(only.modules.len(), 8);
        let error = results.clone().only(&Layers::Named(vec!["mpl".into()])).unwrap_err().to_string();
        assert!(error.contains("--layers: expected types of input_layernorm, lm_head, mlp.down_proj"), "{error}");
        let error = choose(&results, &Choice { by: By::Mp, ..by_snr(50.0, Rounding::Up) }).unwrap_err().to_string();
        assert!(error.contains("--score mp: expected `mp_snr` of every module"), "{error}");
        let error = choose(&results, &by_snr(1.0, Rounding::Down)).unwrap_err().to_string();
        assert!(error.contains("enough for one module"), "{error}");
    }
    for percent in [0.0, -1.0, 100.5, f64::NAN] {
        assert!(choose(&parse(&published()[0]).unwrap(), &by_snr(percent, Rounding::Up)).is_err());
    }
}

#[test]
fn what_failed_in_spectrum_comes_last_and_other_families_have_their_embeddings() {
    let results = parse(
        r#"{"transformer.h.0.a": {"snr": NaN, "type": "a"}, "transformer.h.1.a": {"snr": 0.5, "type": "a"},
            "transformer.h.2.a": {"snr": -Infinity, "type": "a"}}"#,
    );
    let chosen = choose(&results.unwrap(), &by_snr(67.0, Rounding::Up)).unwrap();
    assert_eq!(chosen.names().collect::<Vec<_>>(), ["transformer.h.1.a", "transformer.h.2.a", "transformer.h.0.a"]);
    assert!(
        chosen.yaml().starts_with("unfrozen_parameters:\n- ^lm_head.weight$\n- ^transformer.wte.weight$\n# a layers")
    );
}

#[test]
fn files_that_are_no_scores_are_refused_with_what_is_wrong() {
    for (text, message) in [
        ("{}", "expected scores of modules, as Spectrum writes them: found none"),
        ("[]", "found no object"),
        ("", "EOF"),
        (r#"{"a": {"snr": "x", "type": "t"}}"#, "`a`.`snr`: expected a score of a module"),
        (r#"{"a": {"snr": 1}}"#, "`a`.`type`: expected a score of a module, as Spectrum writes it: found nothing"),
        (r#"{"a": {"snr": 1, "type": "t", "mp_snr": []}}"#, "`a`.`mp_snr`"),
        (r#"{"a": {"b": null}}"#, "`a`.`b`: expected a score of a module, as Spectrum writes it: found null"),
        (r#"{"a": 3}"#, "`a`: expected"),
        (r#"{"a": {"b": 1}, "c": {"snr": 1, "type": "t"}}"#, "`a`.`snr`: expected"),
        ("{\"a\\n- b\": {\"snr\": 1, \"type\": \"t\"}}", r#"found the name "a\n- b""#),
        (r#"{"a": {"snr": 1, "type": "t: x"}}"#, r#"found the name "t: x""#),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.starts_with("snr.json: ") && error.contains(message), "{text}: {error}");
    }
    let two = parse(r#"{"a": {"snr": "x", "type": "t"}, "b": {"snr": 1}}"#).unwrap_err().to_string();
    assert!(two.starts_with("2 problems:"), "{two}");
    for text in published() {
        let bytes = text.as_bytes();
        (0..bytes.len()).for_each(|end| assert!(parse(std::str::from_utf8(&bytes[..end]).unwrap()).is_err()));
        for at in 0..bytes.len() {
            for bit in [1, 32] {
                let mut flipped = bytes.to_vec();
                flipped[at] ^= bit;
                if let Some(results) = std::str::from_utf8(&flipped).ok().and_then(|text| parse(text).ok()) {
                    let chosen = choose(&results, &by_snr(50.0, Rounding::Up)).unwrap();
                    assert!(bars(&chosen).iter().all(|bars| !bars.svg(0).is_empty() && !bars.text().is_empty()));
                }
            }
        }
    }
}

#[test]
fn charts_in_characters_show_heights_and_choice() {
    let module = |i: usize, snr: f64| Scored { name: format!("m.{i}.a"), kind: "a".into(), snr, mp_snr: None };
    let scores = [8.0, 4.0, 0.0, 1e-9, f64::INFINITY];
    let modules = scores.into_iter().enumerate().map(|(i, snr)| module(i, snr)).collect();
    let chosen = choose(&Results { modules }, &by_snr(40.0, Rounding::Up)).unwrap();
    let drawn = bars(&chosen);
    assert_eq!(drawn[0].summary(), "2 of 5, 0 to infinity");
    let lines = ["  a: 2 of 5, 0 to infinity", "    █   █", "    █   █", "    ██  █", "    ██ ▁█", "    *   *", ""];
    assert_eq!(drawn[0].text(), lines.join("\n"));
    // One score dwarfs the others: in steps of ten from 0.01, so that 0.1, 1, 100 are 1, 2 and 4 quarters high.
    let modules = [100.0, 1.0, 0.1, 0.0].into_iter().enumerate().map(|(i, snr)| module(i, snr)).collect();
    let drawn = bars(&choose(&Results { modules }, &by_snr(25.0, Rounding::Up)).unwrap());
    assert_eq!(drawn[0].summary(), "1 of 4, 0 to 100.0, logarithmic");
    assert_eq!(drawn[0].text().lines().skip(1).collect::<Vec<_>>(), ["    █", "    █", "    ██", "    ███", "    *"]);
    let ticks: Vec<_> = ["0.01", "0.1", "1", "10", "100"].into_iter().map(|tick| format!(">{tick}</text>")).collect();
    assert!(ticks.iter().all(|tick| drawn[0].svg(0).contains(tick)), "{}", drawn[0].svg(0));
}

fn potstill(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_potstill"));
    command.env("HF_HUB_OFFLINE", "1").env("HF_HUB_CACHE", "no such folder");
    command.arg("spectrum").args(arguments).output().expect("the command starts")
}

fn stdout(arguments: &[&str]) -> String {
    let output = potstill(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn failure(arguments: &[&str]) -> String {
    let output = potstill(arguments);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b""[..]), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn weights(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let tensors = ModelFolder::open(folder).unwrap().tensors;
    let names: Vec<String> = tensors.names().map(str::to_owned).collect();
    names.into_iter().map(|name| (name.clone(), tensors.read_f32(&name).unwrap())).collect()
}

#[test]
fn a_student_is_trained_on_the_list_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    small_model(&dir.path().join("my_base"), 16, 4, 1);
    novel(dir.path(), "text.txt", 30_000..34_000);
    let found: Value = serde_json::from_str(&stdout(&[
        &at("my_base"),
        "--top-percent",
        "25",
        "--layers",
        "mlp,o_proj",
        "-o",
        &at("scan/new"),
        "--json",
    ]))
    .unwrap();
    let file = |key: &str| PathBuf::from(found["files"][key].as_str().unwrap());
    let list = file("list");
    let expected = dir.path().join("scan/new/snr_results_my-base_unfrozenparameters_25percent.yaml");
    assert_eq!(list, expected);
    let types = found["types"].as_array().unwrap();
    let chosen: BTreeSet<&str> =
        types.iter().flat_map(|kind| kind["chosen"].as_array().unwrap()).map(|name| name.as_str().unwrap()).collect();
    assert_eq!((types.len(), chosen.len()), (4, 4));
    let recipe = recipe(&format!(
        "{{ output_path: {}, device: cpu, sequence_length: 32, model: {{ path: {} }}, unfrozen_parameters: {}, \
         dataset: {{ train: {}, holdout: {{ fraction: 0.2 }} }}, \
         training_args: {{ max_steps: 2, learning_rate: 1e-2, per_device_train_batch_size: 2 }} }}",
        at("out"),
        at("my_base"),
        list.display(),
        at("text.txt"),
    ));
    distill(&recipe, false, &mut |_| Continue(())).unwrap();
    let (before, after) = (weights(&dir.path().join("my_base")), weights(&dir.path().join("out")));
    for (name, values) in &before {
        let trained = name == "model.embed_tokens.weight" || chosen.contains(name.trim_end_matches(".weight"));
        assert_eq!(*values != after[name], trained, "{name}");
    }
    // The scores give the same list without the model, and the sorted ones too.
    let again = |scores: &str, extra: &[&str]| {
        let scores = file(scores).display().to_string();
        let folder = at("again");
        let mut arguments = vec![scores.as_str(), "--top-percent", "25", "-o", &folder, "--json"];
        arguments.extend(extra);
        let found: Value = serde_json::from_str(&stdout(&arguments)).unwrap();
        assert_eq!(found["files"]["scores"], Value::Null);
        std::fs::read_to_string(found["files"]["list"].as_str().unwrap()).unwrap()
    };
    let written = std::fs::read_to_string(&list).unwrap();
    assert_eq!(again("scores", &[]), written);
    assert_eq!(again("sorted", &[]), written);
    assert_ne!(again("scores", &["--layers", "mlp"]), written);
    assert_eq!(again("scores", &["--score", "mp"]).lines().count(), written.lines().count());
    assert!(std::fs::read_to_string(file("report")).unwrap().contains("mlp.down_proj"));
    // No temporary file stays.
    let left = std::fs::read_dir(dir.path().join("scan/new")).unwrap().count();
    assert_eq!(left, 4);
    let text = stdout(&[&at("my_base"), "-o", &at("scan/new")]);
    assert!(
        text.contains("mlp.up_proj: 2 of 4, ") && text.contains("14 of 28 modules: the top 50 % of each of 7"),
        "{text}"
    );
}

#[test]
fn misuse_of_the_command_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    small_model(&dir.path().join("base"), 16, 1, 1);
    std::fs::write(dir.path().join("a.json"), "{\"a\": 1}").unwrap();
    let cases: [(&[&str], &str); 6] = [
        (&[&at("base"), "--top-percent", "0"], "--top-percent: expected a number above 0, at most 100: found 0"),
        (&[&at("base"), "--layers", "mlpp"], "did you mean `mlp"),
        (&[&at("base"), "--layers", "down_prj"], "did you mean `down_proj`?"),
        (&[&at("a.json")], "a.json: `a`: expected a score of a module"),
        (&[&at("none.json")], "none.json"),
        (&[&at("base"), "-o", &at("a.json")], "a.json: expected a folder to write into: found a file"),
    ];
    for (arguments, message) in cases {
        let error = failure(arguments);
        let error = error.lines().last().unwrap();
        assert!(error.starts_with("error: ") && error.contains(message), "{arguments:?}: {error}");
    }
    assert!(!dir.path().join("snr_results_base.json").exists());
}
