//! The training step of a recipe by itself: the twin of benches/torch_step.py. Nothing is measured on held-out text,
//! sampled or saved.
//!
//!     cargo bench --bench step -- RECIPE [STEPS]
//!
//! Prints one JSON object: tokens_per_second (median over the steps after the first), peak_memory_bytes of the process,
//! planned_memory_bytes, step_losses.

use potstill::distill::Recipe;
use potstill::distill::setup::Setup;
use potstill::platform::process::peak_resident;
use potstill::{Error, Result};
use std::time::Instant;

fn main() -> Result<()> {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [path, rest @ ..] = &arguments[..] else {
        return Error::at("arguments").expected("RECIPE [STEPS]").found("nothing").err();
    };
    let steps: usize = rest.first().and_then(|steps| steps.parse().ok()).unwrap_or(12);
    let setup = pollster::block_on(Setup::open(&Recipe::load(path)?))?;
    let planned = setup.memory.total();
    let mut trainer = pollster::block_on(setup.trainer())?;
    let (mut speeds, mut losses) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let start = Instant::now();
        let counts = trainer.advance()?;
        let report = pollster::block_on(trainer.reports(&[counts]))?;
        if step > 0 {
            speeds.push(counts.1 as f64 / start.elapsed().as_secs_f64());
        }
        losses.extend(report.iter().map(|report| report.loss));
    }
    speeds.sort_by(f64::total_cmp);
    let result = serde_json::json!({
        "tokens_per_second": speeds.get(speeds.len() / 2),
        "peak_memory_bytes": peak_resident(),
        "planned_memory_bytes": planned,
        "step_losses": losses,
    });
    println!("{result}");
    Ok(())
}
