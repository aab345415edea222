//! Line charts as inline SVG: no script, no external resource, colours from the page's style sheet.

use std::fmt::Write;

/// One line of a chart.
pub(super) struct Series {
    /// Its name in the legend.
    pub name: String,
    /// (step, value), steps ascending.
    pub points: Vec<(f64, f64)>,
}

/// One chart.
pub(super) struct Chart {
    /// What is drawn.
    pub title: &'static str,
    /// A word or two behind the title: the unit, which direction is better.
    pub note: &'static str,
    /// The lines; at most four have a colour of their own.
    pub series: Vec<Series>,
    /// A level to compare with, and whose it is.
    pub reference: Option<(String, f64)>,
    /// Values are shares, written as percentages.
    pub percent: bool,
    /// How the lines are drawn.
    pub style: Style,
}

/// How lines are drawn.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Style {
    /// As they are.
    Plain,
    /// Few, separate measurements: with a dot each.
    Dots,
    /// Many that scatter: thin, and their moving average bold.
    Noisy,
}

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 468.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 192.0;
/// More points than this are averaged in groups before drawing.
const MOST_POINTS: usize = 400;
/// Fewer points than this are no crowd: there is nothing to average.
const CROWD: usize = 40;

/// Where data lie on the drawing.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
}

impl Axes {
    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let part = |value: f64, (low, high): (f64, f64)| (value - low) / (high - low);
        (LEFT + part(x, self.x) * (RIGHT - LEFT), BOTTOM - part(y, self.y) * (BOTTOM - TOP))
    }
}

