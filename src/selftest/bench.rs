//! How long a row of the case table takes.

use super::Case;
use super::check::runner;
use crate::device::Device;
use crate::graph::{DType, Runner};
use crate::{Error, Result};
use std::time::Instant;

/// Seconds of one sample: many replays of a short row.
const SAMPLE_SECONDS: f64 = 0.02;
const MOST_REPLAYS: f64 = 2000.0;
const SAMPLES: usize = 5;

/// The measured speed of a row, forward and backward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// Median seconds of one replay.
    pub seconds: f64,
    /// Floating-point operations of one replay, estimated.
    pub flops: u64,
    /// Bytes read and written by one replay, estimated.
    pub bytes: u64,
}

/// Times a row on `device`: the median of several samples after a first replay that is not counted.
pub fn time_on(device: &Device, case: &Case) -> Result<Timing> {
    let mut runner = runner(device, &case.setup()?)?;
    sample(&mut runner, 1)?;
    let replays = (SAMPLE_SECONDS / sample(&mut runner, 1)?.max(1e-9)).clamp(1.0, MOST_REPLAYS) as u32;
    let mut samples = (0..SAMPLES).map(|_| sample(&mut runner, replays)).collect::<Result<Vec<f64>>>()?;
    samples.sort_by(f64::total_cmp);
    let bytes = runner.plan().steps.iter().map(|step| step.cost.bytes).sum();
    Ok(Timing { seconds: samples[SAMPLES / 2], flops: runner.plan().flops(), bytes })
}

/// Seconds a replay, from the first submission to an output in hand.
fn sample(runner: &mut Runner, replays: u32) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..replays {
        runner.run()?;
    }
    let outputs = runner.plan().outputs.iter().map(|(name, (tensor, _))| (tensor.bytes(), tensor.dtype, name));
    // The smallest, so that the read itself costs least.
    let (_, dtype, name) =
        outputs.min_by_key(|output| output.0).ok_or_else(|| Error::internal("a row without an output"))?;
    match dtype {
        DType::F32 => drop(pollster::block_on(runner.read_f32(name))?),
        DType::U32 | DType::Packed(_) => drop(pollster::block_on(runner.read_u32(name))?),
    }
    Ok(start.elapsed().as_secs_f64() / f64::from(replays))
}
