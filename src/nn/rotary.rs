//! Rotary position embeddings: every scaling rule becomes a table of cosines and sines, computed once on the host
//! in f64, so that kernels know nothing of it.

use std::f64::consts::TAU;

/// How rotary frequencies are stretched for contexts longer than those trained on (transformers' `rope_type`).
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as trained.
    Default,
    /// Positions divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by the factor, high ones kept, a smooth band between.
    Llama3 {
        /// Division of the lowest frequencies.
        factor: f64,
        /// Wavelengths above original/low are scaled fully.
        low_freq_factor: f64,
        /// Wavelengths below original/high are kept.
        high_freq_factor: f64,
        /// Context length of the original training.
        original_max_position_embeddings: f64,
    },
    /// YaRN (arXiv:2309.00071): a ramp between interpolated and kept frequencies, and a scale on cos and sin.
    Yarn {
        /// Interpolation factor.
        factor: f64,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which it is interpolated.
        beta_slow: f64,
        /// Multiplies cos and sin.
        attention_factor: f64,
        /// Context length of the original training.
        original_max_position_embeddings: f64,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
    },
}

/// Rotary positions of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Rotated dimensions of a head, even.
    pub dims: usize,
    /// Stretching.
    pub scaling: RopeScaling,
}

impl Rope {
    /// Rotations per position of each pair of dimensions, `dims / 2` values.
    pub fn frequencies(&self) -> Vec<f64> {
        let half = self.dims / 2;
        let base = |i: usize| self.theta.powf(-(2.0 * i as f64) / self.dims as f64);
        (0..half).map(|i| self.scaled(i, base(i))).collect()
    }

    fn scaled(&self, pair: usize, frequency: f64) -> f64 {
        match self.scaling {
            RopeScaling::Default => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: context,
            } => {
                let wavelength = TAU / frequency;
                if wavelength < context / high {
                    frequency
                } else if wavelength > context / low {
                    frequency / factor
                } else {
                    let smooth = (context / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings: context,
                truncate,
                ..
            } => {
                // The (fractional) pair whose wavelength makes `rotations` turns in the original context.
                let pair_of =
                    |rotations: f64| self.dims as f64 * (context / (rotations * TAU)).ln() / (2.0 * self.theta.ln());
                let (mut from, mut to) = (pair_of(beta_fast), pair_of(beta_slow));
                if truncate {
                    (from, to) = (from.floor(), to.ceil());
                }
                let (from, mut to) = (from.max(0.0), to.min(self.dims as f64 - 1.0));
                if from == to {
                    to += 0.001;
                }
                let ramp = ((pair as f64 - from) / (to - from)).clamp(0.0, 1.0);
                frequency / factor * ramp + frequency * (1.0 - ramp)
            }
        }
    }

    /// The table [positions, dims]: per position `dims / 2` cosines, then as many sines.
    pub fn table(&self, positions: usize) -> Vec<f32> {
        let magnitude = match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        };
        let frequencies = self.frequencies();
        let mut table = Vec::with_capacity(positions * self.dims);
        for position in 0..positions {
            let angle = |f: &f64| position as f64 * f;
            table.extend(frequencies.iter().map(|f| (angle(f).cos() * magnitude) as f32));
            table.extend(frequencies.iter().map(|f| (angle(f).sin() * magnitude) as f32));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds_cosines_then_sines() {
        let rope = Rope { theta: 10_000.0, dims: 4, scaling: RopeScaling::Default };
        let table = rope.table(3);
        let at =
            |position: f64, frequency: f64| ((position * frequency).cos() as f32, (position * frequency).sin() as f32);
        let ((c0, s0), (c1, s1)) = (at(2.0, 1.0), at(2.0, 0.01));
        assert_eq!(table[8..], [c0, c1, s0, s1]);
    }
}
