//! From scratch: a small teacher trained here, students of a fifteenth of its size, a million tokens. Every way to store
//! and to match a teacher competes on the same tokens in the same order, with negative controls that must lose.

use super::method::{Arena, Measured, Method, Run, Source, mean_sd};
use super::text::{self, Sizes};
use potstill::device::{Choice, Device, adapters};
use potstill::distill::{Recipe, distill};
use potstill::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

/// A vocabulary that a tiny student can afford, and text for a million tokens.
const TEXT: Sizes = Sizes { vocabulary: 512, students_bytes: 2_400_000 };
/// Tokens of a sequence and sequences of a step: 1,024 tokens a step.
const CONTEXT: usize = 64;
const BATCH: usize = 16;
/// Held-out sequences, 65,536 tokens.
const HELD_OUT: usize = 1024;
const STEPS: u64 = 1000;
const TEACHER_STEPS: u64 = 4000;
/// Steps on both devices: few, for a software driver's sake.
const TWIN_STEPS: u64 = 200;

/// What the experiment gave.
pub struct Scratch {
    /// The teacher on held-out text.
    pub teacher: Measured,
    /// Methods in the order of [`methods`], with their runs.
    pub results: Vec<(Method, Vec<Run>)>,
    /// One of them on the CPU and on a GPU, a line of metrics a step; none where there is no GPU.
    pub twins: Option<Twins>,
}

/// One recipe on two devices.
pub struct Twins {
    /// The GPU.
    pub name: String,
    /// On the CPU and on the GPU.
    pub runs: [Run; 2],
}

/// Trains the teacher and all students, or reads what is there.
pub fn run(device: &Device, device_name: &str, sotu: &Path, folder: &Path) -> Result<Scratch> {
    let text = text::prepare(sotu, folder, &TEXT)?;
    let teacher = folder.join("teacher");
    if !teacher.join("model.safetensors").is_file() {
        eprintln!("the teacher, {TEACHER_STEPS} steps");
        let recipe = json!({
            "output_path": teacher,
            "device": device_name,
            "sequence_length": CONTEXT,
            "model": { "config": config(128, 3, 4, 341, 0.02), "tokenizer": text.tokenizer },
            "dataset": { "train": [text.all], "holdout": { "sequences": HELD_OUT } },
            "training_args": training_args(2e-3, TEACHER_STEPS),
        });
        let recipe = Recipe::parse(&recipe.to_string(), Path::new("the teacher's recipe"))?;
        distill(&recipe, false, &mut |_| ControlFlow::Continue(()))?;
    }
    let arena = Arena {
        device: device.clone(),
        device_name: device_name.to_owned(),
        folder: folder.to_path_buf(),
        teacher,
        dataset: text.students,
        held_out: HELD_OUT,
        context: CONTEXT,
        batch: BATCH,
        // Chosen for plain text: of rates 4e-3, 1e-2 and 2e-2 and ranges 0.02 to 0.18 it learns most by these.
        student: json!({ "config": config(32, 2, 2, 96, 0.08), "tokenizer": text.tokenizer }),
        training_args: training_args(1e-2, 0),
    };
    let results =
        methods().into_iter().map(|method| Ok((method.clone(), arena.run(&method)?))).collect::<Result<_>>()?;
    Ok(Scratch { teacher: arena.teacher()?, results, twins: twins(&arena)? })
}

/// Full KL on both kinds of device. Even a software driver will do: it is the shaders that are compared.
fn twins(arena: &Arena) -> Result<Option<Twins>> {
    let Some(adapter) = pollster::block_on(adapters()).into_iter().next() else { return Ok(None) };
    let mut runs = Vec::new();
    for (name, device_name) in [("full KL on the CPU", "cpu"), ("full KL on a GPU", "gpu")] {
        let device = pollster::block_on(device_name.parse::<Choice>()?.open())?;
        let mut arena = Arena { device, device_name: device_name.to_owned(), ..arena.clone() };
        arena.training_args["logging_steps"] = json!(1);
        let losses = json!([{ "function": "kl", "weight": 1.0 }]);
        let method = Method { name, source: Source::Live, losses, extra: json!({}), seeds: vec![0], steps: TWIN_STEPS };
        runs.extend(arena.run(&method)?);
    }
    Ok(runs.try_into().ok().map(|runs| Twins { name: adapter.name, runs }))
}

impl Twins {
    /// The largest relative difference of the first `steps` losses, and that of the held-out NLL at the end, nats.
    fn differences(&self, steps: usize) -> (f64, f64) {
        let [cpu, gpu] = &self.runs;
        let relative = cpu.losses.iter().zip(&gpu.losses).take(steps).map(|(c, g)| (g / c - 1.0).abs());
        let [c, g] = [cpu, gpu].map(|run| run.measured.evaluation.nll);
        (relative.fold(0.0, f64::max), g - c)
    }
}

