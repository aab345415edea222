//! The learning rate over a run: transformers' `get_constant_schedule_with_warmup`,
//! `get_linear_schedule_with_warmup` and `get_cosine_with_min_lr_schedule_with_warmup`.
//!
//! With peak p, W warm-up steps, S steps in all, least share r, and k steps already taken:
//! - k < W: p k / W, so the very first step has rate 0;
//! - else with u = (k - W) / (S - W), clamped to 1: `constant` p; `linear` p ((1 - u)(1 - r) + r);
//!   `cosine` p ((1 + cos(pi u))/2 (1 - r) + r).

use super::recipe::{Length, SchedulerType, TrainingArgs, Warmup};

/// A learning rate for each step of a run of known length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The shape after warm-up.
    pub kind: SchedulerType,
    /// The largest rate.
    pub peak: f64,
    /// W.
    pub warmup_steps: u64,
    /// S.
    pub total_steps: u64,
    /// r.
    pub min_ratio: f64,
}

impl Schedule {
    /// The rate of the step after `step` steps have been taken.
    pub fn learning_rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let decay_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / decay_steps as f64).min(1.0);
        let factor = match self.kind {
            SchedulerType::Constant => return self.peak,
            SchedulerType::Linear => 1.0 - progress,
            SchedulerType::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.peak * (factor * (1.0 - self.min_ratio) + self.min_ratio).max(0.0)
    }
}

impl TrainingArgs {
    /// The number of optimiser steps, given the micro-batches of an epoch. Epochs follow one another without a gap, so
    /// a step may take micro-batches of two; a last, partly filled step counts.
    pub fn total_steps(&self, batches_per_epoch: u64) -> u64 {
        match self.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => {
                let batches = (epochs * batches_per_epoch as f64).ceil() as u64;
                batches.div_ceil(self.gradient_accumulation_steps as u64).max(1)
            }
        }
    }

    /// The learning rates of a run of `total_steps`.
    pub fn schedule(&self, total_steps: u64) -> Schedule {
        let warmup_steps = match self.warmup {
            Warmup::Steps(steps) => steps,
            Warmup::Ratio(ratio) => (ratio * total_steps as f64).ceil() as u64,
        };
        Schedule {
            kind: self.lr_scheduler_type,
            peak: self.learning_rate,
            warmup_steps,
            total_steps,
            min_ratio: self.min_lr_ratio,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By tests/golden/make_schedule_golden.py: transformers 5.23, peak 5e-4, 3 warm-up steps of 10.
    const CONSTANT: [f64; 11] = [0.0, 1.0 / 6e3, 1.0 / 3e3, 5e-4, 5e-4, 5e-4, 5e-4, 5e-4, 5e-4, 5e-4, 5e-4];
    const LINEAR: [f64; 11] = [
        0.0,
        0.00016666666666666666,
        0.0003333333333333333,
        0.0005,
        0.00042857142857142855,
        0.00035714285714285714,
        0.0002857142857142857,
        0.00021428571428571427,
        0.00014285714285714284,
        7.142857142857142e-05,
        0.0,
    ];
    const COSINE: [f64; 11] = [
        0.0,
        0.00016666666666666666,
        0.0003333333333333333,
        0.0005,
        0.00047524221697560476,
        0.0004058724504646834,
        0.0003056302334890786,
        0.00019436976651092142,
        9.412754953531663e-05,
        2.4757783024395242e-05,
        0.0,
    ];
    const COSINE_MIN_TENTH: [f64; 11] = [
        0.0,
        0.00016666666666666666,
        0.0003333333333333333,
        0.0005,
        0.0004777179952780443,
        0.0004152852054182151,
        0.00032506721014017074,
        0.0002249327898598293,
        0.00013471479458178497,
        7.228200472195573e-05,
        5e-05,
    ];

    #[test]
    fn rates_are_those_of_transformers() {
        for (kind, min_ratio, expected) in [
            (SchedulerType::Constant, 0.0, CONSTANT),
            (SchedulerType::Linear, 0.0, LINEAR),
            (SchedulerType::Cosine, 0.0, COSINE),
            (SchedulerType::Cosine, 0.1, COSINE_MIN_TENTH),
        ] {
            let schedule = Schedule { kind, peak: 5e-4, warmup_steps: 3, total_steps: 10, min_ratio };
            for (step, expected) in expected.into_iter().enumerate() {
                let rate = schedule.learning_rate(step as u64);
                assert!((rate - expected).abs() < 1e-18, "{kind:?} step {step}: {rate} for {expected}");
            }
        }
    }

    #[test]
    fn rates_stay_within_bounds_whatever_the_run() {
        for (warmup_steps, total_steps) in [(0, 1), (0, 7), (7, 7), (9, 7)] {
            for kind in [SchedulerType::Constant, SchedulerType::Linear, SchedulerType::Cosine] {
                let schedule = Schedule { kind, peak: 1.0, warmup_steps, total_steps, min_ratio: 0.25 };
                for step in 0..20 {
                    let rate = schedule.learning_rate(step);
                    assert!((0.0..=1.0).contains(&rate) && (step < warmup_steps || rate >= 0.25), "{schedule:?}");
                }
            }
        }
    }
}
