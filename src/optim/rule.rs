//! The update rules and their constants.

use std::fmt;

/// How a gradient moves a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// AdamW (arXiv:1711.05101).
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        epsilon: f64,
        /// Matrices' moments in 8 bits (arXiv:2110.02861); vectors', which are small, stay in 32.
        eight_bit: bool,
    },
    /// Lion (arXiv:2302.06675).
    Lion {
        /// Share of the momentum in the direction.
        beta1: f64,
        /// Decay of the momentum.
        beta2: f64,
    },
    /// Gradient descent as torch.optim.SGD: weight decay is part of the gradient.
    Sgd {
        /// Decay of the momentum; 0 keeps none.
        momentum: f64,
    },
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Rule::AdamW { beta1, beta2, epsilon, eight_bit } => {
                let bits = if eight_bit { " with moments in 8 bits" } else { "" };
                write!(f, "AdamW{bits}, betas {beta1} and {beta2}, epsilon {epsilon:e}")
            }
            Rule::Lion { beta1, beta2 } => write!(f, "Lion, betas {beta1} and {beta2}"),
            Rule::Sgd { momentum } => write!(f, "SGD, momentum {momentum}"),
        }
    }
}

/// What all updates of a run share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// The rule.
    pub rule: Rule,
    /// Decay of the groups that decay.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 does not clip.
    pub max_grad_norm: f64,
    /// Decay of the parameters' moving average; 0 keeps none.
    pub ema_decay: f64,
}

impl Settings {
    /// AdamW with these constants in 32 bits, without an average.
    pub fn adamw(beta1: f64, beta2: f64, epsilon: f64, weight_decay: f64, max_grad_norm: f64) -> Settings {
        let rule = Rule::AdamW { beta1, beta2, epsilon, eight_bit: false };
        Settings { rule, weight_decay, max_grad_norm, ema_decay: 0.0 }
    }

    /// Whether an average of the parameters is kept.
    pub fn averages(&self) -> bool {
        self.ema_decay > 0.0
    }

    /// Bytes of gradients, state and average for a parameter of `count` elements, a matrix or a vector.
    pub fn bytes(&self, count: u64, matrix: bool) -> u64 {
        let blocks = count.div_ceil(crate::ops::adamw_8bit::BLOCK as u64);
        let state = match self.rule {
            // Two bytes an element and two scales a block.
            Rule::AdamW { eight_bit: true, .. } if matrix => blocks * (2 * 256 + 8),
            Rule::AdamW { .. } => 8 * count,
            Rule::Lion { .. } => 4 * count,
            Rule::Sgd { momentum } if momentum > 0.0 => 4 * count,
            Rule::Sgd { .. } => 0,
        };
        4 * count + state + 4 * count * u64::from(self.averages())
    }

    /// The scalars of step `t` (from 1) as the kernels read them: learning rate, beta1 (or momentum), beta2, epsilon,
    /// weight decay, both bias corrections, an unused one.
    pub(super) fn scalars(&self, t: u64, learning_rate: f64) -> [f64; 8] {
        let (beta1, beta2, epsilon) = match self.rule {
            Rule::AdamW { beta1, beta2, epsilon, .. } => (beta1, beta2, epsilon),
            Rule::Lion { beta1, beta2 } => (beta1, beta2, 0.0),
            Rule::Sgd { momentum } => (momentum, 0.0, 0.0),
        };
        let correction = |beta: f64| 1.0 - beta.powf(t as f64);
        [learning_rate, beta1, beta2, epsilon, self.weight_decay, correction(beta1), correction(beta2), 0.0]
    }
}