impl Chart {
    /// The drawing, or `None` if there is nothing to draw. `id` tells charts of one page apart.
    pub fn svg(&self, id: usize) -> Option<String> {
        let values = || self.series.iter().flat_map(|series| &series.points).copied();
        values().next()?;
        let levels = values().map(|(_, y)| y).chain(self.reference.iter().map(|(_, y)| *y));
        let axes = Axes { x: bounds(values().map(|(x, _)| x), 0.0), y: bounds(levels, 0.06) };
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"c{id}t c{id}d\">\
             <title id=\"c{id}t\">{}</title><desc id=\"c{id}d\">{}</desc>",
            escape(self.title),
            escape(&self.description())
        );
        self.draw_grid(&mut svg, &axes);
        if let Some((name, level)) = &self.reference {
            let (_, y) = axes.at((0.0, *level));
            let above = if y < TOP + 16.0 { y + 13.0 } else { y - 5.0 };
            put(&mut svg, format_args!("<path class=\"ref\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>"));
            let label = format!("{} {}", name, self.label(*level));
            let text = escape(&label);
            put(&mut svg, format_args!("<text class=\"end\" x=\"{RIGHT}\" y=\"{above:.1}\">{text}</text>"));
        }
        for (i, series) in self.series.iter().enumerate() {
            self.draw_series(&mut svg, &axes, series, i % 4 + 1);
        }
        svg.push_str("</svg>");
        Some(svg)
    }

    fn draw_grid(&self, svg: &mut String, axes: &Axes) {
        let step = nice_step(axes.y, 5.0);
        for tick in ticks(axes.y, step) {
            let (_, y) = axes.at((0.0, tick));
            put(svg, format_args!("<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>"));
            let (x, y, text) = (LEFT - 7.0, y + 4.0, self.tick(tick, step));
            put(svg, format_args!("<text class=\"end\" x=\"{x}\" y=\"{y:.1}\">{text}</text>"));
        }
        let step = nice_step(axes.x, 6.0).max(1.0);
        for tick in ticks(axes.x, step) {
            let (x, _) = axes.at((tick, 0.0));
            // The last label would run over the edge if it were centred there.
            let class = if x > RIGHT - 12.0 { "end" } else { "mid" };
            let (y, text) = (BOTTOM + 18.0, thousands(tick));
            put(svg, format_args!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y}\">{text}</text>"));
        }
        put(svg, format_args!("<path class=\"axis\" d=\"M{LEFT} {BOTTOM}H{RIGHT}\"/>"));
    }

    fn draw_series(&self, svg: &mut String, axes: &Axes, series: &Series, colour: usize) {
        let points = grouped(&series.points, MOST_POINTS);
        if self.style != Style::Noisy || points.len() < CROWD {
            put(svg, format_args!("<path class=\"line s{colour}\" d=\"{}\"/>", path(axes, &points)));
        } else {
            put(svg, format_args!("<path class=\"raw s{colour}\" d=\"{}\"/>", path(axes, &points)));
            let smooth = moving_average(&points);
            put(svg, format_args!("<path class=\"line s{colour}\" d=\"{}\"/>", path(axes, &smooth)));
        }
        if self.style == Style::Dots {
            for &point in &points {
                let (x, y) = axes.at(point);
                let title = format!("{}, step {}: {}", series.name, thousands(point.0), self.label(point.1));
                put(svg, format_args!("<circle class=\"dot s{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\">"));
                put(svg, format_args!("<title>{}</title></circle>", escape(&title)));
            }
        }
    }

    /// The chart in words.
    fn description(&self) -> String {
        let mut sentences = Vec::new();
        for Series { name, points } in &self.series {
            let (Some(first), Some(last)) = (points.first(), points.last()) else { continue };
            sentences.push(format!(
                "{name}: {} at step {} to {} at step {}.",
                self.label(first.1),
                thousands(first.0),
                self.label(last.1),
                thousands(last.0)
            ));
        }
        if let Some((name, level)) = &self.reference {
            sentences.push(format!("{name}: {}.", self.label(*level)));
        }
        sentences.join(" ")
    }

    /// The last value, for the legend.
    pub fn last(&self, series: &Series) -> String {
        series.points.last().map_or(String::new(), |(_, y)| self.label(*y))
    }

    /// A value with four significant digits.
    fn label(&self, value: f64) -> String {
        if self.percent {
            return format!("{:.1}%", 100.0 * value);
        }
        significant(value, 4)
    }

    fn tick(&self, value: f64, step: f64) -> String {
        let (value, step) = if self.percent { (100.0 * value, 100.0 * step) } else { (value, step) };
        let unit = if self.percent { "%" } else { "" };
        if value.abs() < 1e-6 * step {
            return format!("0{unit}");
        }
        if step < 1e-3 {
            return scientific(value, 1);
        }
        let decimals = (-step.log10()).ceil().max(0.0) as usize;
        if decimals == 0 { thousands(value) + unit } else { minus(format!("{value:.decimals$}{unit}")) }
    }
}

pub(crate) fn put(svg: &mut String, piece: std::fmt::Arguments) {
    // Writing to a String cannot fail.
    let _ = svg.write_fmt(piece);
}

fn path(axes: &Axes, points: &[(f64, f64)]) -> String {
    let mut d = String::new();
    for (i, &point) in points.iter().enumerate() {
        let (x, y) = axes.at(point);
        put(&mut d, format_args!("{}{x:.1} {y:.1}", if i == 0 { "M" } else { "L" }));
    }
    d
}

/// The least and largest value, widened by a share of their distance, and to something where they are one.
fn bounds(values: impl Iterator<Item = f64>, margin: f64) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if high > low {
        let margin = margin * (high - low);
        return (low - margin, high + margin);
    }
    let margin = (0.05 * low.abs()).max(1e-9);
    (low - margin, high + margin)
}

/// 1, 2 or 5 times a power of ten, so that about `count` steps span the range.
pub(crate) fn nice_step((low, high): (f64, f64), count: f64) -> f64 {
    let rough = (high - low) / count;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= rough * 0.999).unwrap_or(10.0);
    factor * power
}

pub(crate) fn ticks((low, high): (f64, f64), step: f64) -> impl Iterator<Item = f64> {
    let first = (low / step - 1e-9).ceil();
    let count = ((high / step + 1e-9).floor() - first).clamp(-1.0, 50.0) as i64;
    (0..=count).map(move |i| (first + i as f64) * step)
}

