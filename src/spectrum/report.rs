//! The scan as one page: charts, tables and the list. It needs nothing but itself.

use super::bars::{bars, number};
use super::choice::{Chosen, Kind};
use crate::distill::report::PAGE_STYLE;
use crate::{Error, Result};
use minijinja::{Environment, Value, context};

/// Everything on the page. Texts may hold anything; they are escaped.
#[derive(Clone, Debug, Default)]
pub struct ReportData {
    /// The model.
    pub title: String,
    /// One line below it: what was chosen, by which score.
    pub subtitle: String,
    /// Names and values: files, times.
    pub facts: Vec<(String, String)>,
}

/// The page as HTML.
///
/// Errors only for a bug in the page's template.
pub fn html(data: &ReportData, chosen: &Chosen) -> Result<String> {
    let internal = |error: minijinja::Error| Error::internal(format!("spectrum.html: {error:#}"));
    let mut environment = Environment::new();
    environment.add_template("page.css", PAGE_STYLE).map_err(internal)?;
    // The name's ending turns escaping on.
    environment.add_template("report.html", include_str!("report.html")).map_err(internal)?;
    let drawing = |(id, bars): (usize, super::Bars)| {
        context! { kind => bars.kind.as_str(), summary => bars.summary(), svg => bars.svg(id) }
    };
    let page = context! {
        title => data.title.as_str(),
        subtitle => data.subtitle.as_str(),
        charts => bars(chosen).into_iter().enumerate().map(drawing).collect::<Vec<_>>(),
        kinds => chosen.kinds.iter().map(row).collect::<Vec<_>>(),
        facts => data.facts.clone(),
        yaml => chosen.yaml(),
        version => env!("CARGO_PKG_VERSION"),
    };
    environment.get_template("report.html").and_then(|template| template.render(page)).map_err(internal)
}

/// A type's row in the table.
fn row(kind: &Kind) -> Value {
    let score = |at: usize| kind.modules.get(at).map_or("\u{2013}".to_owned(), |(_, score)| number(*score));
    let cells = [
        kind.modules.len().to_string(),
        kind.chosen.to_string(),
        score(0),
        kind.chosen.checked_sub(1).map_or("\u{2013}".to_owned(), score),
        score(kind.modules.len().saturating_sub(1)),
    ];
    context! { name => kind.name.as_str(), cells => cells.to_vec() }
}
