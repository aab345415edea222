//! Distilling inside an application: no command line, no files but the student's folder, a progress callback that the
//! application can stop the run with.
//!
//!     cargo run --release --example in_process -- TEACHER TEXT OUTPUT [STEPS]
//!
//! TEACHER is a Hugging Face folder or a .gguf file, TEXT a .txt file, OUTPUT the folder that receives the student: a
//! third of the teacher's layers, trained against the live teacher. Run again, it goes on where it stopped.

use potstill::distill::{Event, Recipe, distill};
use potstill::formats::ModelFolder;
use potstill::{Error, Result};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [teacher, text, output, rest @ ..] = &arguments[..] else {
        return Error::at("arguments").expected("TEACHER TEXT OUTPUT [STEPS]").found(arguments.join(" ")).err();
    };
    let steps: u64 = rest.first().and_then(|steps| steps.parse().ok()).unwrap_or(20);
    let recipe = recipe(teacher, text, output, steps)?;
    // An application would listen to a button here; this one stops after ten minutes.
    let patience = Instant::now() + Duration::from_secs(600);
    let outcome = distill(&recipe, false, &mut |event| {
        match event {
            Event::Planned { device, memory, .. } => println!("on {device}, {memory}"),
            Event::Step { report, .. } => println!("step {:3}: loss {:.4}", report.step, report.loss),
            Event::Evaluated { step, evaluation } => println!("step {step:3}: held-out NLL {:.4}", evaluation.nll),
            Event::Started { .. } | Event::Saved { .. } => {}
        }
        if Instant::now() > patience { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    match outcome {
        Ok(outcome) => println!("the student is in {}", outcome.folder.display()),
        Err(Error::Cancelled) => println!("stopped; the same command goes on from the checkpoint"),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// The same recipe that `potstill distill` reads from a file.
fn recipe(teacher: &str, text: &str, output: &str, steps: u64) -> Result<Recipe> {
    let config = ModelFolder::open(teacher)?.config;
    let layers = config["num_hidden_layers"].as_u64().unwrap_or(1);
    let kept: Vec<u64> = (0..layers).filter(|layer| layer % 3 == 0 || layer + 1 == layers).collect();
    let yaml = format!(
        "output_path: {output}
sequence_length: 128
model: {{ layers_of: {teacher}, layers: {kept:?} }}
teacher: {{ kind: live, path: {teacher} }}
dataset: {{ train: {text}, holdout: {{ sequences: 4 }} }}
loss_functions: [{{ function: kl, weight: 1.0 }}]
training_args:
  per_device_train_batch_size: 1
  learning_rate: 3.0e-4
  max_steps: {steps}
  logging_steps: 1
"
    );
    Recipe::parse(&yaml, Path::new("in_process.rs"))
}
