//! `potstill distill`: follow a recipe.

use super::args::{Cli, DistillArgs};
use super::human::{binary, count};
use super::interrupt;
use super::output::print;
use super::progress::{Meter, say};
use super::table::{Align, Table};
use crate::Result;
use crate::device::Choice;
use crate::distill::metrics::Evaluation;
use crate::distill::{Event, Outcome, Recipe, distill};

pub(super) fn run(cli: &Cli, args: &DistillArgs) -> Result<()> {
    let mut recipe = Recipe::load(&args.recipe)?;
    if cli.device != Choice::Auto {
        recipe.device = cli.device.to_string();
    }
    let outcome = train(&recipe, args.overwrite, "distill")?;
    let mut table = scores();
    let rows = [("before", outcome.before), ("after", outcome.after)];
    rows.into_iter().filter_map(|(name, e)| Some((name, e?))).for_each(|(name, e)| table.row(cells(name, &e)));
    print(&format!("{table}\n{}", summary(&outcome)))
}

/// [`distill`] with a bar; Ctrl-C saves a checkpoint and stops.
pub(super) fn train(recipe: &Recipe, overwrite: bool, what: &str) -> Result<Outcome> {
    interrupt::listen();
    let mut meter: Option<Meter> = None;
    let outcome = distill(recipe, overwrite, &mut |event| {
        match event {
            Event::Planned { device, memory, parameters, tokens, warnings } => {
                say(&format!(
                    "{what}: {} parameters, {} tokens of text, on {device}",
                    count(parameters as u64),
                    count(tokens as u64)
                ));
                say(&format!("{what}: planned memory {memory}"));
                warnings.iter().for_each(|warning| say(&format!("warning: {warning}")));
            }
            Event::Started { step, total } => meter = Some(Meter::new(what, "steps", step, Some(total))),
            Event::Step { report, done, tokens_per_second } => {
                // Of the steps told of together only the newest says how far the run is.
                if let Some(meter) = meter.as_mut().filter(|_| report.step == done) {
                    meter.note(format!("loss {:.4}, {tokens_per_second:.0} tokens/s", report.loss));
                    meter.set(done);
                }
            }
            Event::Evaluated { step, evaluation } => {
                say(&format!("{what}: step {step}: {}", line(evaluation)));
                if let Some(meter) = &mut meter {
                    meter.begin();
                }
            }
            Event::Saved { .. } => {}
        }
        interrupt::flow()
    })?;
    if let Some(meter) = meter {
        meter.finish();
    }
    Ok(outcome)
}

fn line(e: &Evaluation) -> String {
    let mut line = format!("held-out NLL {:.4}", e.nll);
    for (name, value) in [("bits/byte", e.bits_per_byte), ("KLD", e.kld), ("top-1 agreement", e.top1_agreement)] {
        if let Some(value) = value {
            line.push_str(&format!(", {name} {value:.4}"));
        }
    }
    line
}

/// A table for evaluations; rows from [`cells`].
pub(super) fn scores() -> Table {
    let right = Align::Right;
    Table::new(&[("", Align::Left), ("NLL", right), ("bits/byte", right), ("KLD", right), ("top-1 agreement", right)])
}

pub(super) fn cells(name: &str, e: &Evaluation) -> [String; 5] {
    let number = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.4}"));
    [name.to_owned(), number(Some(e.nll)), number(e.bits_per_byte), number(e.kld), number(e.top1_agreement)]
}

fn summary(outcome: &Outcome) -> String {
    let mut text = format!("student: {}\n", outcome.folder.display());
    if outcome.tokens_per_second > 0.0 {
        text.push_str(&format!("speed: {:.0} tokens/s\n", outcome.tokens_per_second));
    }
    if let Some(peak) = outcome.peak_memory {
        text.push_str(&format!("peak memory: {}\n", binary(peak)));
    }
    text.push_str(&format!("report: {}\n", outcome.folder.join("report.html").display()));
    text
}
