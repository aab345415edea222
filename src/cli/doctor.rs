//! `potstill doctor`: the machine and its self-test in words.

use super::args::{Cli, DoctorArgs};
use super::human::{binary, brief, count};
use super::interrupt;
use super::output::print;
use super::progress::Meter;
use super::table::{Align, Table};
use crate::device::{Caps, Device};
use crate::doctor::{Outcome, System, kernels, rows, self_test, system};
use crate::selftest::Case;
use crate::{Error, Result};
use std::collections::BTreeMap;

pub(super) fn run(cli: &Cli, args: &DoctorArgs) -> Result<()> {
    let system = system();
    print(&system_text(&system))?;
    let device = pollster::block_on(cli.device.open())?;
    let rows = rows();
    print(&device_text(&device))?;
    print(&kernels_text(&device, &rows, cli.verbose > 0)?)?;

    interrupt::listen();
    let mut meter = Meter::new("self-test", "rows", 0, Some(rows.len() as u64));
    let outcomes = self_test(&device, &rows, args.bench, &mut |index, case| {
        meter.note(format!("{}: {}", case.op, case.what));
        meter.set(index as u64);
        interrupt::check()
    })?;
    drop(meter);
    print(&outcomes_text(&outcomes))?;
    if args.bench || cli.verbose > 0 {
        print(&rows_text(&outcomes))?;
    }
    verdict(&outcomes, &device)
}

fn system_text(system: &System) -> String {
    let cpu = &system.cpu;
    let mut text = format!("CPU: {} threads, {}", cpu.threads, cpu.architecture);
    cpu.extensions.iter().for_each(|extension| text.push_str(&format!(", {extension}")));
    text.push_str("; matrix products by gemm\nAdapters:\n");
    if system.adapters.is_empty() {
        text.push_str("  none (Linux: a Vulkan driver is in the package mesa-vulkan-drivers)\n");
    }
    for adapter in &system.adapters {
        let chosen = if system.auto == Some(adapter.index) { "   <- --device auto" } else { "" };
        text.push_str(&format!("  {adapter}{chosen}\n"));
    }
    if system.auto.is_none() {
        let software = if system.adapters.is_empty() { "" } else { " (software drivers are for tests)" };
        text.push_str(&format!("`--device auto` takes the CPU{software}\n"));
    }
    text
}

fn device_text(device: &Device) -> String {
    let caps = device.caps();
    let mut text = format!("\nDevice: {}\n", device.name());
    if let Device::Gpu(_) = device {
        let mut table = Table::plain(2);
        caps_rows(caps, &mut table);
        text.push_str(&table.to_string());
    }
    text
}

fn caps_rows(caps: &Caps, table: &mut Table) {
    let default = Caps::webgpu();
    let beyond = |more: bool| if more { ", beyond WebGPU's default" } else { "" };
    let memory = |name: &str, bytes: u64, default: u64, table: &mut Table| {
        table.row([name.to_string(), format!("up to {}{}", binary(bytes), beyond(bytes > default))]);
    };
    memory("one buffer", caps.max_buffer, default.max_buffer, table);
    memory("one binding", caps.max_binding, default.max_binding, table);
    memory("workgroup memory", caps.workgroup_memory.into(), default.workgroup_memory.into(), table);
    let bindings = format!("{} storage buffers in a dispatch", caps.max_storage_buffers);
    table.row(["bindings".to_string(), bindings]);
    let grid =
        format!("{} workgroups a side, {} invocations each", count(caps.max_workgroups.into()), caps.max_invocations);
    table.row(["grid".to_string(), grid]);
    table.row([
        "shaders",
        if caps.trusted {
            "trusted: no bounds checks, no zeroed workgroup memory (POTSTILL_CHECKED=1 switches back)"
        } else {
            "checked: bounds checks and zeroed workgroup memory"
        },
    ]);
    let offered = |there| if there { "offered" } else { "not offered" };
    table.row(["16-bit floats", offered(caps.f16)]);
    table.row(["cooperative matrices", offered(caps.cooperative.is_some())]);
    if caps.software {
        table.row(["kind", "software rasteriser: right but slow, for tests"]);
    }
}

