//! Exact order statistics by counting, without sorting: the highest 16 bits of every key are counted, then the lowest
//! 16 of those that share the highest with a wanted one. Equal keys are ordered by position, the last counting as the
//! larger (as after a stable ascending sort).

use super::inputs::{Block, Cut, Inputs};
use crate::Result;

const BINS: usize = 1 << 16;

/// A key that orders as |x| does.
pub(super) fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// A key that orders as x does.
pub(super) fn signed(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// The inverse of [`signed`].
pub(super) fn of_signed(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & 0x7fff_ffff } else { !key })
}

/// The border behind the first so many values in descending order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Border {
    /// Greater keys are before it, smaller ones behind it.
    key: u32,
    /// How many of the equal ones are behind it: those that come first in the tensor.
    behind: u64,
    /// Of each block, how many equal ones come before the block; empty where all equal ones lie on one side.
    seen: Vec<u64>,
}

/// A walk through one block that tells of each key on which side of a border it is.
pub(super) struct Walk<'b> {
    border: &'b Border,
    seen: u64,
}

impl Border {
    /// Nothing is before it.
    fn at_start() -> Border {
        Border { key: u32::MAX, ..Border::default() }
    }

    /// Starts at the beginning of a block.
    pub fn walk(&self, block: usize) -> Walk<'_> {
        Walk { border: self, seen: self.seen.get(block).copied().unwrap_or(0) }
    }

    /// Whether nothing is before it.
    pub fn is_start(&self) -> bool {
        *self == Border::at_start()
    }

    /// Whether all values of its key are before it.
    pub fn is_whole(&self) -> bool {
        self.behind == 0
    }

    /// The key of the last value before the border.
    pub fn key(&self) -> u32 {
        self.key
    }
}

impl Walk<'_> {
    /// Whether the block's next value, of this key, is before the border.
    pub fn next(&mut self, key: u32) -> bool {
        let border = self.border;
        if key != border.key {
            return key > border.key;
        }
        self.seen += 1;
        self.seen > border.behind
    }
}

/// The borders behind the first `positions[lane][..]` values of each lane, whose keys in a block `keys(block, lane,
/// out)` writes.
pub(super) fn borders(
    inputs: &Inputs,
    cut: Cut,
    positions: &[Vec<u64>],
    keys: impl Fn(&Block, usize, &mut Vec<u32>) + Sync,
) -> Result<Vec<Vec<Border>>> {
    let n = inputs.count() as u64;
    let wanted: Vec<Vec<u64>> =
        positions.iter().map(|lane| lane.iter().copied().filter(|p| *p > 0).map(|p| p.min(n)).collect()).collect();
    if wanted.iter().all(Vec::is_empty) {
        return Ok(positions.iter().map(|lane| vec![Border::at_start(); lane.len()]).collect());
    }
    let high = histograms(inputs, cut, &wanted.iter().map(|_| vec![None]).collect::<Vec<_>>(), &keys)?;
    let bins: Vec<Vec<(u32, u64, u64)>> =
        wanted.iter().zip(&high).map(|(lane, high)| lane.iter().map(|p| find(&high[0], *p)).collect()).collect();
    let inside: Vec<Vec<Option<u32>>> =
        bins.iter().map(|lane| lane.iter().map(|(bin, _, _)| Some(*bin)).collect()).collect();
    let low = histograms(inputs, cut, &inside, &keys)?;
    let mut borders: Vec<Vec<Border>> = Vec::new();
    for (bins, low) in bins.iter().zip(&low) {
        let border = |((bin, left, _), low): (&(u32, u64, u64), &Vec<u64>)| {
            let (last, ties, equal) = find(low, *left);
            Border { key: bin << 16 | last, behind: equal - ties, seen: Vec::new() }
        };
        borders.push(bins.iter().zip(low).map(border).collect());
    }
    count_ties(inputs, cut, &mut borders, &keys)?;
    // Put those of position 0 back.
    let back = |(lane, found): (&Vec<u64>, Vec<Border>)| {
        let mut found = found.into_iter();
        lane.iter().map(|p| if *p == 0 { None } else { found.next() }.unwrap_or_else(Border::at_start)).collect()
    };
    Ok(positions.iter().zip(borders).map(back).collect())
}

