//! How fast potstill is, as a fraction of what the machine can do and beside its peers, in one run.
//!
//!     cargo run --release -- quickstart        # once: the teacher and the text
//!     cargo bench --bench speed -- [--devices cpu,gpu] [--peers PYTHON] [--rounds 3] [--cache .cache] [--out FOLDER]
//!
//! Writes speed.md, speed.json and speed.svg to FOLDER (CACHE/speed unless said). Each measurement runs in a process of its own, ours
//! and the peers' in turn, round after round; tables give the median over the rounds and its spread. `--peers` names a
//! Python that has torch and transformers (benches/peers/README.md). Load on the machine hurts whoever runs then: read ratios.

mod ceiling;
mod head;
mod kernels;
mod page;
mod peers;
mod work;

use clap::Parser;
use potstill::{Error, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Parser)]
struct Args {
    /// Devices, as `--device` names them
    #[arg(long, value_delimiter = ',', default_value = "cpu")]
    devices: Vec<String>,
    /// A Python with torch and transformers, to measure PyTorch beside us
    #[arg(long)]
    peers: Option<PathBuf>,
    /// That Python's PyTorch has CUDA: measure it there beside GPUs
    #[arg(long)]
    cuda: bool,
    /// Times each measurement is made
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Training steps of a measurement; the first is not counted
    #[arg(long, default_value_t = 6)]
    steps: usize,
    /// Where the quickstart's files are
    #[arg(long, default_value = ".cache")]
    cache: PathBuf,
    /// Where the results go
    #[arg(long)]
    out: Option<PathBuf>,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
    /// One measurement, in this process: what the parent starts
    #[arg(long, hide = true)]
    only: Option<String>,
}

fn main() -> Result<()> {
    let start = std::time::Instant::now();
    let args = Args::parse();
    if let Some(only) = &args.only {
        let task: Value = serde_json::from_str(only).map_err(|e| Error::internal(e.to_string()))?;
        println!("{}", work::run(&task, &args.cache, start)?);
        return Ok(());
    }
    work::prepare(&args.cache)?;
    let mut devices = Vec::new();
    for device in &args.devices {
        let plan = work::plan(device, args.steps);
        // Beside a GPU only where PyTorch can use it too.
        let python = args.peers.as_deref().filter(|_| device == "cpu" || args.cuda);
        let theirs = python.map(|python| peers::plan(python, device == "cpu")).unwrap_or_default();
        let ceiling = child(&json!({ "task": "ceiling", "device": device }), &args.cache)?;
        let kernels = child(&json!({ "task": "kernels", "device": device }), &args.cache)?;
        let mut rounds: Vec<Vec<Value>> = vec![Vec::new(); plan.len() + theirs.len()];
        for round in 0..args.rounds {
            for (i, task) in plan.iter().enumerate() {
                eprintln!("{device}, round {} of {}: {task}", round + 1, args.rounds);
                rounds[i].push(child(task, &args.cache)?);
            }
            for (i, task) in theirs.iter().enumerate() {
                eprintln!("{device}, round {} of {}: {}", round + 1, args.rounds, task.name);
                rounds[plan.len() + i].push(task.run(args.steps)?);
            }
        }
        let names = plan.iter().map(work::name).chain(theirs.iter().map(|task| task.name.clone()));
        let runs: Vec<Value> = names.zip(&rounds).map(|(name, rounds)| summary(&name, rounds)).collect();
        devices
            .push(json!({ "device": ceiling["name"], "ceiling": ceiling, "kernels": kernels["rows"], "runs": runs }));
    }
    let out = args.out.unwrap_or_else(|| args.cache.join("speed"));
    page::write(&out, &json!({ "rounds": args.rounds, "steps": args.steps, "devices": devices }))
}

/// One measurement in a process of its own.
fn child(task: &Value, cache: &Path) -> Result<Value> {
    let program = std::env::current_exe().map_err(|e| Error::internal(e.to_string()))?;
    let mut command = Command::new(program);
    command.args(["--cache".as_ref(), cache.as_os_str()]).args(["--only", &task.to_string()]);
    output(command, &task.to_string())
}

/// The JSON object that a program prints last.
fn output(mut command: Command, what: &str) -> Result<Value> {
    let failed = |found: String| Error::at(what).expected("a measurement").found(found).error();
    let done = command.stderr(std::process::Stdio::inherit()).output().map_err(|e| failed(e.to_string()))?;
    let text = String::from_utf8_lossy(&done.stdout);
    let last = text.find('{').map(|at| &text[at..]).filter(|_| done.status.success());
    let last = last.ok_or_else(|| failed(format!("{} and {text:?}", done.status)))?;
    serde_json::from_str(last).map_err(|e| failed(e.to_string()))
}

/// Every number of the rounds as its median, and the speeds' least and most besides.
fn summary(name: &str, rounds: &[Value]) -> Value {
    let mut all = json!({ "name": name });
    let Some(first) = rounds.first().and_then(Value::as_object) else { return all };
    for (key, value) in first {
        let mut values: Vec<f64> = rounds.iter().filter_map(|round| round[key].as_f64()).collect();
        values.sort_by(f64::total_cmp);
        all[key] = match values.get(values.len() / 2) {
            Some(median) if values.len() == rounds.len() => json!(median),
            _ => value.clone(),
        };
        if key == "tokens_per_second" {
            all["range"] = json!([values.first(), values.last()]);
        }
    }
    all
}
