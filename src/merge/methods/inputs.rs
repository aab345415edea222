//! The tensors that are merged, read block by block on all cores.

use super::on_device::Program;
use crate::Result;
use crate::device::Device;
use crate::platform::parallel::*;
use std::ops::Range;

/// Values in a block: with a handful of inputs it stays in a core's cache.
const BLOCK: usize = 1 << 14;
/// Blocks whose small results are kept at a time while a tensor is summed up.
const BATCH: usize = 256;

/// Reads values of one tensor from a position on.
pub type Read<'a> = dyn Fn(usize, &mut [f32]) -> Result<()> + Sync + 'a;

/// The tensors of one shape that become one.
pub struct Inputs<'a> {
    /// Rows first.
    pub shape: &'a [usize],
    /// The base, if the method has one.
    pub base: Option<&'a Read<'a>>,
    /// The models.
    pub models: Vec<&'a Read<'a>>,
    /// What does the arithmetic that devices can do; `None` is the processor, without a copy.
    pub device: Option<&'a Device>,
}

/// Part of all inputs. Methods may change the values; they are scratch.
pub struct Block<'b> {
    /// Which block of the tensor.
    pub index: usize,
    /// Where it begins in the tensor.
    pub start: usize,
    /// Values of the base; empty without one.
    pub base: &'b [f32],
    /// Values of each model, or their differences to the base.
    pub models: Vec<&'b mut [f32]>,
}

impl Block<'_> {
    /// The number of values.
    pub fn len(&self) -> usize {
        self.models.first().map_or(self.base.len(), |model| model.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How blocks are cut and what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Blocks are whole multiples of this many values: 1, or a row.
    pub unit: usize,
    /// The models' values are their differences to the base.
    pub deltas: bool,
}

/// Fills the second argument, which has the length of the block.
type Apply<'k> = dyn Fn(&mut Block, &mut [f32]) + Send + Sync + 'k;

/// What computes a block of the result.
pub struct Kernel<'k> {
    pub(super) cut: Cut,
    apply: Box<Apply<'k>>,
    device: Option<Box<OnDevice<'k>>>,
}

/// The same for a device: what the processor does to a block before, and the rest as data.
struct OnDevice<'k> {
    before: Kernel<'k>,
    program: Program,
}

impl<'k> Kernel<'k> {
    pub(super) fn new(cut: Cut, apply: impl Fn(&mut Block, &mut [f32]) + Send + Sync + 'k) -> Kernel<'k> {
        Kernel { cut, apply: Box::new(apply), device: None }
    }

    /// The same with a way to compute it on a device: `before` leaves in each block what `program` goes on with; what
    /// it puts out is not looked at.
    pub(super) fn or_on_device(mut self, before: Kernel<'k>, program: Program) -> Kernel<'k> {
        self.device = Some(Box::new(OnDevice { before, program }));
        self
    }
}

#[derive(Default)]
struct Scratch {
    base: Vec<f32>,
    models: Vec<Vec<f32>>,
    out: Vec<f32>,
}

impl Inputs<'_> {
    /// n.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The length of the last axis; a vector is one row.
    pub fn row(&self) -> usize {
        self.shape.last().map_or(1, |columns| (*columns).max(1))
    }

    /// Values in each block but the last.
    pub fn block_length(&self, unit: usize) -> usize {
        unit.max(1) * (BLOCK / unit.max(1)).max(1)
    }

    fn range(&self, unit: usize, index: usize) -> Range<usize> {
        let length = self.block_length(unit);
        let start = index * length;
        start..(start + length).min(self.count())
    }

    fn load<'s>(&self, cut: Cut, index: usize, scratch: &'s mut Scratch) -> Result<(Block<'s>, &'s mut Vec<f32>)> {
        let range = self.range(cut.unit, index);
        let (start, length) = (range.start, range.len());
        scratch.models.resize_with(self.models.len(), Vec::new);
        if let Some(base) = self.base {
            scratch.base.resize(length, 0.0);
            base(start, &mut scratch.base)?;
        }
        for (read, values) in self.models.iter().zip(&mut scratch.models) {
            values.resize(length, 0.0);
            read(start, values)?;
            if cut.deltas {
                values.iter_mut().zip(&scratch.base).for_each(|(x, b)| *x -= b);
            }
        }
        let models = scratch.models.iter_mut().map(Vec::as_mut_slice).collect();
        Ok((Block { index, start, base: &scratch.base, models }, &mut scratch.out))
    }

