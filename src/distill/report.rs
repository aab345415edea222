//! `report.html`: one page that says what a run did. It needs nothing but itself: no script, no font, no image from
//! elsewhere; curves are inline SVG, and the page follows the reader's light or dark setting.

use minijinja::{Value, context};

use crate::distill::metrics::{Evaluation, Record, Train};
use crate::distill::svg::{Chart, Series, Style};
use crate::{Error, Result};

/// The style that all pages share.
pub(crate) const PAGE_STYLE: &str = include_str!("page.css");

/// Everything on the page. Texts may hold anything; they are escaped.
#[derive(Clone, Debug, Default)]
pub struct ReportData {
    /// The run's name.
    pub title: String,
    /// One line below it: what was made of what.
    pub subtitle: String,
    /// The teacher on the held-out text.
    pub teacher: Option<Evaluation>,
    /// The student on it before training.
    pub before: Option<Evaluation>,
    /// The student on it after training.
    pub after: Option<Evaluation>,
    /// Other models on it, such as a twin trained on text alone, with their names.
    pub others: Vec<(String, Evaluation)>,
    /// All of `metrics.jsonl`.
    pub records: Vec<Record>,
    /// What the models make of a few prompts.
    pub samples: Vec<Sample>,
    /// What the recipe was warned of.
    pub warnings: Vec<String>,
    /// Device, times, lineage.
    pub facts: Vec<Facts>,
    /// The recipe as YAML.
    pub recipe: String,
}

/// How models go on from one prompt, chosen and decoded alike.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// What they were given.
    pub prompt: String,
    /// The untrained student.
    pub before: String,
    /// The trained student.
    pub after: String,
    /// The teacher.
    pub teacher: Option<String>,
}

/// A table of names and values.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Its heading.
    pub title: String,
    /// Name and value.
    pub rows: Vec<(String, String)>,
}

/// The page as HTML.
///
/// Errors only for a bug in the page's template.
pub fn html(data: &ReportData) -> Result<String> {
    let internal = |error: minijinja::Error| Error::internal(format!("report.html: {error:#}"));
    let mut environment = minijinja::Environment::new();
    environment.add_template("page.css", PAGE_STYLE).map_err(internal)?;
    // The name's ending turns escaping on.
    environment.add_template("report.html", include_str!("report.html")).map_err(internal)?;
    let template = environment.get_template("report.html").map_err(internal)?;
    let page = context! {
        title => data.title.as_str(),
        subtitle => data.subtitle.as_str(),
        columns => COLUMNS.to_vec(),
        scores => scores(data),
        change => change(data),
        charts => drawings(data),
        samples => data.samples.iter().map(Sample::value).collect::<Vec<_>>(),
        warnings => data.warnings.clone(),
        facts => data.facts.iter().map(Facts::value).collect::<Vec<_>>(),
        recipe => data.recipe.as_str(),
        version => env!("CARGO_PKG_VERSION"),
    };
    template.render(page).map_err(internal)
}

const COLUMNS: [(&str, &str); 4] = [
    ("NLL", "nats a token, lower is better"),
    ("Bits per byte", "lower is better"),
    ("KLD to teacher", "nats a token, lower is better"),
    ("Top-1 agreement", "with the teacher, higher is better"),
];

impl Sample {
    fn value(&self) -> Value {
        context! {
            prompt => self.prompt.as_str(),
            before => self.before.as_str(),
            after => self.after.as_str(),
            teacher => self.teacher.as_deref(),
        }
    }
}

impl Facts {
    fn value(&self) -> Value {
        context! { title => self.title.as_str(), rows => self.rows.clone() }
    }
}

fn numbers(e: &Evaluation) -> [Option<f64>; 4] {
    [Some(e.nll), e.bits_per_byte, e.kld, e.top1_agreement]
}

fn cell(column: usize, value: Option<f64>) -> String {
    match value {
        None => "\u{2013}".to_string(),
        Some(value) if column == 3 => format!("{:.1}%", 100.0 * value),
        Some(value) => format!("{value:.4}"),
    }
}

fn scores(data: &ReportData) -> Vec<Value> {
    let row = |name: &str, evaluation: &Evaluation, after: bool| {
        let cells: Vec<String> = numbers(evaluation).into_iter().enumerate().map(|(i, v)| cell(i, v)).collect();
        context! { name => name, cells => cells, after => after }
    };
    let mut rows = Vec::new();
    rows.extend(data.teacher.iter().map(|e| row("Teacher", e, false)));
    rows.extend(data.before.iter().map(|e| row("Student before", e, false)));
    rows.extend(data.others.iter().map(|(name, e)| row(name, e, false)));
    rows.extend(data.after.iter().map(|e| row("Student after", e, true)));
    rows
}

