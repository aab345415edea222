//! Spectrum's signal-to-noise ratio of a matrix, from its singular values, and a second score with the noise edge of
//! random matrix theory.

/// What the singular values of one matrix say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Spectrum's `snr`: (sum of the singular values above [`threshold`] / sum of the others) / the largest.
    pub snr: f64,
    /// The same ratio with [`mp_edge`] in place of Spectrum's threshold.
    pub mp_snr: f64,
}

/// Scores a matrix of `rows` x `columns` by its singular values, largest first. Always finite: 0 for a matrix of
/// zeros; where no value counts as noise, or all that do are zero, the noise is 1.
pub fn score(singular: &[f64], rows: usize, columns: usize) -> Score {
    Score {
        snr: ratio(singular, threshold(singular, rows, columns)),
        mp_snr: ratio(singular, mp_edge(singular, rows, columns)),
    }
}

/// Spectrum's border between signal and noise: sigma * (1 + sqrt(beta)) with sigma = interquartile range of the singular
/// values / 1.349 (that of a normal distribution of deviation 1) and beta = short side / long side.
pub fn threshold(singular: &[f64], rows: usize, columns: usize) -> f64 {
    let sigma = (quantile(singular, 0.75) - quantile(singular, 0.25)) / 1.349;
    sigma * (1.0 + beta(rows, columns).sqrt())
}

/// The largest singular value that independent noise of the same size would have, s * (sqrt(rows) + sqrt(columns))
/// (Marchenko and Pastur, 1967). The noise's deviation s comes from the median singular value, which few strong
/// directions hardly move: s = median / sqrt(long side * [`mp_median`]) (Gavish and Donoho, arXiv 1305.5870).
pub fn mp_edge(singular: &[f64], rows: usize, columns: usize) -> f64 {
    let (short, long) = (rows.min(columns) as f64, rows.max(columns) as f64);
    let s = quantile(singular, 0.5) / (long * mp_median(beta(rows, columns))).sqrt();
    s * (short.sqrt() + long.sqrt())
}

/// Median of the Marchenko-Pastur law for the aspect ratio `beta` in (0, 1] and deviation 1.
pub fn mp_median(beta: f64) -> f64 {
    // With x = 1 + beta + 2 sqrt(beta) cos(t) the density becomes smooth: 2 sin(t)^2 / (pi x), t from 0 to pi.
    const CELLS: usize = 4096;
    let width = std::f64::consts::PI / CELLS as f64;
    let x = |t: f64| 1.0 + beta + 2.0 * beta.sqrt() * t.cos();
    let mut above = 0.0;
    for cell in 0..CELLS {
        let t = (cell as f64 + 0.5) * width;
        let mass = width * 2.0 * t.sin().powi(2) / (std::f64::consts::PI * x(t));
        if above + mass >= 0.5 {
            return x((cell as f64 + (0.5 - above) / mass) * width);
        }
        above += mass;
    }
    x(std::f64::consts::PI)
}

fn beta(rows: usize, columns: usize) -> f64 {
    rows.min(columns) as f64 / rows.max(columns).max(1) as f64
}

fn ratio(singular: &[f64], border: f64) -> f64 {
    let largest = singular.first().copied().unwrap_or(0.0);
    if largest == 0.0 {
        return 0.0;
    }
    let sum = |signal: bool| singular.iter().filter(|s| (**s > border) == signal).sum::<f64>();
    let noise = sum(false);
    sum(true) / if noise == 0.0 { 1.0 } else { noise } / largest
}

/// The `q` quantile of values in descending order, between neighbours on the line through them.
fn quantile(descending: &[f64], q: f64) -> f64 {
    let at = q * descending.len().saturating_sub(1) as f64;
    let ascending = |i: usize| descending.iter().rev().nth(i).copied();
    let low = ascending(at.floor() as usize).unwrap_or(0.0);
    let high = ascending(at.ceil() as usize).unwrap_or(low);
    low + (high - low) * at.fract()
}
