//! What a recipe's losses have to be, what their teacher has to be able to give them, and which are known to teach
//! badly.

use std::path::Path;

use super::check::Problems;
use super::losses::Bounds;
use super::*;
use crate::{Error, Result};

/// Above this mean tail mass, pure ghost KL taught worse than plain text in every run measured (a 43k-parameter
/// transformer from scratch with top-12 and top-50 records; a pruned SmolLM2 at .16 with top-64), and a tenth of cross
/// entropy repaired it.
const HEAVY_TAIL: f64 = 0.1;

impl Bounds {
    fn hold(self, value: f64) -> bool {
        match self {
            Bounds::Inside => value > 0.0 && value < 1.0,
            Bounds::Unit => (0.0..=1.0).contains(&value),
            Bounds::Positive => value > 0.0 && value.is_finite(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Bounds::Inside => "a number between 0 and 1",
            Bounds::Unit => "a number from 0 to 1",
            Bounds::Positive => "a positive number",
        }
    }
}

/// What to do about a parameter at an end of its range.
fn remedy(divergence: &Divergence) -> &'static str {
    match divergence {
        Divergence::Jsd { scaled: false, .. } => {
            "beta 0 is nothing without a scale: use `kl` for it and `reverse_kl` for 1, or add `scaled: true`"
        }
        Divergence::SkewKl { .. } => "alpha 0 is `kl`: use that",
        Divergence::SkewReverseKl { .. } => "alpha 0 is `reverse_kl`: use that",
        Divergence::AdaptiveKl { .. } => "0.5 is usual",
        Divergence::AlphaBeta { .. } => "alpha 0.2 and beta 0.7 are usual",
        Divergence::Taid { .. } => "leave it out for a rise from 0.4 to 1",
        _ => "0.5 is usual",
    }
}

impl Recipe {
    pub(super) fn check_losses(&self, problems: &mut Problems) {
        problems.rule(!self.loss_functions.is_empty(), "loss_functions", "at least one loss", &"none");
        for (i, loss) in self.loss_functions.iter().enumerate() {
            let key = |key: &str| format!("loss_functions[{i}].{key}");
            let ends = loss.weight.ends();
            if ends.iter().any(|w| !(*w >= 0.0 && w.is_finite())) || !ends.iter().any(|w| *w > 0.0) {
                let complaint = problems.at(&key("weight")).expected("a positive number").found(&loss.weight);
                problems.add(complaint.help("remove the loss to leave it out"));
            }
            self.check_function(&loss.function, &key, problems);
            if loss.function.needs_teacher() {
                self.check_sources(&loss.function, &key, problems);
            }
        }
    }

    fn check_function(&self, function: &Function, key: &dyn Fn(&str) -> String, problems: &mut Problems) {
        match function {
            Function::CrossEntropy { label_smoothing, z_loss } => {
                let share = (0.0..1.0).contains(label_smoothing);
                problems.rule(share, &key("label_smoothing"), "a number from 0 to below 1", label_smoothing);
                let factor = *z_loss >= 0.0 && z_loss.is_finite();
                problems.rule(factor, &key("z_loss"), "0 or more", z_loss);
            }
            Function::Divergence { divergence, temperature, .. } => {
                if !temperature.ends().iter().all(|t| *t > 0.0 && t.is_finite()) {
                    let complaint = problems.at(&key("temperature")).expected("a positive number").found(temperature);
                    problems.add(complaint.help("1 is usual"));
                }
                for (name, value, bounds) in divergence.parameters() {
                    if !value.ends().iter().all(|value| bounds.hold(*value)) {
                        let complaint = problems.at(&key(name)).expected(bounds.name()).found(value);
                        problems.add(complaint.help(remedy(divergence)));
                    }
                }
                for (name, expected, found) in divergence.adaptive().into_iter().flat_map(Adaptive::problems) {
                    problems.rule(false, &key(&format!("t.adaptive.{name}")), expected, &found);
                }
            }
            Function::Hinge { margin } => {
                let share = *margin > 0.0 && *margin <= 1.0;
                problems.rule(share, &key("margin"), "a number above 0 and up to 1", margin);
            }
            Function::LogitMse | Function::LogisticRanking | Function::Hidden(_) => {}
        }
    }

    /// Whether every teacher can feed a loss that needs one.
    fn check_sources(&self, function: &Function, key: &dyn Fn(&str) -> String, problems: &mut Problems) {
        if self.teachers.is_empty() {
            let complaint = problems.at(&key("function")).expected(format!("a `teacher` for {}", function.name()));
            problems.add(complaint.found("none").help("add a teacher, or train on text with cross_entropy alone"));
        }
        for (number, teacher) in self.teachers.iter().enumerate() {
            let which = if self.teachers.len() > 1 { format!(" (`teacher[{number}]`)") } else { String::new() };
            check_source(&teacher.source, &which, function, key, problems);
        }
    }

