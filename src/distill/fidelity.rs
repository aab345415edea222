//! How near a model is to its teacher, from numbers of every predicted token: what a single average hides.

use serde::{Deserialize, Serialize};

/// Tokens a speculative decoder drafts at a time.
pub const DRAFT: usize = 4;
/// Equal bins of confidence for the calibration error (Guo et al. 2017 use 15).
pub const BINS: usize = 15;

/// What was measured at one predicted token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Token {
    /// KL(teacher || model), nats.
    pub kld: f64,
    /// sum_v min(p_v, q_v): how likely a teacher accepts a token that the model drafts (Leviathan et al. 2023).
    pub acceptance: f64,
    /// The model's largest probability.
    pub confidence: f64,
    /// Whether the token of largest probability is the text's own next token.
    pub correct: bool,
    /// Whether this token follows the one before it in the same context.
    pub follows: bool,
}

/// The distribution of a number over tokens. Percentiles interpolate linearly between ranks, as numpy's do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// 50th percentile.
    pub median: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

/// Measures beyond NLL and mean KLD.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Fidelity {
    /// KL(teacher || model) over the tokens, nats.
    pub kld: Spread,
    /// Mean acceptance rate of a drafted token.
    pub acceptance: f64,
    /// Tokens that a step of speculative decoding yields with [`DRAFT`] drafted ones, over the text's own prefixes: the
    /// mean over positions t of 1 + sum_{i<=DRAFT} prod_{j<i} acceptance_{t+j}. Positions too near a context's end to
    /// have that many followers are left out.
    pub accepted_tokens: f64,
    /// Expected calibration error of the likeliest token over [`BINS`] bins: 0 says that a confidence of 0.7 is right
    /// seven times in ten.
    pub calibration_error: f64,
}

impl Spread {
    /// Of some numbers; all 0 for none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let Some(&max) = values.last() else { return Spread::default() };
        let at = |percent: f64| {
            let rank = percent / 100.0 * (values.len() - 1) as f64;
            let (low, share) = (rank.floor() as usize, rank.fract());
            let high = (low + 1).min(values.len() - 1);
            values[low] + share * (values[high] - values[low])
        };
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Spread { mean, median: at(50.0), p90: at(90.0), p95: at(95.0), p99: at(99.0), max }
    }
}

impl Fidelity {
    /// Of the tokens in the order of the text.
    pub fn of(tokens: &[Token]) -> Fidelity {
        Fidelity {
            kld: Spread::of(tokens.iter().map(|token| token.kld)),
            acceptance: mean(tokens.iter().map(|token| token.acceptance)),
            accepted_tokens: accepted_tokens(tokens),
            calibration_error: calibration_error(tokens),
        }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / f64::from(count) }
}

fn accepted_tokens(tokens: &[Token]) -> f64 {
    let whole = tokens.windows(DRAFT).filter(|window| window[1..].iter().all(|token| token.follows));
    mean(whole.map(|window| {
        let mut together = 1.0;
        let yields = window.iter().map(|token| {
            together *= token.acceptance;
            together
        });
        1.0 + yields.sum::<f64>()
    }))
}

fn calibration_error(tokens: &[Token]) -> f64 {
    let mut bins = [(0.0, 0.0); BINS];
    for token in tokens {
        let bin = ((token.confidence * BINS as f64) as usize).min(BINS - 1);
        bins[bin].0 += token.confidence;
        bins[bin].1 += f64::from(u8::from(token.correct));
    }
    // Each bin's gap between mean confidence and accuracy, weighted by its share of the tokens.
    bins.iter().map(|(confidence, correct): &(f64, f64)| (confidence - correct).abs()).sum::<f64>()
        / tokens.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_numpy() {
        // numpy.percentile([0, 1, 4, 9, 16], [50, 90, 95, 99])
        let spread = Spread::of([16.0, 0.0, 9.0, 1.0, 4.0]);
        for (found, expected) in [
            (spread.mean, 6.0),
            (spread.median, 4.0),
            (spread.p90, 13.2),
            (spread.p95, 14.6),
            (spread.p99, 15.72),
            (spread.max, 16.0),
        ] {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
        assert_eq!(Spread::of([]), Spread::default());
    }

    #[test]
    fn accepted_tokens_have_the_closed_form_of_a_constant_rate() {
        let token = |follows| Token { acceptance: 0.5, follows, ..Token::default() };
        let text: Vec<Token> = (0..10).map(|i| token(i % 5 != 0)).collect();
        // (1 - a^5) / (1 - a) at a = 1/2.
        assert!((Fidelity::of(&text).accepted_tokens - 1.9375).abs() < 1e-12);
        // No context is as long as a draft.
        assert_eq!(Fidelity::of(&text[..3]).accepted_tokens, 0.0);
    }

    #[test]
    fn calibration_error_is_the_mean_gap_of_the_bins() {
        let token = |confidence, correct| Token { confidence, correct, ..Token::default() };
        // 0.7 is right once in two: a gap of 0.2 for half of the tokens. 1.0 is always right.
        let tokens = [token(0.7, true), token(0.7, false), token(1.0, true), token(1.0, true)];
        assert!((Fidelity::of(&tokens).calibration_error - 0.1).abs() < 1e-12);
        assert_eq!(Fidelity::of(&[]), Fidelity::default());
    }
}
