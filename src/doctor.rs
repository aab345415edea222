//! Whether this machine computes right: its adapters, what a device can do, and the case table run on it.

use crate::Result;
use crate::device::{AdapterSummary, Caps, Choice, Device, adapters};
use crate::selftest::{Case, Timing, cases, check_on, kernels_of, time_on};
use std::collections::{BTreeMap, BTreeSet};

/// What there is to compute on.
#[derive(Debug, Clone)]
pub struct System {
    /// The adapters, best kind first.
    pub adapters: Vec<AdapterSummary>,
    /// The one that `auto` takes; none means the CPU.
    pub auto: Option<usize>,
    /// The CPU.
    pub cpu: CpuInfo,
}

/// The CPU in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuInfo {
    /// Threads that work is shared among.
    pub threads: usize,
    /// Instruction set.
    pub architecture: &'static str,
    /// Vector extensions that the matrix products use where they help.
    pub extensions: Vec<&'static str>,
}

/// What a row of the case table came to on a device.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The op it exercises.
    pub op: &'static str,
    /// What is special about the row.
    pub what: String,
    /// Largest error over the row's tensors, relative to the largest magnitude in each.
    pub worst: f64,
    /// The error the row allows.
    pub allowed: f64,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// Its speed, where asked for.
    pub timing: Option<Timing>,
}

/// Looks at the machine.
pub fn system() -> System {
    let adapters = pollster::block_on(adapters());
    let auto = Choice::Auto.pick(&adapters).ok().flatten().map(|chosen| chosen.index);
    System { auto, adapters, cpu: cpu_info() }
}

fn cpu_info() -> CpuInfo {
    let mut extensions = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let found = [
            ("AVX2", is_x86_feature_detected!("avx2")),
            ("FMA", is_x86_feature_detected!("fma")),
            ("AVX-512F", is_x86_feature_detected!("avx512f")),
        ];
        extensions.extend(found.iter().filter(|(_, there)| *there).map(|(name, _)| *name));
    }
    if cfg!(target_arch = "aarch64") {
        extensions.push("NEON");
    }
    CpuInfo { threads: rayon::current_num_threads(), architecture: std::env::consts::ARCH, extensions }
}

/// The rows that a user's machine runs: all but the heavy ones.
pub fn rows() -> Vec<Case> {
    cases::all().into_iter().filter(|case| !case.heavy).collect()
}

/// The kernels that `rows` launch under `caps`: for each shader file its entry points, each with the constants that
/// were chosen for it.
pub fn kernels(rows: &[Case], caps: &Caps) -> Result<BTreeMap<&'static str, BTreeSet<String>>> {
    let mut kernels: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
    for case in rows {
        for dispatch in kernels_of(case, caps)? {
            let constants: Vec<String> =
                dispatch.constants.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let variant = format!("{} {}", dispatch.entry, constants.join(" "));
            kernels.entry(dispatch.shader.name).or_default().insert(variant.trim_end().to_string());
        }
    }
    Ok(kernels)
}

/// Runs `rows` on `device` and compares each with the f64 oracle, and times each if `bench`. A row that fails is an
/// [`Outcome`] like the others. `progress` hears the row about to run; its error ends the test.
pub fn self_test(
    device: &Device,
    rows: &[Case],
    bench: bool,
    progress: &mut dyn FnMut(usize, &Case) -> Result<()>,
) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::with_capacity(rows.len());
    for (index, case) in rows.iter().enumerate() {
        progress(index, case)?;
        let mut outcome = Outcome {
            op: case.op,
            what: case.what.clone(),
            worst: 0.0,
            allowed: case.tolerance,
            failure: None,
            timing: None,
        };
        match pollster::block_on(check_on(device, case)) {
            Ok(findings) => outcome.worst = findings.iter().map(|finding| finding.error).fold(0.0, f64::max),
            Err(error) => outcome.failure = Some(error.to_string()),
        }
        if bench && outcome.failure.is_none() {
            outcome.timing = Some(time_on(device, case)?);
        }
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_row_fails_alone_and_a_stop_is_obeyed() {
        let scaled = |factor: f32| {
            Case::new("pointwise", format!("times {factor}"), move |s| {
                let a = s.floats([3], vec![1.0, 2.0, 4.0], false);
                let b = crate::ops::scale(&mut s.graph, a, factor);
                s.result(b);
                Ok(())
            })
        };
        // 0.1 is no f32: its product with a float rounds, by less than 2^-24 but by more than nothing.
        let rows = [scaled(0.5), scaled(0.1).tolerance(-1.0)];
        let mut seen = Vec::new();
        let outcomes = self_test(&Device::cpu(), &rows, true, &mut |index, _| {
            seen.push(index);
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [0, 1]);
        assert_eq!((outcomes[0].worst, &outcomes[0].failure), (0.0, &None));
        assert!(outcomes[0].timing.is_some_and(|t| t.seconds > 0.0 && t.bytes == 24));
        assert!(outcomes[1].failure.as_ref().is_some_and(|text| text.contains("times 0.1")));
        let stopped = self_test(&Device::cpu(), &rows, false, &mut |_, _| Err(crate::Error::Cancelled));
        assert!(matches!(stopped, Err(crate::Error::Cancelled)));
    }

    #[test]
    fn the_kernels_of_the_table_are_named_with_their_constants() {
        let kernels = kernels(&rows(), &Caps::webgpu()).unwrap();
        assert!(kernels["pointwise"].contains("binary KIND=0u"), "{kernels:?}");
    }
}
