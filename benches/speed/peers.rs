//! The same work in PyTorch, by the scripts of benches/peers.

use crate::output;
use potstill::Result;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One measurement of a peer.
pub struct Task {
    /// In words.
    pub name: String,
    python: PathBuf,
    script: &'static str,
    arguments: Vec<&'static str>,
}

/// What is measured of PyTorch beside a device: on the CPU, or on CUDA.
pub fn plan(python: &Path, cpu: bool) -> Vec<Task> {
    let step = "torch_step.py";
    let capture = "torch_capture.py";
    let product = "torch_product.py";
    let tasks: &[(&str, &str, &[&str])] = &[
        ("step sft f32, PyTorch", step, &["--losses", "sft"]),
        ("step top-k f32, PyTorch", step, &["--losses", "top-k"]),
        ("step top-k f32, PyTorch with DistillKit's loss", step, &["--losses", "distillkit"]),
        ("step top-k f32, PyTorch compiled", step, &["--losses", "top-k", "--compile"]),
        ("step dense f32, PyTorch", step, &["--losses", "dense"]),
        ("step top-k bf16, PyTorch", step, &["--losses", "top-k", "--precision", "bf16"]),
        ("capture f32, PyTorch", capture, &[]),
        ("capture bf16, PyTorch", capture, &["--precision", "bf16"]),
    ];
    let products: &[(&str, &str, &[&str])] = &[
        ("product 4096 f32, PyTorch", product, &[]),
        ("product 4096 bf16, PyTorch", product, &["--precision", "bf16"]),
    ];
    let task = |&(name, script, arguments): &(&str, &'static str, &[&'static str])| Task {
        name: name.to_owned(),
        python: python.to_path_buf(),
        script,
        arguments: arguments
            .iter()
            .copied()
            .chain(if cpu { [].as_slice() } else { &["--device", "cuda"] }.iter().copied())
            .collect(),
    };
    let products = if cpu { &[] } else { products };
    tasks.iter().chain(products).map(task).collect()
}

impl Task {
    /// Runs it over so many steps.
    pub fn run(&self, steps: usize) -> Result<Value> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(self.script);
        let mut command = Command::new(&self.python);
        command.arg(script).args(&self.arguments).args(["--steps", &steps.to_string()]);
        command.args(["--threads", &rayon::current_num_threads().to_string()]);
        output(command, &self.name)
    }
}
