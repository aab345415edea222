//! The checks over one row of the case table.

use super::{Case, Setup};
use crate::device::{Device, Dispatch};
use crate::graph::{DType, Plan, Runner, Store, Tensor, Values, evaluate};
use crate::{Error, Result};
use std::collections::HashMap;

/// The worst disagreement of one tensor of a row.
#[derive(Debug, Clone)]
pub struct Finding {
    /// `result0`, `grad1`, ...
    pub tensor: String,
    /// Largest absolute difference divided by the largest magnitude expected.
    pub error: f64,
    /// Where it is, what was expected and what was found.
    pub detail: String,
}

/// Elements of each input whose gradient is compared with a central difference.
const PROBES: usize = 12;
/// Step of the central difference in f64: truncation and rounding errors are both near 1e-10.
const STEP: f64 = 1e-5;
/// Largest allowed error of a gradient against its central difference, relative to the gradient's largest magnitude.
const GRADIENT_TOLERANCE: f64 = 2e-7;

/// Runs a row on `device` and compares every result and gradient with the f64 oracle. An error if one is off by
/// more than the row's tolerance; otherwise the findings.
pub async fn check_on(device: &Device, case: &Case) -> Result<Vec<Finding>> {
    let setup = case.setup()?;
    let outputs = named_outputs(&setup);
    let wanted: Vec<Tensor> = outputs.iter().map(|(_, t)| *t).collect();
    let expected = evaluate(&setup.graph, &mut setup.values.clone(), &wanted)?;
    let mut runner = runner(device, &setup)?;
    runner.run()?;
    let mut findings = Vec::new();
    for ((name, tensor), expected) in outputs.iter().zip(expected) {
        let finding = match (expected, tensor.dtype) {
            (Values::F(expected), DType::F32) => {
                let found = runner.read_f32(name).await?;
                compare(name, &expected, &found.iter().map(|&x| x as f64).collect::<Vec<_>>())
            }
            (Values::U(expected), _) => {
                let found = runner.read_u32(name).await?;
                let wide = |v: &[u32]| v.iter().map(|&x| x as f64).collect::<Vec<_>>();
                compare(name, &wide(&expected), &wide(&found))
            }
            _ => return Err(Error::internal("dtype of a result")),
        };
        let allowed = if tensor.dtype == DType::U32 { 0.0 } else { case.tolerance };
        if finding.error.is_nan() || finding.error > allowed {
            return Err(Error::device(
                format!("`{}` ({}) on {}: {} {}", case.op, case.what, device.name(), finding.tensor, finding.detail),
                "this adapter or driver computes wrongly: update the driver, or use `--device cpu`",
            ));
        }
        findings.push(finding);
    }
    Ok(findings)
}

/// Compares a row's gradients, taken mid-graph with random upstream gradients, with central differences of the
/// f64 oracle.
pub fn check_gradients(case: &Case) -> Result<()> {
    let setup = case.setup()?;
    let scalar = |values: &HashMap<String, Values>| -> Result<f64> {
        let results = evaluate(&setup.graph, &mut values.clone(), &setup.results)?;
        let dot = |(name, index): &(String, usize)| {
            let weights = values[name].floats().iter();
            weights.zip(results[*index].floats()).map(|(w, x)| w * x).sum::<f64>()
        };
        Ok(setup.seeds.iter().map(dot).sum())
    };
    for (name, tensor) in &setup.differentiated {
        let Some(grad) = setup.graph.grad(*tensor) else { continue };
        let analytic = evaluate(&setup.graph, &mut setup.values.clone(), &[grad])?.swap_remove(0);
        probe(case, &setup, name, analytic.floats(), &scalar)?;
    }
    for claim in &setup.claims {
        let scalar = |values: &HashMap<String, Values>| -> Result<f64> {
            let loss = evaluate(&setup.graph, &mut values.clone(), &[claim.loss])?.swap_remove(0);
            Ok(values[&claim.weights].floats().iter().zip(loss.floats()).map(|(w, x)| w * x).sum())
        };
        let analytic = evaluate(&setup.graph, &mut setup.values.clone(), &[claim.grad])?.swap_remove(0);
        probe(case, &setup, &claim.input, analytic.floats(), &scalar)?;
    }
    Ok(())
}

/// Central differences at some elements of input `name` against its analytic gradient.
fn probe(
    case: &Case,
    setup: &Setup,
    name: &str,
    analytic: &[f64],
    scalar: &dyn Fn(&HashMap<String, Values>) -> Result<f64>,
) -> Result<()> {
    let largest = analytic.iter().fold(0f64, |a, b| a.max(b.abs()));
    let stride = analytic.len().div_ceil(PROBES).max(1);
    for at in (0..analytic.len()).step_by(stride) {
        let nudged = |by: f64| -> Result<f64> {
            let mut values = setup.values.clone();
            if let Some(Values::F(floats)) = values.get_mut(name) {
                floats[at] += by;
            }
            scalar(&values)
        };
        let numeric = (nudged(STEP)? - nudged(-STEP)?) / (2.0 * STEP);
        let error = (numeric - analytic[at]).abs();
        if error.is_nan() || error > GRADIENT_TOLERANCE * largest.max(1e-3) {
            return Err(Error::internal(format!(
                "`{}` ({}): d/d{name}[{at}] is {} by differences, {} by its gradient op",
                case.op, case.what, numeric, analytic[at]
            )));
        }
    }
    Ok(())
}

/// Every dispatch of a row under the given limits, without any GPU: what the shader tests validate.
pub fn kernels_of(case: &Case, caps: &crate::device::Caps) -> Result<Vec<Dispatch>> {
    let plan = Plan::new(&case.setup()?.graph)?;
    plan.dispatches(caps)
}

/// A runner for a row with its inputs written.
pub(super) fn runner(device: &Device, setup: &Setup) -> Result<Runner> {
    let mut store = Store::new(device);
    for (name, tensor) in setup.graph.externals() {
        store.add(name, tensor.shape, tensor.dtype)?;
        match &setup.values[name] {
            Values::F(values) => store.write(name, &values.iter().map(|&x| x as f32).collect::<Vec<_>>())?,
            Values::U(values) => store.write(name, values)?,
        }
    }
    Runner::new(Plan::new(&setup.graph)?, &store, &mut Vec::new())
}

fn named_outputs(setup: &Setup) -> Vec<(String, Tensor)> {
    let results = setup.results.iter().enumerate().map(|(i, t)| (format!("result{i}"), *t));
    let grads = setup.differentiated.iter().enumerate();
    let grads = grads.filter_map(|(i, (_, t))| Some((format!("grad{i}"), setup.graph.grad(*t)?)));
    results.chain(grads).collect()
}

fn compare(name: &str, expected: &[f64], found: &[f64]) -> Finding {
    let largest = expected.iter().fold(1e-30f64, |a, b| a.max(b.abs()));
    let mut worst = (0.0, 0);
    for (i, (e, f)) in expected.iter().zip(found).enumerate() {
        let error = (e - f).abs() / largest;
        if error.is_nan() || error > worst.0 {
            worst = (error, i);
            if error.is_nan() {
                break;
            }
        }
    }
    let (error, at) = worst;
    let value = |v: &[f64]| v.get(at).copied().unwrap_or(f64::NAN);
    let detail = format!("[{at}]: expected {:e}, found {:e}, relative error {error:e}", value(expected), value(found));
    Finding { tensor: name.to_owned(), error, detail }
}
