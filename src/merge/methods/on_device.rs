//! A merge's arithmetic on a device: the combination of what is merged, and the dot products of all with each other.
//! Order statistics and random masks stay with the processor, which reads the files anyway.

use super::inputs::{Cut, Inputs, Kernel};
use crate::Result;
use crate::device::Device;
use crate::graph::{DType, Graph, Plan, Runner, Store};
use crate::ops::{self, Combination, Layout};
use std::ops::Range;

/// Values of all inputs on the device at a time.
const VALUES: usize = 1 << 22;
/// Values whose products are summed in f32; these sums are added in f64.
const LENGTH: usize = 1 << 12;

/// A kernel as data: what [`ops::combine()`] needs to know.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Program {
    /// Of each input, what its values are multiplied by.
    pub factors: Vec<f32>,
    /// Of each input, the magnitude below which a value is dropped.
    pub thresholds: Vec<f32>,
    /// The rest.
    pub how: Combination,
    /// Whether the result is added to the base.
    pub base: bool,
}

/// A combination on a device: its memory and its replay.
struct Combiner {
    store: Store,
    runner: Runner,
}

impl Combiner {
    fn new(device: &Device, program: &Program, models: usize, values: usize) -> Result<Combiner> {
        let mut g = Graph::new();
        let x = g.external("x", [models, values], DType::F32);
        let rules = g.external("rules", [2, models], DType::F32);
        let base = program.base.then(|| g.external("base", [values], DType::F32));
        let out = ops::combine(&mut g, x, rules, base, program.how);
        g.output("out", out);
        let mut store = Store::new(device);
        for (name, tensor) in g.externals() {
            store.add(name, tensor.shape, tensor.dtype)?;
        }
        store.write("rules", &[&program.factors[..], &program.thresholds[..]].concat())?;
        let runner = Runner::new(Plan::new(&g)?, &store, &mut Vec::new())?;
        Ok(Combiner { store, runner })
    }

    async fn run(&mut self, x: &[f32], base: &[f32]) -> Result<Vec<f32>> {
        self.store.write("x", x)?;
        if !base.is_empty() {
            self.store.write("base", base)?;
        }
        self.runner.run()?;
        self.runner.read_f32("out").await
    }
}

/// Blocks of a tensor that are on the device together, each of `length` values.
fn at_a_time(device: &Device, models: usize, length: usize, blocks: usize) -> usize {
    let values = VALUES.min((device.caps().max_binding / 4) as usize) / models.max(1);
    (values / length.max(1)).clamp(1, blocks.max(1))
}

impl Inputs<'_> {
    /// [`Inputs::compute`] on a device.
    pub(super) async fn compute_on<A: Send>(
        &self,
        device: &Device,
        (kernel, program): (&Kernel<'_>, &Program),
        finish: &(impl Fn(usize, &[f32]) -> Result<A> + Sync),
        take: &mut impl FnMut(Vec<A>, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let (models, length) = (self.models.len(), self.block_length(kernel.cut.unit));
        if self.count() == 0 {
            return Ok(());
        }
        let blocks = self.count().div_ceil(length);
        let step = at_a_time(device, models, length, blocks);
        let size = (step * length).min(self.count());
        let mut combiner = Combiner::new(device, program, models, size)?;
        let (mut x, mut base) = (vec![0f32; models * size], vec![0f32; if program.base { size } else { 0 }]);
        for first in (0..blocks).step_by(step) {
            let values = first * length..((first + step) * length).min(self.count());
            self.gather(kernel, first..(first + step).min(blocks), |start, block| {
                let at = start - values.start;
                for (model, found) in block.models.iter().enumerate() {
                    x[model * size + at..][..found.len()].copy_from_slice(found);
                }
                if program.base {
                    base[at..][..block.base.len()].copy_from_slice(block.base);
                }
            })?;
            let found = combiner.run(&x, &base).await?;
            // Of the last blocks there may be fewer: what lies behind them is left over from those before.
            take(vec![finish(values.start, &found[..values.len()])?], values)?;
        }
        Ok(())
    }

    /// The dot products of all inputs, or of their differences to the base, row by row.
    pub(super) async fn products_on(&self, device: &Device, deltas: bool) -> Result<Vec<f64>> {
        let (models, cut) = (self.models.len(), Cut { unit: 1, deltas });
        let length = self.block_length(1);
        let (blocks, parts) = (self.count().div_ceil(length), length / LENGTH);
        let step = at_a_time(device, models, length, blocks);
        let mut g = Graph::new();
        let shape = [step * parts, models, LENGTH];
        let x = g.external("x", shape, DType::F32);
        let products = ops::matmul(&mut g, Layout::NT, x, x);
        g.output("products", products);
        let mut store = Store::new(device);
        store.add("x", shape, DType::F32)?;
        let mut runner = Runner::new(Plan::new(&g)?, &store, &mut Vec::new())?;
        let mut sums = vec![0f64; models * models];
        for first in (0..blocks).step_by(step) {
            // What is behind the last value is 0, and adds nothing.
            let mut x = vec![0f32; step * length * models];
            let kernel = Kernel::new(cut, |_, _| {});
            self.gather(&kernel, first..(first + step).min(blocks), |start, block| {
                let part = (start - first * length) / LENGTH;
                for (model, found) in block.models.iter().enumerate() {
                    for (i, found) in found.chunks(LENGTH).enumerate() {
                        x[((part + i) * models + model) * LENGTH..][..found.len()].copy_from_slice(found);
                    }
                }
            })?;
            store.write("x", &x)?;
            runner.run()?;
            let found = runner.read_f32("products").await?;
            for part in found.chunks(models * models) {
                sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += f64::from(*x));
            }
        }
        Ok(sums)
    }
}
