//! The results as Markdown, JSON and a plot.

use plotters::prelude::*;
use potstill::distill::memory::binary;
use potstill::formats::write_json;
use potstill::{Error, Result};
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

/// Writes speed.md, speed.json and speed.svg.
pub fn write(folder: &Path, found: &Value) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    write_json(&folder.join("speed.json"), found)?;
    let mut text = String::new();
    for device in found["devices"].as_array().into_iter().flatten() {
        section(&mut text, device);
    }
    let page = folder.join("speed.md");
    std::fs::write(&page, &text).map_err(Error::io("write", &page))?;
    let plot = folder.join("speed.svg");
    draw(&plot, found).map_err(|e| Error::file(&plot).expected("a plot").found(e).error())?;
    println!("{text}\n{}", page.display());
    Ok(())
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// A number with `digits` decimals, or a dash where it was not measured.
fn number(value: &Value, factor: f64, digits: usize) -> String {
    value.as_f64().map_or_else(|| "-".into(), |x| format!("{:.digits$}", x * factor))
}

fn bytes(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".into(), |x| binary((x / 1048576.0).round() as u64 * 1048576))
}

fn section(out: &mut String, device: &Value) {
    let ceiling = &device["ceiling"];
    let (gflops, gbps) = (number(&ceiling["gflops"], 1.0, 0), number(&ceiling["gbps"], 1.0, 1));
    let _ = writeln!(out, "### {}\n\nCeilings: {gflops} GFLOP/s in f32, {gbps} GB/s.\n", text(device, "device"));
    out.push_str(
        "| run | tokens/s | least to most | process memory | device memory | first step, s | processor s/step | KL to f32 |\n",
    );
    out.push_str("| --- | --- | --- | --- | --- | --- | --- | --- |\n");
    for run in device["runs"].as_array().into_iter().flatten().filter(|run| run["gflops"].is_null()) {
        let range = run["range"].as_array().map_or("-".into(), |range| {
            let [least, most] = [0, 1].map(|i| number(range.get(i).unwrap_or(&Value::Null), 1.0, 0));
            format!("{least} to {most}")
        });
        let _ = writeln!(
            out,
            "| {} | {} | {range} | {} | {} | {} | {} | {} |",
            text(run, "name"),
            number(&run["tokens_per_second"], 1.0, 0),
            bytes(&run["peak_memory"]),
            bytes(&run["device_memory"]),
            number(&run["first_step_seconds"], 1.0, 1),
            number(&run["processor_seconds"], 1.0, 2),
            run["kl_to_f32"].as_f64().map_or_else(|| "-".into(), |kl| format!("{kl:.1e}")),
        );
    }
    let products = device["runs"].as_array().into_iter().flatten().filter(|run| !run["gflops"].is_null());
    for (i, run) in products.enumerate() {
        let _ = writeln!(
            out,
            "{}- {}: {} GFLOP/s",
            if i == 0 { "\n" } else { "" },
            text(run, "name"),
            number(&run["gflops"], 1.0, 0)
        );
    }
    out.push_str("\n| per step | dispatches | submissions | host's share | uploaded | read back |\n");
    out.push_str("| --- | --- | --- | --- | --- | --- |\n");
    let ours = |run: &&Value| !run["dispatches"].is_null();
    for run in device["runs"].as_array().into_iter().flatten().filter(ours) {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} % | {} kB | {} kB |",
            text(run, "name"),
            number(&run["dispatches"], 1.0, 0),
            number(&run["submissions"], 1.0, 0),
            number(&run["submit_share"], 100.0, 2),
            number(&run["uploaded"], 1e-3, 0),
            number(&run["read_back"], 1e-3, 1),
        );
    }
    out.push_str(
        "\n| kernel, forward and backward | shape | ms | GFLOP/s | of the ceiling | GB/s | of the ceiling |\n",
    );
    out.push_str("| --- | --- | --- | --- | --- | --- | --- |\n");
    for kernel in device["kernels"].as_array().into_iter().flatten() {
        let share = |key: &str| {
            let (found, most) = (kernel[key].as_f64(), ceiling[key].as_f64());
            found.zip(most).map_or("-".into(), |(found, most)| format!("{:.0} %", 100.0 * found / most))
        };
        let _ = writeln!(
            out,
            "| {}, {} | {} | {} | {} | {} | {} | {} |",
            text(kernel, "model"),
            text(kernel, "what"),
            text(kernel, "shape"),
            number(&kernel["seconds"], 1e3, 2),
            number(&kernel["gflops"], 1.0, 1),
            share("gflops"),
            number(&kernel["gbps"], 1.0, 1),
            share("gbps"),
        );
    }
    out.push('\n');
}

/// A bar a run: tokens a second, one device below the other.
fn draw(path: &Path, found: &Value) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let devices: Vec<&Value> = found["devices"].as_array().into_iter().flatten().collect();
    let bars: usize = devices.iter().map(|device| device["runs"].as_array().map_or(0, Vec::len) + 2).sum();
    let (width, line) = (900, 24);
    let root = SVGBackend::new(path, (width, (line * bars + 16) as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut y = 8;
    for device in devices {
        let runs = device["runs"].as_array().into_iter().flatten().filter(|run| run["gflops"].is_null());
        let runs: Vec<&Value> = runs.collect();
        let speed = |run: &Value| run["tokens_per_second"].as_f64().unwrap_or(0.0);
        let most = runs.iter().map(|run| speed(run)).fold(1e-9, f64::max);
        let label = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
        root.draw(&Text::new(format!("{}, tokens a second", text(device, "device")), (10, y), label(15)))?;
        y += line as i32;
        for run in runs {
            let colour =
                if text(run, "name").contains("PyTorch") { RGBColor(150, 150, 150) } else { RGBColor(30, 110, 180) };
            let end = 330 + (speed(run) / most * 480.0) as i32;
            root.draw(&Text::new(text(run, "name").to_owned(), (10, y + 4), label(13)))?;
            root.draw(&Rectangle::new([(330, y + 2), (end, y + line as i32 - 4)], colour.filled()))?;
            root.draw(&Text::new(format!("{:.0}", speed(run)), (end + 6, y + 4), label(13)))?;
            y += line as i32;
        }
        y += line as i32;
    }
    root.present()?;
    Ok(())
}
