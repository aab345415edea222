//! docs/study.md and its plots.

use super::method::{Measured, Method, Run, Source, mean_sd};
use super::oracle::Oracle;
use super::pruned::Pruned;
use super::scratch::{Demand, Scratch};
use plotters::prelude::*;
use potstill::{Error, Result};
use std::fmt::Write;
use std::path::Path;

type Column = (&'static str, fn(&Measured) -> f64, usize);

/// Title, value, decimals.
const COLUMNS: [Column; 9] = [
    ("NLL", |m| m.evaluation.nll, 4),
    ("bits/byte", |m| m.evaluation.bits_per_byte.unwrap_or(f64::NAN), 4),
    ("KLD mean", |m| m.fidelity.kld.mean, 3),
    ("median", |m| m.fidelity.kld.median, 3),
    ("p95", |m| m.fidelity.kld.p95, 2),
    ("p99", |m| m.fidelity.kld.p99, 2),
    ("top-1 agreement", |m| m.evaluation.top1_agreement.unwrap_or(f64::NAN), 3),
    ("acceptance (tokens a draft of 4)", |m| m.fidelity.acceptance, 3),
    ("calibration error %", |m| 100.0 * m.fidelity.calibration_error, 1),
];

/// Writes the page and the plots beside it.
pub fn write(folder: &Path, scratch: &Scratch, oracle: &Oracle, pruned: &Pruned) -> Result<()> {
    let plots = folder.join("study");
    std::fs::create_dir_all(&plots).map_err(Error::io("create", &plots))?;
    curves(
        &plots.join("curves.svg"),
        ["NLL of the first 64 held-out sequences, from scratch", "step"],
        &curves_of(scratch),
    )?;
    let titles = ["held-out NLL after 1,000 steps, seed 0", "bytes a token"];
    curves(&plots.join("bytes.svg"), titles, &conventions(scratch))?;
    let runs: Vec<&Run> = scratch.results.iter().chain(&pruned.results).flat_map(|(_, runs)| runs).collect();
    let mut page = format!(
        "# The study\n\nEvery number on this page is written by\n\n    cargo bench --bench study\n\nwhose {} runs took \
         {:.0} minutes in all beside other work on two CPU cores, the teacher's training not counted. The text is the State of the Union addresses; all students of a \
         table see the same tokens in the same order from the same weights, seed by seed. Where a method has several seeds the \
         table shows their mean and standard deviation. *Acceptance* is the mean of sum min(p, q), the chance that the teacher \
         accepts a token the student drafts, and in brackets how many tokens a speculative step with four drafts yields.\n\n",
        runs.len(),
        runs.iter().map(|run| run.seconds).sum::<f64>() / 60.0,
    );
    let mut put = |text: &str| page.push_str(text);
    put(
        "## A pruned real student\n\nTeacher: SmolLM2-135M-Instruct (Q4_1 weights). Student: nine of its thirty layers; 80 steps of 512 tokens. The variants of \
         DistillKit's own study, and the last two together.\n\n",
    );
    put(&table(&pruned.teacher, &pruned.results, false));
    put(
        "\n## From scratch\n\nTeacher: 0.66M parameters, trained here on 4M tokens. Student: 43k parameters, random weights, 1,024 tokens a step, a \
         vocabulary of 512. *Gap* is the share of the way from plain text to the teacher, in NLL, at the same steps.\n\n",
    );
    put(&table(&scratch.teacher, &scratch.results, true));
    put(
        "\n![Held-out NLL by step](study/curves.svg)\n\n## Bytes a token\n\n![NLL after 1,000 steps by bytes a token](study/bytes.svg)\n\n",
    );
    put(&equal_bytes(scratch));
    put(&oracle.section());
    put("\n## The bar\n\n| | demand | found | met |\n| --- | --- | --- | --- |\n");
    for Demand { name, what, found, met } in scratch.bar()?.iter().chain(&oracle.bar()) {
        put(&format!("| {name} | {what} | {found} | {} |\n", if *met { "yes" } else { "**no**" }));
    }
    let path = folder.join("study.md");
    std::fs::write(&path, page).map_err(Error::io("write", &path))
}

fn table(teacher: &Measured, results: &[(Method, Vec<Run>)], gap: bool) -> String {
    let titles: Vec<&str> = COLUMNS.iter().map(|column| column.0).collect();
    let extra = if gap { " steps | bytes/token | gap |" } else { "" };
    let mut text =
        format!("| |{extra} {} |\n|{}\n", titles.join(" | "), " --- |".repeat(titles.len() + 1 + 3 * usize::from(gap)));
    let row = |text: &mut String, name: &str, extra: &str, all: &[&Measured]| {
        let cells = COLUMNS.iter().map(|(title, value, digits)| {
            let (mean, sd) = mean_sd(&all.iter().map(|m| value(m)).collect::<Vec<_>>());
            let spread = if all.len() > 1 { format!(" +- {sd:.digits$}") } else { String::new() };
            let drafts = mean_sd(&all.iter().map(|m| m.fidelity.accepted_tokens).collect::<Vec<_>>()).0;
            let drafts = if title.starts_with("acceptance") { format!(" ({drafts:.2})") } else { String::new() };
            format!(" {mean:.digits$}{spread}{drafts} |")
        });
        let _ = writeln!(text, "| {name} |{extra}{}", cells.collect::<String>());
    };
    row(&mut text, "teacher", if gap { " | | |" } else { "" }, &[teacher]);
    for (method, runs) in results {
        let all: Vec<&Measured> = runs.iter().map(|run| &run.measured).collect();
        let nll = |runs: &[Run]| mean_sd(&runs.iter().map(|run| run.measured.evaluation.nll).collect::<Vec<_>>()).0;
        let plain = results.iter().find(|(other, _)| other.source == Source::Text && other.steps == method.steps);
        let closed = plain
            .map_or(f64::NAN, |(_, plain)| 100.0 * (nll(plain) - nll(runs)) / (nll(plain) - teacher.evaluation.nll));
        let bytes = runs.first().and_then(|run| run.bytes_per_token).map_or("-".to_owned(), |b| format!("{b:.0}"));
        let extra = if gap { format!(" {} | {bytes} | {closed:.0} % |", method.steps) } else { String::new() };
        row(&mut text, method.name, &extra, &all);
    }
    text
}

type Curves = Vec<(String, Vec<(f64, f64)>)>;

fn curves_of(scratch: &Scratch) -> Curves {
    let shown = ["plain text", "full KL", "sampled 22", "top-50 ghost", "top-12 ghost", "top-12 zero"];
    let runs = scratch.results.iter().filter(|(method, _)| shown.contains(&method.name) && method.steps == 1000);
    let line = |(method, runs): &(Method, Vec<Run>)| {
        let points = runs[0].curve.iter().filter(|(step, _)| *step > 0).map(|(step, nll)| (*step as f64, *nll));
        (method.name.to_owned(), points.collect())
    };
    runs.map(line).collect()
}

/// A plot with its title and what its horizontal axis is.
fn curves(path: &Path, [title, horizontal]: [&str; 2], lines: &Curves) -> Result<()> {
    let all = || lines.iter().flat_map(|(_, points)| points.iter().copied());
    let (low, high) = all().fold((f64::MAX, f64::MIN), |(low, high), (_, y)| (low.min(y), high.max(y)));
    let last = all().fold(0.0, |last: f64, (x, _)| last.max(x));
    let draw = || -> std::result::Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::new(path, (720, 400)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(32)
            .y_label_area_size(44)
            .build_cartesian_2d(0.0..last, low - 0.05..high.min(low + 2.0))?;
        let whole = |x: &f64| format!("{x:.0}");
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(horizontal).y_desc("NLL").x_label_formatter(&whole).light_line_style(WHITE).draw()?;
        for (i, (name, points)) in lines.iter().enumerate() {
            let colour = Palette99::pick(i).stroke_width(2);
            let legend = move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour);
            chart.draw_series(LineSeries::new(points.iter().copied(), colour))?.label(name).legend(legend);
        }
        let corner = SeriesLabelPosition::UpperRight;
        chart.configure_series_labels().position(corner).background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
        root.present()?;
        Ok(())
    };
    draw().map_err(|error| Error::internal(format!("{}: {error}", path.display())))
}

