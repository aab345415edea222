//! What training only the layers with most signal costs and saves: the quickstart's student with all layers, with the
//! top 50 % and 25 % of each type by Spectrum's score, and with as many random layers; three orders of the text. Run the
//! quickstart first: its recipe, with teacher, text and records, is used.
//!
//!     cargo bench --bench spectrum -- [CACHE [STEPS]]
//!
//! Prints a Markdown table of means and standard deviations; what is in CACHE/spectrum (CACHE is `.cache`) from an earlier
//! run is reused. Time is that of the processors, for the whole run with its measurements: other work on the machine hardly
//! changes it. About 45 minutes on two idle cores with the quickstart's 80 steps.

use potstill::distill::memory::binary;
use potstill::distill::recipe::{Length, Student, Unfrozen};
use potstill::distill::{Recipe, distill};
use potstill::formats::{ModelFolder, read_json_if_present, write_json};
use potstill::platform::process::processor_time;
use potstill::random::SplitMix64;
use potstill::spectrum::{By, Choice, Layers, Results, Rounding, choose, modules, scan, wanted};
use potstill::{Error, Result};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

const SEEDS: [u64; 3] = [42, 43, 44];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let cache = PathBuf::from(arguments.first().map_or(".cache", String::as_str));
    let recipe = cache.join("quickstart/distilled.yaml");
    if !recipe.is_file() {
        let complaint = Error::file(&cache).expected("the quickstart's recipe").found("none");
        return complaint.help("run `cargo run --release -- quickstart` first").err();
    }
    let mut recipe = Recipe::load(&recipe)?;
    if let Some(steps) = arguments.get(1).and_then(|steps| steps.parse().ok()) {
        recipe.training_args.length = Length::Steps(steps);
    }
    let scores = scores(&recipe)?;
    println!("| trained | NLL | KLD | processor time, s | planned memory |\n| --- | --- | --- | --- | --- |");
    let variants = [(None, false), (Some(50), false), (Some(50), true), (Some(25), false), (Some(25), true)];
    for (percent, random) in variants {
        let name = match percent {
            None => "all layers".to_owned(),
            Some(percent) => format!("{percent} % {}", if random { "at random" } else { "by SNR" }),
        };
        let mut runs = Vec::new();
        for seed in SEEDS {
            let list = percent.map(|percent| list(&scores, percent, random.then_some(seed))).transpose()?;
            let folder = cache.join("spectrum").join(format!("{}-{seed}", name.replace([' ', '%'], "")));
            runs.push(trained(&recipe, seed, list, &folder)?);
        }
        let column = |key: &str, decimals: usize| mean_sd(&runs, key, decimals);
        let memory = binary(runs[0]["memory"].as_u64().unwrap_or_default());
        println!("| {name} | {} | {} | {} | {memory} |", column("nll", 4), column("kld", 4), column("seconds", 0));
    }
    Ok(())
}

/// The scores of the student as training finds it: those of the teacher's layers that it is made of, renumbered.
fn scores(recipe: &Recipe) -> Result<Results> {
    let Student::Layers { layers_of, layers } = &recipe.model else {
        return Error::at("the quickstart's recipe").expected("a student of a teacher's layers").found("another").err();
    };
    let teacher = ModelFolder::open(layers_of)?;
    let modules = wanted(modules(&teacher.tensors, Some(&teacher.config))?, &Layers::Linear)?;
    let of = |name: &str| layers.iter().position(|layer| name.starts_with(&format!("model.layers.{layer}.")));
    let modules: Vec<_> = modules.into_iter().filter(|module| of(&module.name).is_some()).collect();
    let mut results = scan(&teacher.tensors, &modules, &mut |_| ControlFlow::Continue(()))?;
    for module in &mut results.modules {
        if let Some(at) = of(&module.name) {
            module.name = format!("model.layers.{at}.{}", module.kind);
        }
    }
    Ok(results)
}

/// The patterns of a choice; with a seed, of as many modules of each type drawn at random.
fn list(scores: &Results, percent: u32, seed: Option<u64>) -> Result<Vec<String>> {
    let mut scores = scores.clone();
    if let Some(seed) = seed {
        let mut random = SplitMix64::new(seed);
        scores.modules.iter_mut().for_each(|module| module.snr = random.uniform());
    }
    let choice = Choice { top_percent: f64::from(percent), by: By::Snr, rounding: Rounding::Up };
    let patterns = choose(&scores, &choice)?.yaml();
    Ok(patterns.lines().filter_map(|line| line.strip_prefix("- ")).map(str::to_owned).collect())
}

/// One run's numbers, from an earlier run if it is there.
fn trained(recipe: &Recipe, seed: u64, list: Option<Vec<String>>, folder: &Path) -> Result<Value> {
    let numbers = folder.with_extension("json");
    if let Some(numbers) = read_json_if_present(&numbers)? {
        return Ok(numbers);
    }
    let mut recipe = Recipe { seed, output_path: folder.to_path_buf(), ..recipe.clone() };
    recipe.masks.unfrozen_parameters = list.map(Unfrozen::Patterns);
    let start = processor_time();
    let outcome = distill(&recipe, true, &mut |_| ControlFlow::Continue(()))?;
    let seconds = start.zip(processor_time()).map(|(start, end)| (end - start).as_secs_f64());
    let after = outcome.after.unwrap_or_default();
    let found = json!({
        "nll": after.nll, "kld": after.kld, "seconds": seconds, "memory": outcome.memory.total(),
    });
    write_json(&numbers, &found)?;
    Ok(found)
}

fn mean_sd(runs: &[Value], key: &str, decimals: usize) -> String {
    let values: Vec<f64> = runs.iter().filter_map(|run| run[key].as_f64()).collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    format!("{mean:.decimals$} +- {:.decimals$}", (squares / (values.len() as f64 - 1.0)).sqrt())
}
