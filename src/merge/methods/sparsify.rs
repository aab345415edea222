//! Which values of the task vectors are kept.

use super::PerModel;
use super::inputs::{Block, Cut, Inputs};
use super::select::{Border, borders, magnitude};
use crate::Result;
use crate::random::philox;

/// How task vectors are thinned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sparsify {
    /// Not at all.
    Nothing,
    /// The largest, a share `density` (TIES, Yadav et al. 2023).
    Magnitude,
    /// The largest of the whole model: those of at least the magnitude `threshold` (TIES as its paper has it).
    OfModel,
    /// Each with probability `density` (DARE, Yu et al. 2023).
    Bernoulli,
    /// The largest after a share `gamma` of outliers (Breadcrumbs, Davari and Belilovsky 2023).
    Outliers,
    /// Each with a probability that grows with its rank in its row, from density - epsilon to density + epsilon (DELLA,
    /// Deep et al. 2024).
    Ranked,
}

/// What is kept of one model's task vector.
enum Keep {
    All,
    Nothing,
    /// What is at least as large.
    From(f32),
    /// Positions from one border to another in descending order.
    Between(Border, Border),
    Random {
        density: f64,
    },
    Ranked {
        density: f64,
        epsilon: f64,
    },
}

/// The rule for every model of a tensor.
pub(super) struct Thinning {
    keep: Vec<Keep>,
    key: [u32; 2],
    row: usize,
    by_chance: bool,
}

/// The first and the last position, in descending order of n magnitudes, of what a model keeps. Shares are cut down to
/// whole values, but of a positive density at least one value stays.
fn window(rule: Sparsify, n: usize, model: &PerModel) -> [u64; 2] {
    let share = |share: f64| (share * n as f64) as usize;
    let target = if model.density > 0.0 { share(model.density).max(1) } else { 0 };
    let top = if rule == Sparsify::Outliers { share(model.gamma).min(n.saturating_sub(target)) } else { 0 };
    [top as u64, (top + target).min(n) as u64]
}

impl Sparsify {
    /// Blocks must be whole rows for ranks in rows.
    pub(super) fn cut(self, inputs: &Inputs) -> Cut {
        Cut { unit: if self == Sparsify::Ranked { inputs.row() } else { 1 }, deltas: true }
    }

    /// Finds the borders of every model's window. What chance keeps is divided by its probability if `by_chance`.
    pub(super) fn prepare(
        self,
        inputs: &Inputs,
        models: &[PerModel],
        key: [u32; 2],
        by_chance: bool,
    ) -> Result<Thinning> {
        let n = inputs.count();
        let whole = |model: &PerModel| self == Sparsify::Nothing || model.density >= 1.0;
        let windowed = matches!(self, Sparsify::Magnitude | Sparsify::Outliers);
        let positions = |model: &PerModel| match windowed && !whole(model) && model.density > 0.0 {
            true => window(self, n, model).to_vec(),
            false => Vec::new(),
        };
        let positions: Vec<Vec<u64>> = models.iter().map(positions).collect();
        let found = borders(inputs, self.cut(inputs), &positions, |block, lane, out| {
            out.extend(block.models[lane].iter().map(|x| magnitude(*x)));
        })?;
        let keep = |(model, found): (&PerModel, Vec<Border>)| match self {
            _ if whole(model) => Keep::All,
            _ if model.density <= 0.0 => Keep::Nothing,
            Sparsify::OfModel => Keep::From(model.threshold),
            Sparsify::Bernoulli => Keep::Random { density: model.density },
            Sparsify::Ranked => Keep::Ranked { density: model.density, epsilon: model.epsilon },
            _ => {
                let mut found = found.into_iter();
                Keep::Between(found.next().unwrap_or_default(), found.next().unwrap_or_default())
            }
        };
        Ok(Thinning { keep: models.iter().zip(found).map(keep).collect(), key, row: inputs.row(), by_chance })
    }
}

impl Thinning {
    /// Sets what is dropped of each model to 0.
    pub fn apply(&self, block: &mut Block) {
        let (index, start) = (block.index, block.start);
        for (lane, (keep, values)) in self.keep.iter().zip(&mut block.models).enumerate() {
            match keep {
                Keep::All => {}
                Keep::Nothing => values.fill(0.0),
                Keep::From(least) => {
                    values.iter_mut().for_each(|x| *x = if x.abs() >= *least { *x } else { 0.0 });
                }
                Keep::Between(first, last) => {
                    keep_between(first, last, index, values);
                }
                Keep::Random { density } => {
                    let limit = limit(*density);
                    self.draw(lane, start, values.len(), |i, word| values[i] = self.kept(values[i], word, limit));
                }
                Keep::Ranked { density, epsilon } => self.by_rank(lane, start, values, *density, *epsilon),
            }
        }
    }