fn config(hidden: usize, layers: usize, heads: usize, intermediate: usize, range: f64) -> Value {
    json!({
        "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": heads, "intermediate_size": intermediate, "vocab_size": TEXT.vocabulary,
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "hidden_act": "silu", "initializer_range": range,
    })
}

fn training_args(learning_rate: f64, steps: u64) -> Value {
    let mut args = json!({
        "per_device_train_batch_size": BATCH, "learning_rate": learning_rate, "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.05, "logging_steps": 50, "eval_steps": 100, "eval_samples": 64, "save_steps": 1_000_000,
    });
    if steps > 0 {
        args["max_steps"] = json!(steps);
    }
    args
}

/// Everything that competes. The bar's own methods run with three seeds, the others with one.
fn methods() -> Vec<Method> {
    let loss = |function: &str, weight: f64| json!({ "function": function, "weight": weight });
    let sparse = |handling: &str, weight: f64| json!({ "function": "kl", "weight": weight, "missing_probability_handling": handling });
    let ce = |weight: f64| loss("cross_entropy", weight);
    let method = |name, source, losses, seeds: &[u64]| {
        let (extra, seeds) = (json!({}), seeds.to_vec());
        Method { name, source, losses, extra, seeds, steps: STEPS }
    };
    let (one, three) = (&[0][..], &[0, 1, 2][..]);
    let kl = || json!([loss("kl", 1.0)]);
    let mut all = vec![
        method("plain text", Source::Text, json!([ce(1.0)]), three),
        method("full KL", Source::Live, kl(), three),
        method("full KL 0.5 + CE 0.5", Source::Live, json!([loss("kl", 0.5), ce(0.5)]), one),
        method("sampled 5", Source::Sampled(5), kl(), one),
        method("sampled 22", Source::Sampled(22), kl(), three),
        method("sampled 50", Source::Sampled(50), kl(), one),
        method("sampled 150", Source::Sampled(150), kl(), one),
        method("top-12 zero", Source::TopK(12), json!([sparse("zero", 1.0)]), three),
        method("top-12 both renormalised", Source::TopK(12), json!([sparse("both_renormalised", 1.0)]), one),
        method("top-12 uniform", Source::TopK(12), json!([sparse("uniform", 1.0)]), one),
        method("top-12 ghost", Source::TopK(12), json!([sparse("ghost", 1.0)]), one),
        method("top-12 ghost + CE 0.1", Source::TopK(12), json!([sparse("ghost", 1.0), ce(0.1)]), one),
        method("top-25 ghost", Source::TopK(25), json!([sparse("ghost", 1.0)]), one),
        method("top-50 zero", Source::TopK(50), json!([sparse("zero", 1.0)]), one),
        method("top-50 uniform", Source::TopK(50), json!([sparse("uniform", 1.0)]), one),
        method("top-50 ghost", Source::TopK(50), json!([sparse("ghost", 1.0)]), three),
        method("top-50 ghost + CE 0.1", Source::TopK(50), json!([sparse("ghost", 1.0), ce(0.1)]), one),
    ];
    for function in ["reverse_kl", "jeffreys", "jsd", "skew_kl", "skew_reverse_kl", "adaptive_kl", "alpha_beta", "taid"]
    {
        all.push(method(function, Source::Live, json!([loss(function, 1.0)]), one));
    }
    all.push(method("tvd 0.5 + CE 0.5", Source::Live, json!([loss("tvd", 0.5), ce(0.5)]), one));
    let hot = json!([{ "function": "kl", "weight": 1.0, "temperature": 2.0 }]);
    all.push(method("full KL, T = 2", Source::Live, hot, one));
    for steps in [500, 2000] {
        all.push(Method { steps, ..method("plain text", Source::Text, json!([ce(1.0)]), one) });
        all.push(Method { steps, ..method("full KL", Source::Live, kl(), one) });
    }
    all
}

/// A demand on the results, and whether they meet it.
pub struct Demand {
    /// Its number in the bar.
    pub name: &'static str,
    /// In words.
    pub what: String,
    /// What was found.
    pub found: String,
    /// Met or not.
    pub met: bool,
}

impl Scratch {
    /// A method's value averaged over its seeds.
    pub fn mean(&self, name: &str, steps: u64, value: &dyn Fn(&Measured) -> f64) -> Result<f64> {
        let runs = self.results.iter().find(|(method, _)| method.name == name && method.steps == steps);
        let Some((_, runs)) = runs else { return Err(Error::internal(format!("no method {name}"))) };
        Ok(mean_sd(&runs.iter().map(|run| value(&run.measured)).collect::<Vec<_>>()).0)
    }

