//! Exact random draws from a row's distribution, and counts from draws: the target of Random Sampling KD
//! (arXiv 2503.16870). `count / N` is an unbiased estimate of every probability at once.
//!
//! Random numbers are Philox4x32-10 (Salmon et al., SC 2011) keyed by the seed, with the row in the counter: a row's
//! draws do not depend on batch size, order or an interruption.

use crate::random::philox;
use crate::{Error, Result};

/// Purposes keep the streams of one (seed, row) apart.
const DRAWS: u32 = 0;
const MERGES: u32 = 1;

/// The `index`-th number in `[0, 1)` of a row's stream: 53 bits, two to a block.
fn uniform(seed: u64, row: u64, purpose: u32, index: u32) -> f64 {
    let counter = [index / 2, purpose, row as u32, (row >> 32) as u32];
    let block = philox(counter, [seed as u32, (seed >> 32) as u32]);
    let half = (index % 2 * 2) as usize;
    let bits = u64::from(block[half]) | u64::from(block[half + 1]) << 32;
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Draws `draws` ids with replacement from `probabilities` (which need not add up to 1) by inverting their cumulative
/// sums in f64. Refuses negative or non-finite numbers and a row without mass.
pub fn draw(probabilities: &[f32], draws: u32, seed: u64, row: u64) -> Result<Vec<u32>> {
    let mut total = 0.0f64;
    let mut cumulative = Vec::with_capacity(probabilities.len());
    let mut last = None;
    for (id, &p) in probabilities.iter().enumerate() {
        if !(p.is_finite() && p >= 0.0) {
            let field = format!("row {row}: probability of id {id}");
            return Error::at("sampling").field(field).expected("a number from 0").found(p).err();
        }
        if p > 0.0 {
            last = Some(id as u32);
        }
        total += f64::from(p);
        cumulative.push(total);
    }
    let Some(last) = last else {
        return Error::at("sampling").field(format!("row {row}")).expected("some probability").found("none").err();
    };
    let invert = |i| {
        let x = uniform(seed, row, DRAWS, i) * total;
        // Rounding of the product could reach the total itself; ids of probability 0 can never be met.
        (cumulative.partition_point(|&c| c <= x) as u32).min(last)
    };
    Ok((0..draws).map(invert).collect())
}

/// Distinct ids of `draws`, ascending, and how often each occurs.
pub fn counts_from_draws(draws: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let mut sorted = draws.to_vec();
    sorted.sort_unstable();
    sorted.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32)).unzip()
}

/// Brings a row to at most `max_unique` ids and leaves every expected count as it is: while there are too many, the
/// two least counts `a` and `b` become one entry `a + b`, which stands for the first id with probability `a / (a + b)`
/// and else for the second. The sum of the counts stays. Ids come back ascending.
pub fn limit_unique(ids: &mut Vec<u32>, counts: &mut Vec<u32>, max_unique: u32, seed: u64, row: u64) {
    let mut entries: Vec<(u32, u32)> = counts.iter().copied().zip(ids.iter().copied()).filter(|e| e.0 > 0).collect();
    let mut merge = 0;
    while entries.len() > max_unique.max(1) as usize {
        // Greatest count first, so that the two least are the last two; ties by id.
        entries.sort_unstable_by(|a, b| b.cmp(a));
        let (Some(a), Some(b)) = (entries.pop(), entries.pop()) else { break };
        let sum = a.0.saturating_add(b.0);
        let first = uniform(seed, row, MERGES, merge) * f64::from(sum) < f64::from(a.0);
        entries.push((sum, if first { a.1 } else { b.1 }));
        merge += 1;
    }
    entries.sort_unstable_by_key(|e| e.1);
    (*counts, *ids) = entries.into_iter().unzip();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of Zipf(1) over 40 ids with id 7 impossible; the mean target must equal p within 4 sigma per id.
    fn assert_unbiased(draws: u32, max_unique: u32) {
        const ROWS: u64 = 10_000;
        let mut p: Vec<f32> = (0..40).map(|i| 1.0 / (1.0 + i as f32)).collect();
        p[7] = 0.0;
        let total: f64 = p.iter().map(|&x| f64::from(x)).sum();
        let (mut sum, mut squares) = (vec![0.0f64; 40], vec![0.0f64; 40]);
        for row in 0..ROWS {
            let (mut ids, mut counts) = counts_from_draws(&draw(&p, draws, 11, row).unwrap());
            limit_unique(&mut ids, &mut counts, max_unique, 11, row);
            assert!(ids.len() <= max_unique as usize && ids.is_sorted());
            assert_eq!(counts.iter().sum::<u32>(), draws);
            for (&id, &count) in ids.iter().zip(&counts) {
                let t = f64::from(count) / f64::from(draws);
                sum[id as usize] += t;
                squares[id as usize] += t * t;
            }
        }
        for id in 0..40 {
            let (n, expected) = (ROWS as f64, f64::from(p[id]) / total);
            let mean = sum[id] / n;
            let sigma = ((squares[id] / n - mean * mean) / n).sqrt();
            assert!((mean - expected).abs() <= 4.0 * sigma, "id {id}: {mean} for {expected}, sigma {sigma}");
        }
        assert_eq!(sum[7], 0.0);
    }

    #[test]
    fn targets_are_unbiased() {
        assert_unbiased(22, 22);
    }

    #[test]
    fn merging_rare_ids_keeps_targets_unbiased() {
        assert_unbiased(22, 6);
        assert_unbiased(22, 1);
    }

    #[test]
    fn a_row_depends_on_seed_and_row_alone() {
        let p = [0.5, 0.25, 0.25];
        assert_eq!(draw(&p, 9, 3, 1 << 40).unwrap(), draw(&p, 9, 3, 1 << 40).unwrap());
        assert_eq!(draw(&p, 9, 3, 5).unwrap()[..4], draw(&p, 4, 3, 5).unwrap()[..]);
        assert_ne!(draw(&p, 32, 3, 5).unwrap(), draw(&p, 32, 3, 6).unwrap());
        assert_ne!(draw(&p, 32, 3, 5).unwrap(), draw(&p, 32, 4, 5).unwrap());
    }

    #[test]
    fn rows_without_mass_are_refused() {
        assert!(draw(&[], 1, 0, 0).is_err() && draw(&[0.0; 3], 1, 0, 0).is_err());
        assert!(draw(&[0.5, f32::NAN], 1, 0, 0).is_err() && draw(&[0.5, -0.1], 1, 0, 0).is_err());
    }
}
