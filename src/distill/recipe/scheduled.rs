//! Numbers of a recipe that may change over the steps of a run.

use serde_json::{Value, json};

use super::Names;
use super::canonical::name;
use crate::Result;
use crate::yaml::Node;

/// A number at each step of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Scheduled {
    /// `0.5`: the same all the time.
    Constant(f64),
    /// `{schedule, from, to, steps}`: `from` at the first step, `to` at step number `steps` and after it.
    Ramp {
        /// How it goes between them.
        shape: Ramp,
        /// At the first step.
        from: f64,
        /// At the last.
        to: f64,
        /// How many steps it takes; default the whole run.
        steps: Option<u64>,
    },
    /// `[[step, value], ...]`: straight lines between the points, whose steps count from 0 and rise; the first value
    /// before them, the last one after.
    Points(Vec<(u64, f64)>),
}

/// How a scheduled number goes from one value to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ramp {
    /// `linear`.
    Linear,
    /// `cosine`: half a period, level at both ends.
    Cosine,
}

const RAMPS: Names<Option<Ramp>> =
    &[("linear", Some(Ramp::Linear)), ("cosine", Some(Ramp::Cosine)), ("constant", None)];

impl From<f64> for Scheduled {
    fn from(value: f64) -> Self {
        Scheduled::Constant(value)
    }
}

impl Scheduled {
    /// The value in the step after `step` steps of `total`.
    pub fn at(&self, step: u64, total: u64) -> f64 {
        let between = |share: f64, from: f64, to: f64| from + (to - from) * share;
        match self {
            Scheduled::Constant(value) => *value,
            Scheduled::Ramp { shape, from, to, steps } => {
                let last = steps.unwrap_or(total).saturating_sub(1).max(1);
                let share = (step as f64 / last as f64).min(1.0);
                match shape {
                    Ramp::Linear => between(share, *from, *to),
                    Ramp::Cosine => between(0.5 - 0.5 * (std::f64::consts::PI * share).cos(), *from, *to),
                }
            }
            Scheduled::Points(points) => {
                let next = points.partition_point(|(at, _)| *at <= step);
                match (next.checked_sub(1).map(|i| points[i]), points.get(next)) {
                    (Some((start, from)), Some(&(end, to))) => {
                        between((step - start) as f64 / (end - start) as f64, from, to)
                    }
                    (Some((_, value)), None) | (None, Some(&(_, value))) => value,
                    (None, None) => 0.0,
                }
            }
        }
    }

    /// The value, if it is the same all the time.
    pub fn constant(&self) -> Option<f64> {
        match self {
            Scheduled::Constant(value) => Some(*value),
            Scheduled::Ramp { .. } | Scheduled::Points(_) => None,
        }
    }

    /// The values between which all others lie.
    pub fn ends(&self) -> Vec<f64> {
        match self {
            Scheduled::Constant(value) => vec![*value],
            Scheduled::Ramp { from, to, .. } => vec![*from, *to],
            Scheduled::Points(points) => points.iter().map(|(_, value)| *value).collect(),
        }
    }

    pub(super) fn read(node: &Node) -> Result<Scheduled> {
        if node.value.is_object() {
            let fields = node.clone().fields(&["schedule", "from", "to", "steps"], &[])?;
            let shape = fields.need("schedule", "linear, cosine or constant", |node| node.choice(RAMPS))?;
            let from = fields.need("from", "the number at the first step", Node::number)?;
            let Some(shape) = shape else {
                let extra = ["to", "steps"].into_iter().find(|key| fields.node(key).is_some());
                return match extra {
                    None => Ok(Scheduled::Constant(from)),
                    Some(key) => {
                        let complaint = fields.complaint(key).expected("no such key of what stays constant");
                        complaint.found("one").help("name another `schedule`").err()
                    }
                };
            };
            let to = fields.need("to", "the number at the last step", Node::number)?;
            let steps = fields.maybe("steps", Node::integer)?;
            if steps == Some(0) {
                return fields.complaint("steps").expected("at least 1").found(0).err();
            }
            return Ok(Scheduled::Ramp { shape, from, to, steps });
        }
        if node.value.is_array() {
            let points = node.list(|point| {
                let pair = point.list(Ok)?;
                let [step, value] = &pair[..] else {
                    return point
                        .complaint()
                        .expected("[step, value]")
                        .found(format!("a list of {}", pair.len()))
                        .err();
                };
                Ok((step.integer()?, value.number()?))
            })?;
            if !points.is_sorted_by(|a, b| a.0 < b.0) {
                return node.complaint().expected("steps that rise").found(node.value).err();
            }
            return Ok(Scheduled::Points(points));
        }
        if !node.value.is_number() {
            let expected = "a number, {schedule, from, to, steps} or [[step, value], ...]";
            return node.wrong(expected);
        }
        node.number().map(Scheduled::Constant)
    }

    pub(super) fn to_json(&self) -> Value {
        match self {
            Scheduled::Constant(value) => json!(value),
            Scheduled::Ramp { shape, from, to, steps } => {
                let schedule = name(RAMPS, Some(*shape));
                match steps {
                    Some(steps) => json!({"schedule": schedule, "from": from, "to": to, "steps": steps}),
                    None => json!({"schedule": schedule, "from": from, "to": to}),
                }
            }
            Scheduled::Points(points) => json!(points),
        }
    }
}

impl std::fmt::Display for Scheduled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Scheduled::Constant(value) => write!(f, "{value}"),
            Scheduled::Ramp { shape, from, to, steps } => {
                write!(f, "{from} to {to} ({})", name(RAMPS, Some(*shape)))?;
                steps.map_or(Ok(()), |steps| write!(f, " over {steps} steps"))
            }
            Scheduled::Points(points) => {
                let points: Vec<String> = points.iter().map(|(step, value)| format!("{value} at {step}")).collect();
                write!(f, "{}", points.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ramps_begin_and_end_where_they_say() {
        let ramp = |shape, steps| Scheduled::Ramp { shape, from: 0.4, to: 1.0, steps };
        for (shape, middle) in [(Ramp::Linear, 0.55), (Ramp::Cosine, 0.4 + 0.6 * (0.5 - 0.5 * 0.5f64.sqrt()))] {
            let whole = ramp(shape, None);
            assert!((whole.at(0, 9) - 0.4).abs() < 1e-15 && (whole.at(8, 9) - 1.0).abs() < 1e-15);
            assert!((whole.at(2, 9) - middle).abs() < 1e-15, "{}", whole.at(2, 9));
            let short = ramp(shape, Some(3));
            assert!((short.at(2, 9) - 1.0).abs() < 1e-15 && (short.at(8, 9) - 1.0).abs() < 1e-15);
            assert_eq!(ramp(shape, Some(1)).at(0, 1), 0.4);
        }
    }

    #[test]
    fn points_are_joined_by_lines_and_hold_outside() {
        let points = Scheduled::Points(vec![(10, 1.0), (20, 3.0), (21, 0.0)]);
        let found: Vec<f64> = [0, 10, 15, 20, 21, 90].iter().map(|&step| points.at(step, 100)).collect();
        assert_eq!(found, [1.0, 1.0, 2.0, 3.0, 0.0, 0.0]);
    }
}
