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
            true => format!("{chosen} of {}, {} to {}", self.bars.len(), number(low), number(high)),
            false => format!("{chosen} of {}, no scores", self.bars.len()),
        }
    }

    /// The chart in characters, a column for each bar, with a star below each that is chosen.
    pub fn text(&self) -> String {
        let mut text = format!("  {}: {}\n", self.kind, self.summary());
        for bars in self.bars.chunks(WIDEST) {
            for line in (0..LINES).rev() {
                let cell = |bar: &Bar| {
                    let height = (self.height(bar.score) * (8 * LINES) as f64).ceil() as usize;
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
        let top = self.top();
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"c{id}t c{id}d\"><title id=\"c{id}t\">{}\
             </title><desc id=\"c{id}d\">{}</desc>",
            escape(&self.kind),
            escape(&self.summary())
        );
        for tick in ticks((0.0, top), nice_step((0.0, top), 4.0)) {
            let y = BOTTOM - tick / top * (BOTTOM - TOP);
            put(&mut svg, format_args!("<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>"));
            let (x, y, text) = (LEFT - 7.0, y + 4.0, significant(tick, 2));
            put(&mut svg, format_args!("<text class=\"end\" x=\"{x}\" y=\"{y:.1}\">{text}</text>"));
        }
        let width = (RIGHT - LEFT) / self.bars.len().max(1) as f64;
        let labels_apart = (30.0 / width).ceil().max(1.0) as usize;
        for (i, bar) in self.bars.iter().enumerate() {
            let (x, height) = (LEFT + width * i as f64, self.height(bar.score) * (BOTTOM - TOP));
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

    /// The largest finite score, which reaches the top; infinite ones do too.
    fn top(&self) -> f64 {
        let top = self.bars.iter().map(|bar| bar.score).filter(|score| score.is_finite()).fold(0.0, f64::max);
        if top > 0.0 { top } else { 1.0 }
    }

    fn height(&self, score: f64) -> f64 {
        if score.is_nan() { 0.0 } else { (score / self.top()).clamp(0.0, 1.0) }
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
