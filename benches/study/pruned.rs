//! A real teacher, pruned: the quickstart's student taught by text alone, by the teacher's recorded logits, by its hidden
//! states, and by both. These are the variants of DistillKit's own study, with one student and one set of
//! hyper-parameters.

use super::method::{Arena, Measured, Method, Run, Source};
use potstill::device::Device;
use potstill::{Error, Result};
use serde_json::json;
use std::path::Path;

const CONTEXT: usize = 256;
const BATCH: usize = 2;
const HELD_OUT: usize = 24;
const TOKENS: usize = 40_960;
/// The teacher's layers that become the student.
const LAYERS: [usize; 9] = [0, 1, 5, 10, 15, 20, 25, 28, 29];

/// What the experiment gave.
pub struct Pruned {
    /// The teacher on held-out text.
    pub teacher: Measured,
    /// The variants with their runs.
    pub results: Vec<(Method, Vec<Run>)>,
}

/// Trains every variant with three seeds, or reads what is there. `cache` is the quickstart's.
pub fn run(device: &Device, device_name: &str, cache: &Path, folder: &Path) -> Result<Pruned> {
    let teacher = cache.join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let dataset = cache.join(format!("quickstart/text-{TOKENS}.jsonl"));
    if !teacher.is_file() || !dataset.is_file() {
        let complaint = Error::file(cache).expected("the quickstart's teacher and text").found("none");
        return complaint.help("run `cargo run --release -- quickstart` first").err();
    }
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let arena = Arena {
        device: device.clone(),
        device_name: device_name.to_owned(),
        folder: folder.to_path_buf(),
        student: json!({ "layers_of": teacher, "layers": LAYERS }),
        teacher,
        dataset,
        held_out: HELD_OUT,
        context: CONTEXT,
        batch: BATCH,
        training_args: json!({
            "learning_rate": 5e-4, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "logging_steps": 10,
            "eval_steps": 20, "eval_samples": 4,
        }),
    };
    let results =
        methods().into_iter().map(|method| Ok((method.clone(), arena.run(&method)?))).collect::<Result<_>>()?;
    Ok(Pruned { teacher: arena.teacher()?, results })
}

fn methods() -> Vec<Method> {
    let ce = |weight: f64| json!({ "function": "cross_entropy", "weight": weight });
    let kl = json!({ "function": "kl", "weight": 1.0 });
    // Each kept layer's output against that of its own layer in the teacher.
    let hidden = json!({ "function": "hs_cosine", "weight": 5.0 });
    let method = |name, source, losses| Method {
        name,
        source,
        losses,
        extra: json!({}),
        seeds: vec![42, 43, 44],
        steps: (TOKENS / (CONTEXT * BATCH)) as u64,
    };
    vec![
        method("plain SFT", Source::Text, json!([ce(1.0)])),
        method("logits", Source::TopK(64), json!([kl, ce(0.1)])),
        method("hidden states", Source::Live, json!([hidden, ce(1.0)])),
        method("logits and hidden states", Source::Live, json!([kl, hidden, ce(0.1)])),
    ]
}
