//! Scores as bars, one chart for each type: in the terminal and as SVG.

use super::choice::Chosen;
use super::listing::{block, natural};
use crate::distill::svg::{escape, nice_step, put, significant, ticks};
use std::fmt::Write;

/// One module's bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// The module.
    pub name: String,
    /// The number of its block, if it is in one.
    pub block: Option<u64>,
    /// Its score.
    pub score: f64,
    /// Whether it was chosen.
    pub chosen: bool,
}

/// The bars of one type, in the order of the blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct Bars {
    /// The type.
    pub kind: String,
    /// The bars.
    pub bars: Vec<Bar>,
}

/// Lines that a bar in the terminal is high.
const LINES: usize = 4;
/// Eighths of a line, from none.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// More bars than this go below one another in the terminal.
const WIDEST: usize = 96;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 180.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 468.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 154.0;

/// The charts of a choice.
pub fn bars(chosen: &Chosen) -> Vec<Bars> {
    let one = |kind: &super::Kind| {
        let bar = |(i, (name, score)): (usize, &(String, f64))| {
            let (name, score, chosen) = (name.clone(), *score, i < kind.chosen);
            Bar { block: block(&name), name, score, chosen }
        };
        let mut bars: Vec<Bar> = kind.modules.iter().enumerate().map(bar).collect();
        bars.sort_by_cached_key(|bar| natural(&bar.name));
        Bars { kind: kind.name.clone(), bars }
    };
    chosen.kinds.iter().map(one).collect()
}

impl Bars {
    /// How many are chosen, of how many, with which scores: `15 of 30, 0.08481 to 0.3481`.
    pub fn summary(&self) -> String {
        let chosen = self.bars.iter().filter(|bar| bar.chosen).count();
        let scores = || self.bars.iter().map(|bar| bar.score).filter(|score| !score.is_nan());
        let (low, high) = scores().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), s| (l.min(s), h.max(s)));
        match low <= high {
            true => {
                let log = if self.scale().low.is_some() { ", logarithmic" } else { "" };
                format!("{chosen} of {}, {} to {}{log}", self.bars.len(), number(low), number(high))
            }
            false => format!("{chosen} of {}, no scores", self.bars.len()),
        }
    }

    /// The chart in characters, a column for each bar, with a star below each that is chosen.
    pub fn text(&self) -> String {
        let scale = self.scale();
        let mut text = format!("  {}: {}\n", self.kind, self.summary());
        for bars in self.bars.chunks(WIDEST) {
            for line in (0..LINES).rev() {
                let cell = |bar: &Bar| {
                    let height = scale.height(bar.score);
                    // Whatever is above zero shows; what is a whole number of eighths but for rounding is that number.
                    let least = f64::from(u8::from(height > 0.0));
                    let height = (height * (8 * LINES) as f64 - 1e-6).ceil().max(least) as usize;
                    EIGHTHS[height.saturating_sub(8 * line).min(8)]
                };
                let _ = writeln!(text, "    {}", bars.iter().map(cell).collect::<String>().trim_end());
            }
            let stars: String = bars.iter().map(|bar| if bar.chosen { '*' } else { ' ' }).collect();
            let _ = writeln!(text, "    {}", stars.trim_end());
        }
        text
    }

    /// The chart as SVG; `id` tells charts of one page apart.
    pub fn svg(&self, id: usize) -> String {
        let scale = self.scale();
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"c{id}t c{id}d\"><title id=\"c{id}t\">{}\
             </title><desc id=\"c{id}d\">{}</desc>",
            escape(&self.kind),
            escape(&self.summary())
        );
        let digits = if scale.low.is_some() { 1 } else { 2 };
        for tick in scale.ticks() {
            let y = BOTTOM - scale.height(tick) * (BOTTOM - TOP);
            put(&mut svg, format_args!("<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>"));
            let (x, y, text) = (LEFT - 7.0, y + 4.0, significant(tick, digits));
            put(&mut svg, format_args!("<text class=\"end\" x=\"{x}\" y=\"{y:.1}\">{text}</text>"));
        }
        let width = (RIGHT - LEFT) / self.bars.len().max(1) as f64;
        let labels_apart = (30.0 / width).ceil().max(1.0) as usize;
        for (i, bar) in self.bars.iter().enumerate() {
            let (x, height) = (LEFT + width * i as f64, scale.height(bar.score) * (BOTTOM - TOP));
            let class = if bar.chosen { "bar chosen" } else { "bar" };
            let title = escape(&format!("{}: {}", bar.name, number(bar.score)));
            let (left, y, bar_width) = (x + 0.1 * width, BOTTOM - height, 0.8 * width);
            put(
                &mut svg,
                format_args!(
                    "<rect class=\"{class}\" x=\"{left:.2}\" y=\"{y:.1}\" width=\"{bar_width:.2}\" height=\"{height:.1}\">\
                     <title>{title}</title></rect>"
                ),
            );
            if let Some(block) = bar.block.filter(|_| i % labels_apart == 0) {
                let (x, y) = (x + 0.5 * width, BOTTOM + 16.0);
                put(&mut svg, format_args!("<text class=\"mid\" x=\"{x:.1}\" y=\"{y}\">{block}</text>"));
            }
        }
        put(&mut svg, format_args!("<path class=\"axis\" d=\"M{LEFT} {BOTTOM}H{RIGHT}\"/></svg>"));
        svg
    }

    /// From what to what the bars reach: from 0 to the largest finite score; where one score dwarfs the others,
    /// logarithmic from the power of ten below the smallest.
    fn scale(&self) -> Scale {
        let mut scores: Vec<f64> =
            self.bars.iter().map(|bar| bar.score).filter(|s| *s > 0.0 && s.is_finite()).collect();
        scores.sort_by(f64::total_cmp);
        let (Some(least), Some(top)) = (scores.first(), scores.last()) else { return Scale { low: None, top: 1.0 } };
        let dwarfed = *top > 10.0 * scores[scores.len() / 2];
        let low = || 10f64.powf((0.99 * least).max(1e-6 * top).log10().floor());
        Scale { low: dwarfed.then(low), top: *top }
    }
}

/// The range of a chart.
#[derive(Clone, Copy)]
struct Scale {
    /// Where a logarithmic one begins.
    low: Option<f64>,
    /// What reaches the top, as infinity does.
    top: f64,
}

impl Scale {
    /// The share of the chart's height that a score takes.
    fn height(self, score: f64) -> f64 {
        let height = match self.low {
            None => score / self.top,
            Some(low) => (score / low).ln() / (self.top / low).ln(),
        };
        if height.is_nan() { 0.0 } else { height.clamp(0.0, 1.0) }
    }

    fn ticks(self) -> Vec<f64> {
        match self.low {
            None => ticks((0.0, self.top), nice_step((0.0, self.top), 4.0)).collect(),
            Some(low) => {
                let first = low.log10().round() as i32;
                (first..).map(|power| 10f64.powi(power)).take_while(|tick| *tick <= self.top).collect()
            }
        }
    }
}

/// A score with four digits.
pub(super) fn number(score: f64) -> String {
    match score {
        s if s.is_nan() => "not a number".to_owned(),
        s if s.is_infinite() => "infinity".to_owned(),
        s => significant(s, 4),
    }
}