    /// What a method keeps of the full distribution's gain over plain text in NLL, in percent: of the seeds that it ran
    /// with.
    fn share(&self, name: &str) -> Result<f64> {
        let runs = |name: &str| {
            let found = self.results.iter().find(|(method, _)| method.name == name && method.steps == STEPS);
            found.ok_or_else(|| Error::internal(format!("no method {name}")))
        };
        let ((method, own), (plain, text), (whole, full)) = (runs(name)?, runs("plain text")?, runs("full KL")?);
        let (mut gain, mut all) = (0.0, 0.0);
        for (seed, run) in method.seeds.iter().zip(own) {
            let of = |seeds: &[u64], runs: &[Run]| {
                let place = seeds.iter().position(|other| other == seed);
                place.map(|place| runs[place].measured.evaluation.nll)
            };
            if let (Some(text), Some(full)) = (of(&plain.seeds, text), of(&whole.seeds, full)) {
                gain += text - run.measured.evaluation.nll;
                all += text - full;
            }
        }
        Ok(100.0 * gain / all)
    }

    /// The bar: each demand with what was found.
    pub fn bar(&self) -> Result<Vec<Demand>> {
        let nll = |name: &str, steps| self.mean(name, steps, &|m| m.evaluation.nll);
        let error = |name: &str| self.mean(name, STEPS, &|m| 100.0 * m.fidelity.calibration_error);
        let acceptance = |name: &str| self.mean(name, STEPS, &|m| m.fidelity.acceptance);
        let (text, full) = (nll("plain text", STEPS)?, nll("full KL", STEPS)?);
        let teacher = self.teacher.evaluation.nll;
        let gain = text - full;
        let share = |name: &str| self.share(name);
        let closed = 100.0 * gain / (text - teacher);
        let twice = nll("full KL", STEPS)? - nll("plain text", 2000)?;
        let plain = error("plain text")?;
        let calibrations = BTreeMap::from([
            ("full KL", error("full KL")?),
            ("sampled 22", error("sampled 22")?),
            ("top-50 ghost", error("top-50 ghost")?),
        ]);
        let control = (nll("top-12 zero", STEPS)? - text, error("top-12 zero")?);
        let accepted = acceptance("full KL")? - acceptance("plain text")?;
        let (s22, s150, g50) = (share("sampled 22")?, share("sampled 150")?, share("top-50 ghost")?);
        let demand = |name, what: &str, found, met| Demand { name, what: what.to_owned(), found, met };
        let twins = self.twins.iter().map(|twins| {
            let (first, last) = twins.differences(20);
            demand(
                "Q10",
                &format!("full KL on a GPU has the CPU's losses for 20 steps to 1e-3, and its NLL after {TWIN_STEPS} to 0.01 nats"),
                format!("{first:.1e}, {last:+.4} nats ({})", twins.name),
                first <= 1e-3 && last.abs() <= 0.01,
            )
        });
        let mut bar = vec![
            demand(
                "Q1",
                "full KL beats plain text by 0.15 nats and closes 20 % of the gap to the teacher",
                format!("{:+.3} nats, {closed:.0} %", -gain),
                gain >= 0.15 && closed >= 20.0,
            ),
            demand(
                "Q2",
                "full KL at 1,000 steps is no worse than plain text at 2,000 (0.01 nats allowed)",
                format!("{twice:+.3} nats"),
                twice <= 0.01,
            ),
            demand("Q3", "22 draws keep 75 % of the gain", format!("{s22:.0} %"), s22 >= 75.0),
            demand(
                "Q4",
                "150 draws keep 95 % of the gain, the top 50 with a ghost bucket 80 %",
                format!("{s150:.0} %, {g50:.0} %"),
                s150 >= 95.0 && g50 >= 80.0,
            ),
            demand(
                "Q7",
                "calibration error of full KL, 22 draws, top 50 with ghost at most 2 %",
                calibrations.iter().map(|(name, e)| format!("{name} {e:.1} %, ")).collect::<String>()
                    + &format!("beside plain text's {plain:.1} %"),
                calibrations.values().all(|e| *e <= 2.0),
            ),
            demand(
                "Q8",
                "negative control: the renormalised top 12 is worse than plain text, with a calibration error of 3 % or more",
                format!("{:+.3} nats, {:.1} %", control.0, control.1),
                control.0 > 0.0 && control.1 >= 3.0,
            ),
            demand(
                "Q9",
                "full KL raises the acceptance rate of drafted tokens by 0.05",
                format!("{accepted:+.3}"),
                accepted >= 0.05,
            ),
        ];
        bar.extend(twins);
        Ok(bar)
    }
}