/// The bin of the value at `position` (from 1) in descending order, its position among those of the bin, and how many
/// the bin has.
pub(in crate::merge) fn find(histogram: &[u64], position: u64) -> (u32, u64, u64) {
    let mut left = position;
    for (bin, count) in histogram.iter().enumerate().rev() {
        if left <= *count {
            return (bin as u32, left, *count);
        }
        left -= count;
    }
    (0, 0, 0)
}

/// How many values of each task vector have which highest 16 bits of their magnitude; with `inside`, which lowest those
/// have that have these highest.
pub(in crate::merge) fn magnitudes(inputs: &Inputs, inside: &[Option<u32>]) -> Result<Vec<Vec<u64>>> {
    let inside: Vec<_> = inside.iter().map(|high| vec![*high]).collect();
    let keys = |block: &Block, lane: usize, out: &mut Vec<u32>| {
        out.extend(block.models[lane].iter().map(|x| magnitude(*x)));
    };
    let counted = histograms(inputs, Cut { unit: 1, deltas: true }, &inside, &keys)?;
    Ok(counted.into_iter().flatten().collect())
}

/// For each lane a histogram for each of its `inside`: of the highest 16 bits (`None`), or of the lowest 16 of the keys
/// with these highest.
fn histograms(
    inputs: &Inputs,
    cut: Cut,
    inside: &[Vec<Option<u32>>],
    keys: &(impl Fn(&Block, usize, &mut Vec<u32>) + Sync),
) -> Result<Vec<Vec<Vec<u64>>>> {
    let new = || {
        let counts: Vec<Vec<Vec<u64>>> = inside.iter().map(|lane| vec![vec![0; BINS]; lane.len()]).collect();
        (counts, Vec::new())
    };
    let add = |(counts, buffer): &mut (Vec<Vec<Vec<u64>>>, Vec<u32>), block: &mut Block| {
        for (lane, (counts, inside)) in counts.iter_mut().zip(inside).enumerate() {
            if inside.is_empty() {
                continue;
            }
            buffer.clear();
            keys(block, lane, buffer);
            for (counts, inside) in counts.iter_mut().zip(inside) {
                match inside {
                    None => buffer.iter().for_each(|key| counts[(key >> 16) as usize] += 1),
                    Some(high) => {
                        let low = buffer.iter().filter(|key| *key >> 16 == *high);
                        low.for_each(|key| counts[(key & 0xffff) as usize] += 1);
                    }
                }
            }
        }
    };
    let mut parts = inputs.tally(cut, new, add)?.into_iter().map(|(counts, _)| counts);
    let mut sum = parts.next().unwrap_or_else(|| new().0);
    for part in parts {
        let all = sum.iter_mut().flatten().flatten().zip(part.iter().flatten().flatten());
        all.for_each(|(sum, part)| *sum += part);
    }
    Ok(sum)
}

/// Fills [`Border::seen`] where equal keys lie on both sides.
fn count_ties(
    inputs: &Inputs,
    cut: Cut,
    borders: &mut [Vec<Border>],
    keys: &(impl Fn(&Block, usize, &mut Vec<u32>) + Sync),
) -> Result<()> {
    let split: Vec<(usize, usize, u32)> = borders
        .iter()
        .enumerate()
        .flat_map(|(lane, all)| all.iter().enumerate().map(move |(i, border)| (lane, i, border)))
        .filter(|(_, _, border)| border.behind > 0)
        .map(|(lane, i, border)| (lane, i, border.key))
        .collect();
    if split.is_empty() {
        return Ok(());
    }
    let mut sums = vec![0u64; split.len()];
    let of = |block: &mut Block| {
        let mut buffer = Vec::with_capacity(block.len());
        let count = |(lane, _, wanted): &(usize, usize, u32)| {
            buffer.clear();
            keys(block, *lane, &mut buffer);
            buffer.iter().filter(|key| *key == wanted).count() as u64
        };
        split.iter().map(count).collect::<Vec<u64>>()
    };
    inputs.each(cut, of, |counts| {
        for ((sum, count), (lane, i, _)) in sums.iter_mut().zip(counts).zip(&split) {
            borders[*lane][*i].seen.push(*sum);
            *sum += count;
        }
    })
}