    /// The magnitudes below which each model's values are dropped, where that says all: what is kept are the largest,
    /// and of values of one magnitude all or none.
    pub fn thresholds(&self) -> Option<Vec<f32>> {
        let of = |keep: &Keep| match keep {
            Keep::All => Some(0.0),
            Keep::Nothing => Some(f32::MAX),
            Keep::From(least) => Some(*least),
            Keep::Between(first, last) if first.is_start() && last.is_whole() => Some(f32::from_bits(last.key())),
            Keep::Between(..) | Keep::Random { .. } | Keep::Ranked { .. } => None,
        };
        self.keep.iter().map(of).collect()
    }

    fn by_rank(&self, lane: usize, start: usize, values: &mut [f32], density: f64, epsilon: f64) {
        let mut limits = vec![0u64; values.len()];
        let mut order: Vec<u64> = Vec::new();
        for (values, limits) in values.chunks(self.row).zip(limits.chunks_mut(self.row)) {
            order.clear();
            order.extend(values.iter().enumerate().map(|(i, x)| u64::from(magnitude(*x)) << 32 | i as u64));
            order.sort_unstable();
            let last = order.len() - 1;
            for (rank, entry) in order.iter().enumerate() {
                // A row of one value is its own median.
                let r = if last == 0 { 0.5 } else { rank as f64 / last as f64 };
                limits[(entry & 0xffff_ffff) as usize] = limit(density - epsilon + 2.0 * epsilon * r);
            }
        }
        self.draw(lane, start, values.len(), |i, word| values[i] = self.kept(values[i], word, limits[i]));
    }

    /// What a random word makes of a value.
    fn kept(&self, x: f32, word: u64, limit: u64) -> f32 {
        match word < limit {
            true if self.by_chance => (f64::from(x) / chance(limit)) as f32,
            true => x,
            false => 0.0,
        }
    }

    /// A random word for each of `count` values of a model from `start` on.
    fn draw(&self, lane: usize, start: usize, count: usize, mut take: impl FnMut(usize, u64)) {
        let mut position = start;
        while position < start + count {
            let four = (position / 4) as u64;
            let words = philox([four as u32, (four >> 32) as u32, lane as u32, 0], self.key);
            for word in &words[position % 4..] {
                if position < start + count {
                    take(position - start, u64::from(*word));
                    position += 1;
                }
            }
        }
    }
}

/// Values that are compared together.
const LANES: usize = 16;

/// Drops what does not lie between two borders. Only keys equal to a border's have to be counted one by one.
fn keep_between(first: &Border, last: &Border, block: usize, values: &mut [f32]) {
    let (highest, lowest) = (first.key(), last.key());
    let (mut first, mut last) = (first.walk(block), last.walk(block));
    for values in values.chunks_mut(LANES) {
        if keep_inside(values, lowest, highest) {
            for x in values.iter_mut() {
                let key = magnitude(*x);
                let (cut_off, kept) = (first.next(key), last.next(key));
                if cut_off || !kept {
                    *x = 0.0;
                }
            }
        }
    }
}

/// Drops values with keys below `lowest` or above `highest`, unless some are equal to either: then it says so.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+avx2", "x86_64+avx2"))]
fn keep_inside(values: &mut [f32], lowest: u32, highest: u32) -> bool {
    let equal = |any: bool, x: &f32| any | (magnitude(*x) == lowest) | (magnitude(*x) == highest);
    if values.iter().fold(false, equal) {
        return true;
    }
    for x in values {
        let key = magnitude(*x);
        *x = if (key > lowest) & (key < highest) { *x } else { 0.0 };
    }
    false
}

/// The probability of a word below `limit`.
fn chance(limit: u64) -> f64 {
    limit as f64 / (1u64 << 32) as f64
}

/// A word below this has the probability p.
fn limit(p: f64) -> u64 {
    (p.clamp(0.0, 1.0) * (1u64 << 32) as f64).round() as u64
}