    /// What `of` makes of each block, handed to `take` in their order.
    pub fn each<A: Send>(&self, cut: Cut, of: impl Fn(&mut Block) -> A + Sync, mut take: impl FnMut(A)) -> Result<()> {
        let blocks = self.count().div_ceil(self.block_length(cut.unit));
        for first in (0..blocks).step_by(BATCH) {
            let batch = first..(first + BATCH).min(blocks);
            let made = batch.into_par_iter().map_init(Scratch::default, |scratch, index| {
                let (mut block, _) = self.load(cut, index, scratch)?;
                Ok(of(&mut block))
            });
            made.collect::<Result<Vec<A>>>()?.into_iter().for_each(&mut take);
        }
        Ok(())
    }

    /// Counts over all blocks: one tally a core, each begun by `new`. What comes out may not depend on how the blocks
    /// were shared out, so this is for whole numbers.
    pub fn tally<A: Send>(
        &self,
        cut: Cut,
        new: impl Fn() -> A + Sync,
        add: impl Fn(&mut A, &mut Block) + Sync,
    ) -> Result<Vec<A>> {
        let blocks = self.count().div_ceil(self.block_length(cut.unit));
        let cores = current_num_threads().clamp(1, blocks.max(1));
        let share = |core: usize| blocks * core / cores..blocks * (core + 1) / cores;
        let count = |core: usize| {
            let (mut tally, mut scratch) = (new(), Scratch::default());
            for index in share(core) {
                let (mut block, _) = self.load(cut, index, &mut scratch)?;
                add(&mut tally, &mut block);
            }
            Ok(tally)
        };
        (0..cores).into_par_iter().map(count).collect()
    }

    /// Computes the result in order: `finish` makes of each block's values (from a position on) what is kept of them,
    /// and `take` gets that of about `band` values at a time, with where they lie. Waits for nothing but a device.
    pub async fn compute<A: Send>(
        &self,
        kernel: &Kernel<'_>,
        band: usize,
        finish: impl Fn(usize, &[f32]) -> Result<A> + Sync,
        mut take: impl FnMut(Vec<A>, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        if let (Some(device), Some(other)) = (self.device, &kernel.device) {
            return self.compute_on(device, (&other.before, &other.program), &finish, &mut take).await;
        }
        let length = self.block_length(kernel.cut.unit);
        let blocks = self.count().div_ceil(length);
        let step = (band / length).max(1);
        for first in (0..blocks).step_by(step) {
            let batch = first..(first + step).min(blocks);
            let values = first * length..(batch.end * length).min(self.count());
            let made = batch.into_par_iter().map_init(Scratch::default, |scratch, index| {
                let (mut block, out) = self.load(kernel.cut, index, scratch)?;
                out.clear();
                out.resize(block.len(), 0.0);
                (kernel.apply)(&mut block, out);
                finish(block.start, out)
            });
            take(made.collect::<Result<Vec<A>>>()?, values)?;
        }
        Ok(())
    }

    /// Some blocks as `kernel` leaves them, handed to `take` in their order with where they begin.
    pub(super) fn gather(
        &self,
        kernel: &Kernel,
        blocks: Range<usize>,
        mut take: impl FnMut(usize, &Block),
    ) -> Result<()> {
        // As many as there are cores: each holds a copy of its block.
        for first in blocks.clone().step_by(current_num_threads().max(1)) {
            let batch = first..(first + current_num_threads().max(1)).min(blocks.end);
            let made = batch.into_par_iter().map(|index| {
                let mut scratch = Scratch::default();
                let (mut block, out) = self.load(kernel.cut, index, &mut scratch)?;
                (kernel.apply)(&mut block, out);
                drop(block);
                Ok((index, scratch))
            });
            for (index, mut scratch) in made.collect::<Result<Vec<_>>>()? {
                let start = self.range(kernel.cut.unit, index).start;
                let models = scratch.models.iter_mut().map(Vec::as_mut_slice).collect();
                take(start, &Block { index, start, base: &scratch.base, models });
            }
        }
        Ok(())
    }
}
