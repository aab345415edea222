//! From a decoded position to a record of a shard set.

use crate::shards::foreign::{Fault, Position};

/// What the values of a position are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Log-probabilities: what is missing to 1 is the tail mass.
    LogProbs,
    /// Logits up to a constant: how much the recorded tokens leave out is not known.
    Logits,
}

/// The log-probability of a slot that stands for nothing.
const NOTHING: f32 = -1e30;
/// Rounding may take a head's sum over 1; beyond this the numbers are no log-probabilities.
const MOST_HEAD: f64 = 1.1;
/// The least that a tail can be told from 0 by: the rounding of a sum of single-precision probabilities.
const LEAST_TAIL: f64 = 1e-6;

/// One row's record.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TopK {
    pub ids: Vec<u32>,
    pub log_probs: Vec<f32>,
    pub tail: f32,
    /// Of the next token, or the least that it can be where the record does not hold it.
    pub nll: f32,
    /// Whether the record holds the next token.
    pub hit: bool,
    /// Entries that named ids which no token has; they are left to the tail.
    pub padding: u32,
}

impl TopK {
    /// The record of a row that has none.
    pub fn nothing(k: usize) -> TopK {
        TopK { ids: (0..k as u32).collect(), log_probs: vec![NOTHING; k], tail: 1.0, ..TopK::default() }
    }

    /// The record of a checked position: `tokens` are the ids that the tokenizer has, `next` the true next token.
    pub fn new(position: &Position, values: Values, tokens: u32, next: Option<u32>) -> Result<TopK, Fault> {
        let entries = position.ids.iter().copied().zip(position.values.iter().copied());
        let kept: Vec<(u32, f64)> = entries.filter(|(id, _)| *id < tokens).collect();
        let greatest = kept.iter().fold(f64::NEG_INFINITY, |most, (_, v)| most.max(*v));
        let sum = kept.iter().map(|(_, v)| (v - greatest).exp()).sum::<f64>() * greatest.exp();
        let constant = match values {
            // The sum of exponentials of logits may overflow; its logarithm does not.
            Values::Logits => greatest + kept.iter().map(|(_, v)| (v - greatest).exp()).sum::<f64>().ln(),
            Values::LogProbs if sum.is_nan() || sum > MOST_HEAD => {
                let expected = "log-probabilities, whose exponentials sum to at most 1";
                return Err(Fault { field: "values", expected: expected.into(), found: format!("a sum of {sum}") });
            }
            Values::LogProbs => sum.ln().max(0.0),
        };
        let constant = if kept.is_empty() { 0.0 } else { constant };
        let tail = match values {
            Values::Logits => 0.0,
            Values::LogProbs => (1.0 - sum).max(0.0),
        };
        let mut made = TopK { tail: tail as f32, ..TopK::default() };
        for (id, value) in &kept {
            made.ids.push(*id);
            made.log_probs.push((value - constant).min(0.0) as f32);
        }
        made.look_up(next);
        made.padding = (position.ids.len() - kept.len()) as u32;
        made.fill(position.ids.len(), next);
        Ok(made)
    }

    fn look_up(&mut self, next: Option<u32>) {
        let Some(next) = next else { return };
        if let Some(i) = self.ids.iter().position(|id| *id == next) {
            (self.nll, self.hit) = (-self.log_probs[i], true);
            return;
        }
        let least = self.log_probs.iter().fold(0.0f32, |least, l| least.min(*l));
        self.nll = (-least).max(-f64::from(self.tail).max(LEAST_TAIL).ln() as f32);
    }

    /// Fills up to `k` entries with ids that the record does not have.
    fn fill(&mut self, k: usize, next: Option<u32>) {
        for id in 0.. {
            if self.ids.len() >= k {
                break;
            }
            if Some(id) != next && !self.ids.contains(&id) {
                self.ids.push(id);
                self.log_probs.push(NOTHING);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(entries: &[(u32, f64)]) -> Position {
        let (ids, values) = entries.iter().copied().unzip();
        Position { ids, values }
    }

    #[test]
    fn what_log_probabilities_leave_out_is_the_tail() {
        let made = TopK::new(&position(&[(7, 0.5f64.ln()), (3, 0.25f64.ln())]), Values::LogProbs, 10, Some(3)).unwrap();
        assert_eq!((made.ids, made.hit), (vec![7, 3], true));
        assert!((made.tail - 0.25).abs() < 1e-7 && (made.nll - 4f32.ln()).abs() < 1e-6);
        // A token outside is at most as probable as the least entry and as the tail.
        let made = TopK::new(&position(&[(7, 0.5f64.ln()), (3, 0.4f64.ln())]), Values::LogProbs, 10, Some(5)).unwrap();
        assert!(!made.hit && (made.nll - 10f32.ln()).abs() < 1e-5);
    }

    #[test]
    fn a_head_above_one_is_scaled_down_if_rounding_explains_it() {
        let made = TopK::new(&position(&[(1, 0.6f64.ln()), (2, 0.42f64.ln())]), Values::LogProbs, 10, None).unwrap();
        assert!((made.log_probs[0].exp() - 0.6 / 1.02).abs() < 1e-6 && made.tail == 0.0);
        let fault = TopK::new(&position(&[(1, 0.9f64.ln()), (2, 0.5f64.ln())]), Values::LogProbs, 10, None);
        assert!(fault.unwrap_err().found.contains("1.4"));
    }

    #[test]
    fn logits_are_scaled_to_sum_to_one_even_where_their_exponentials_overflow() {
        let made = TopK::new(&position(&[(1, 900.0), (2, 900.0 - 3f64.ln())]), Values::Logits, 10, Some(2)).unwrap();
        assert!((made.log_probs[0].exp() - 0.75).abs() < 1e-6 && (made.nll - 4f32.ln()).abs() < 1e-5);
    }

    #[test]
    fn ids_of_padding_go_to_the_tail_and_their_slots_to_tokens_of_no_probability() {
        let entries = [(12, 0.5f64.ln()), (0, 0.25f64.ln()), (11, 0.125f64.ln())];
        let made = TopK::new(&position(&entries), Values::LogProbs, 10, Some(1)).unwrap();
        assert_eq!((&made.ids[..], made.padding), (&[0, 2, 3][..], 2));
        assert!((made.tail - 0.75).abs() < 1e-6 && made.log_probs[1].exp() == 0.0);
    }
}