/// Which kernels the device's limits select.
fn kernels_text(device: &Device, rows: &[Case], all: bool) -> Result<String> {
    if let Device::Cpu(_) = device {
        return Ok("  runs every op's plain Rust\n".to_string());
    }
    let kernels = kernels(rows, device.caps())?;
    let variants: usize = kernels.values().map(|variants| variants.len()).sum();
    let mut text = format!("  runs {variants} kernels; shader files: {}", kernels.len());
    if !all {
        text.push_str("; -v lists them\n");
        return Ok(text);
    }
    text.push('\n');
    let mut table = Table::plain(2);
    for (shader, variants) in &kernels {
        variants.iter().for_each(|variant| table.row([*shader, variant]));
    }
    text.push_str(&table.to_string());
    Ok(text)
}

/// A line an op, then every row that failed.
fn outcomes_text(outcomes: &[Outcome]) -> String {
    let mut by_op: BTreeMap<&str, Vec<&Outcome>> = BTreeMap::new();
    outcomes.iter().for_each(|outcome| by_op.entry(outcome.op).or_default().push(outcome));
    let right = Align::Right;
    let columns =
        [("op", Align::Left), ("rows", right), ("worst error", right), ("of the allowed", right), ("", Align::Left)];
    let mut table = Table::new(&columns);
    for (op, outcomes) in &by_op {
        let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
        let worst = outcomes.iter().map(|outcome| outcome.worst).fold(0.0, f64::max);
        let share = outcomes.iter().map(|outcome| outcome.worst / outcome.allowed).fold(0.0, f64::max);
        let verdict = if failed == 0 { "ok".to_string() } else { format!("{failed} FAILED") };
        let error = (format!("{worst:.1e}"), format!("{:.0} %", 100.0 * share));
        table.row([op.to_string(), outcomes.len().to_string(), error.0, error.1, verdict]);
    }
    let mut text = format!("\nSelf-test against double precision\n{table}");
    let failures = outcomes.iter().filter_map(|outcome| outcome.failure.as_ref());
    failures.for_each(|failure| text.push_str(&format!("FAILED {failure}\n")));
    text
}

/// A line a row: its error and, where measured, its time.
fn rows_text(outcomes: &[Outcome]) -> String {
    let timed = outcomes.iter().any(|outcome| outcome.timing.is_some());
    let right = Align::Right;
    let mut columns = vec![("op", Align::Left), ("row", Align::Left), ("error", right)];
    if timed {
        columns.extend([("time", right), ("GFLOP/s", right), ("GB/s", right)]);
    }
    let mut table = Table::new(&columns);
    for outcome in outcomes {
        let error = outcome.failure.as_ref().map_or_else(|| format!("{:.1e}", outcome.worst), |_| "FAILED".to_string());
        let mut row = vec![outcome.op.to_string(), outcome.what.clone(), error];
        if let Some(timing) = &outcome.timing {
            let rate = |amount: u64| format!("{:.2}", amount as f64 / timing.seconds * 1e-9);
            row.extend([brief(timing.seconds), rate(timing.flops), rate(timing.bytes)]);
        }
        table.row(row);
    }
    let note = if timed { " (forward and backward; median; FLOPs and bytes as the ops estimate them)" } else { "" };
    format!("\nRows{note}\n{table}")
}

fn verdict(outcomes: &[Outcome], device: &Device) -> Result<()> {
    match outcomes.iter().filter(|outcome| outcome.failure.is_some()).count() {
        0 => print(&format!("\n{} rows, all right on {}\n", outcomes.len(), device.name())),
        failed => Err(Error::device(
            format!("{failed} of {} rows are wrong on {}", outcomes.len(), device.name()),
            "update its driver, or use another `--device`",
        )),
    }
}