/// What training changed in each column: as text, and whether for the better.
fn change(data: &ReportData) -> Option<Vec<Value>> {
    let (before, after) = (numbers(data.before.as_ref()?), numbers(data.after.as_ref()?));
    let change = |column: usize| {
        let (Some(before), Some(after)) = (before[column], after[column]) else {
            return context! { text => "\u{2013}" };
        };
        let by = after - before;
        let sign = if by < 0.0 { "\u{2212}" } else { "+" };
        let text = match column {
            3 => format!("{sign}{:.1} points", 100.0 * by.abs()),
            _ => format!("{sign}{:.4}", by.abs()),
        };
        context! { text => text, better => (by != 0.0).then_some((by > 0.0) == (column == 3)) }
    };
    Some((0..4).map(change).collect())
}

fn drawings(data: &ReportData) -> Vec<Value> {
    let drawing = |(id, chart): (usize, Chart)| {
        let svg = chart.svg(id)?;
        let entry = |(i, series): (usize, &Series)| {
            context! { colour => i % 4 + 1, name => series.name.as_str(), last => chart.last(series) }
        };
        let legend: Vec<Value> = chart.series.iter().enumerate().map(entry).collect();
        Some(context! { title => chart.title, note => chart.note, svg => svg, legend => legend })
    };
    charts(data).into_iter().enumerate().filter_map(drawing).collect()
}

fn charts(data: &ReportData) -> Vec<Chart> {
    let train: Vec<&Train> = data
        .records
        .iter()
        .filter_map(|record| if let Record::Train(train) = record { Some(train) } else { None })
        .collect();
    let trained = |title, note, name: &str, style, value: fn(&Train) -> f64| {
        let points = train.iter().map(|t| (t.step as f64, value(t))).collect();
        Chart {
            title,
            note,
            series: vec![Series { name: name.into(), points }],
            reference: None,
            percent: false,
            style,
        }
    };
    let mut loss = trained("Training loss", "weighted sum and its terms", "loss", Style::Noisy, |t| t.loss);
    loss.series.extend(terms(&train));
    vec![
        loss,
        measured(data, 0, "Held-out NLL", "nats a token, lower is better"),
        measured(data, 1, "Held-out bits per byte", "lower is better"),
        measured(data, 2, "Held-out KLD to the teacher", "nats a token, lower is better"),
        measured(data, 3, "Top-1 agreement with the teacher", "higher is better"),
        trained("Learning rate", "", "learning rate", Style::Plain, |t| t.learning_rate),
        trained("Gradient norm", "before clipping", "norm", Style::Noisy, |t| t.grad_norm),
        trained("Speed", "tokens a second", "tokens/s", Style::Noisy, |t| t.tokens_per_second),
    ]
}

/// Each loss function's curve; none for a single one, which is the loss itself but for its weight.
fn terms(train: &[&Train]) -> Vec<Series> {
    let mut names: Vec<&String> = train.iter().flat_map(|t| t.losses.keys()).collect();
    names.sort();
    names.dedup();
    let series = |name: &&String| {
        let points = train.iter().filter_map(|t| Some((t.step as f64, *t.losses.get(*name)?))).collect();
        Series { name: name.to_string(), points }
    };
    if names.len() > 1 { names.iter().map(series).collect() } else { Vec::new() }
}

/// The curve of one column of the table of scores.
fn measured(data: &ReportData, column: usize, title: &'static str, note: &'static str) -> Chart {
    let point = |record: &Record| match record {
        Record::Eval(eval) => Some((eval.step as f64, numbers(&eval.evaluation)[column]?)),
        Record::Train(_) => None,
    };
    let points = data.records.iter().filter_map(point).collect();
    // The teacher agrees with itself: a line there would only squeeze the curve.
    let teacher = data.teacher.as_ref().filter(|_| column < 2);
    Chart {
        title,
        note,
        series: vec![Series { name: "student".into(), points }],
        reference: teacher.and_then(|teacher| Some(("teacher".into(), numbers(teacher)[column]?))),
        percent: column == 3,
        style: Style::Dots,
    }
}