    /// Checks that records of random draws, in the set at `shards`, can feed every loss.
    pub fn check_sampled(&self, shards: &Path) -> Result<()> {
        let mut problems = Vec::new();
        for loss in &self.loss_functions {
            if matches!(&loss.function, Function::Divergence { divergence, .. } if divergence.needs_support()) {
                let name = loss.function.name();
                let complaint = Error::file(shards).field("record").expected(format!("top-k records for {name}"));
                let complaint = complaint.found("random draws, which leave most tokens without probability");
                problems.push(complaint.help("capture with `--top-k`, or use kl, jsd, skew_kl or tvd").error());
            }
        }
        Error::all(problems)
    }

    /// What is known to teach badly about the losses: see [`Recipe::warnings`].
    pub(super) fn loss_warnings(&self, mean_tail_mass: Option<f64>, stored_temperatures: &[f64]) -> Vec<String> {
        let mut warnings = Vec::new();
        let handlings: Vec<MissingProbability> = self.loss_functions.iter().filter_map(handling).collect();
        if let Some(tail) = mean_tail_mass {
            if handlings.contains(&MissingProbability::Zero) {
                warnings.push(
                    "`missing_probability_handling: zero` scales the recorded probabilities up to 1: the student \
                     becomes over-confident and usually worse than one trained on plain text; use symmetric_uniform"
                        .to_string(),
                );
            }
            if handlings.contains(&MissingProbability::BothRenormalised) {
                warnings.push(
                    "`missing_probability_handling: both_renormalised` says nothing of how much probability the \
                     recorded tokens have together, so it may drift; use symmetric_uniform"
                        .to_string(),
                );
            }
            let buckets = !handlings.is_empty() && handlings.iter().all(|h| *h == MissingProbability::Ghost);
            if tail > HEAVY_TAIL && buckets && !self.has_cross_entropy() {
                warnings.push(format!(
                    "the teacher's records leave out {:.0}% of the probability on average, and {} alone teaches \
                     nothing inside that tail: expect less than plain text would give; add cross_entropy with weight \
                     0.1, or capture more entries or samples",
                    100.0 * tail,
                    loss_names(&self.loss_functions).join(" and "),
                ));
            }
            for temperature in record_temperatures(&self.loss_functions) {
                // The ratio of two values written in decimal: equal if they were written equal.
                let stored = |t: &f64| (t / temperature - 1.0).abs() < 1e-6;
                if temperature != 1.0 && !stored_temperatures.iter().any(stored) {
                    warnings.push(format!(
                        "the records hold no log-partition at temperature {temperature}: the target is renormalised \
                         over the recorded entries, which biases it; use temperature 1, or capture again with it"
                    ));
                }
            }
        }
        if !self.teachers.is_empty() && !self.learns_from_teacher() {
            warnings.push("no loss uses the teacher: it only measures the student".to_string());
        }
        warnings
    }

    /// The losses that random draws estimate with a bias, a warning each.
    pub fn sampled_warnings(&self) -> Vec<String> {
        let biased = |loss: &&LossFunction| matches!(&loss.function, Function::Divergence { divergence, .. } if *divergence != Divergence::Kl);
        let warning = |loss: &LossFunction| {
            format!(
                "random draws estimate kl's gradient without bias, not that of {}: use kl, or top-k records",
                loss.function.name()
            )
        };
        self.loss_functions.iter().filter(biased).map(warning).collect()
    }
}

/// Whether the teacher `source`, named `which` where there are several, can feed a loss.
fn check_source(
    source: &TeacherSource,
    which: &str,
    function: &Function,
    key: &dyn Fn(&str) -> String,
    problems: &mut Problems,
) {
    let name = function.name();
    let ranks = matches!(function, Function::Hinge { .. } | Function::LogisticRanking);
    match (source, function) {
        (TeacherSource::Shards { head: None, .. }, Function::LogitMse) => {
            let complaint = problems.at(&key("function")).expected("a live teacher for logit_mse");
            let complaint = complaint.found(format!("shards{which}, which hold no logits"));
            problems.add(complaint.help("use `teacher: { kind: live, ... }`, or another loss: kl"));
        }
        (TeacherSource::Live { .. } | TeacherSource::Shards { head: Some(_), .. }, _) if ranks => {
            let complaint = problems.at(&key("function")).expected(format!("recorded tokens to rank for {name}"));
            let complaint = complaint.found(format!("a live teacher{which}"));
            problems.add(complaint.help("capture it and use `teacher: { kind: shards, ... }`, or another loss: kl"));
        }
        (TeacherSource::Shards { head: None, .. }, Function::Divergence { divergence, temperature, missing }) => {
            if *missing == MissingProbability::Zero && divergence.needs_support() {
                let handling = key("missing_probability_handling");
                let complaint = problems.at(&handling).expected(format!("another than zero for {name}"));
                problems.add(complaint.found("zero").help(
                    "the student's probability of a token that has none would cost infinitely much: use \
                     symmetric_uniform",
                ));
            }
            if temperature.constant().is_none() {
                let complaint = problems.at(&key("temperature")).expected("one number for a teacher of shards");
                let complaint = complaint.found(format!("{temperature}{which}"));
                problems.add(complaint.help("records hold the temperatures they were captured with and no other"));
            }
        }
        _ => {}
    }
}

fn handling(loss: &LossFunction) -> Option<MissingProbability> {
    match loss.function {
        Function::Divergence { missing, .. } => Some(missing),
        _ => None,
    }
}