/// NLL after 1,000 steps by bytes a token, of each way to store and to read records; of seed 0, which all ran with.
fn conventions(scratch: &Scratch) -> Curves {
    let of = |kind: &dyn Fn(&Method) -> bool| -> Vec<(f64, f64)> {
        let runs = scratch.results.iter().filter(|(method, _)| method.steps == 1000 && kind(method));
        let mut points: Vec<(f64, f64)> = runs
            .filter_map(|(_, runs)| {
                let run = runs.first()?;
                Some((run.bytes_per_token?, run.measured.evaluation.nll))
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    vec![
        ("sampled".to_owned(), of(&|m| matches!(m.source, Source::Sampled(_)))),
        ("top-k, ghost".to_owned(), of(&|m| m.name.starts_with("top-") && m.name.ends_with("ghost"))),
        ("top-k, uniform".to_owned(), of(&|m| m.name.ends_with("uniform"))),
        ("top-k, ghost + CE 0.1".to_owned(), of(&|m| m.name.starts_with("top-") && m.name.ends_with("CE 0.1"))),
        ("top-k, zero".to_owned(), of(&|m| m.name.ends_with("zero"))),
    ]
}

/// The conventions at equal sizes: those of the smallest and the largest top-k records, between measured sizes by a line
/// over the logarithm of the bytes.
fn equal_bytes(scratch: &Scratch) -> String {
    let all = conventions(scratch);
    let (ends, mut text) = (sizes(&all, "top-k, ghost"), String::new());
    let titles: String = ends.iter().map(|bytes| format!(" NLL at {bytes:.0} bytes/token |")).collect();
    let _ = writeln!(text, "Of seed 0:\n\n| records |{titles}\n| --- |{}", " --- |".repeat(ends.len()));
    for (name, points) in &all {
        let at = |bytes: &f64| between(points, *bytes).map_or(" - |".to_owned(), |nll| format!(" {nll:.4} |"));
        let _ = writeln!(text, "| {name} |{}", ends.iter().map(at).collect::<String>());
    }
    text.push('\n');
    text
}

/// The smallest and the largest size of one convention.
fn sizes(all: &Curves, name: &str) -> Vec<f64> {
    let points = all.iter().find(|(other, _)| other == name).map_or(&[][..], |(_, points)| points);
    points.first().into_iter().chain(points.last()).map(|(bytes, _)| *bytes).collect()
}

/// The value at `x`, by a line over ln x between the neighbours; none outside of them.
fn between(points: &[(f64, f64)], x: f64) -> Option<f64> {
    let at = |pair: &[(f64, f64)]| {
        let ((a, low), (b, high)) = (pair[0], pair[1]);
        (a..=b).contains(&x).then(|| low + (high - low) * (x / a).ln() / (b / a).ln())
    };
    points.windows(2).find_map(at)
}