/// Means of neighbouring points, so that at most `most` are left.
fn grouped(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(most).max(1);
    let mean = |group: &[(f64, f64)]| {
        let (x, y) = group.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0, y + p.1));
        (x / group.len() as f64, y / group.len() as f64)
    };
    points.chunks(size).map(mean).collect()
}

/// Centred, over about a twentieth of the points, so that a slope stays where it is. Towards the ends over fewer, and
/// not where those would be too few to average.
fn moving_average(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = points.len() / 40 + 1;
    let mean = |i: usize| {
        let reach = reach.min(i).min(points.len() - 1 - i);
        let window = &points[i - reach..=i + reach];
        (points[i].0, window.iter().map(|(_, y)| y).sum::<f64>() / window.len() as f64)
    };
    (reach / 2..points.len() - reach / 2).map(mean).collect()
}

/// A number with so many significant digits: `3.142`, `12,346`, `5e-4`.
pub(crate) fn significant(value: f64, digits: i32) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".to_string();
    }
    if size < 1e-3 {
        return scientific(value, digits - 1);
    }
    let decimals = digits - 1 - size.log10().floor() as i32;
    if decimals <= 0 { thousands(value) } else { minus(format!("{value:.*}", decimals as usize)) }
}

/// `5e-4`, `2.57e-4`: without trailing zeros.
fn scientific(value: f64, decimals: i32) -> String {
    let text = format!("{value:.*e}", decimals.max(0) as usize);
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let mantissa = if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
    minus(format!("{mantissa}e{exponent}"))
}

/// A whole number with commas.
fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value <= -0.5 { format!("\u{2212}{text}") } else { text }
}

fn minus(text: String) -> String {
    text.replace('-', "\u{2212}")
}

/// Text for SVG and HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        let written: Vec<String> =
            [3.2468, 12345.6, 0.0005, 0.0, -2.5, 0.012345].into_iter().map(|v| significant(v, 4)).collect();
        assert_eq!(written, ["3.247", "12,346", "5e\u{2212}4", "0", "\u{2212}2.500", "0.01235"]);
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let at = |range, count| ticks(range, nice_step(range, count)).collect::<Vec<_>>();
        assert_eq!(at((0.0, 100.0), 5.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(at((3.1, 6.9), 4.0), [4.0, 5.0, 6.0]);
        assert_eq!(at((7.0, 7.5), 4.0), [7.0, 7.2, 7.4].map(|v: f64| (v / 0.2).round() * 0.2));
    }

    #[test]
    fn averages_keep_a_slope_and_halve_noise() {
        let points: Vec<(f64, f64)> = (0..999).map(|i| (f64::from(i), 2.5 * f64::from(i))).collect();
        let drawn = moving_average(&grouped(&points, 400));
        assert_eq!(drawn.len(), 333 - 2 * 4);
        assert!(drawn.iter().all(|(x, y)| (y - 2.5 * x).abs() < 1e-9));
        let alternating: Vec<(f64, f64)> = (0..80).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        // Windows of 7: three or four ones in each.
        assert!(moving_average(&alternating)[2..76].iter().all(|(_, y)| (y - 0.5).abs() < 0.5 / 7.0 + 1e-9));
    }

    #[test]
    fn a_chart_of_anything_is_well_formed() {
        let chart = |points: Vec<(f64, f64)>, style| Chart {
            title: "a < b",
            note: "",
            series: vec![Series { name: "<x>".into(), points }],
            reference: Some(("T & U".into(), 1.0)),
            percent: false,
            style,
        };
        assert!(chart(vec![], Style::Dots).svg(0).is_none());
        for points in [vec![(0.0, 1.0)], vec![(5.0, -1e30), (6.0, 1e30)], vec![(1.0, 0.0), (2.0, 0.0)]] {
            let svg = chart(points, Style::Dots).svg(0).unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert!(svg.contains("a &lt; b") && svg.contains("&lt;x&gt;") && svg.contains("T &amp; U"));
        }
    }
}
