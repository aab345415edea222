//! A plan bound to a device: scratch allocated, bind groups built, ready to be replayed.

use super::plan::PlannedStep;
use super::{Arg, ArgMut, CpuIo, DType, Node, Place, Plan, Store, Tensor};
use crate::device::{Bind, Buffer, Device, Memory, Recorded, Slice, Words, cpu};
use crate::{Error, Result};
use std::sync::{RwLockReadGuard, RwLockWriteGuard};

/// A plan ready to run on one device.
pub struct Runner {
    device: Device,
    plan: Plan,
    externals: Vec<Slice>,
    slots: Vec<Buffer>,
    kept: Vec<Buffer>,
    recorded: Option<Recorded>,
}

impl Runner {
    /// Allocates the plan's scratch memory and binds its externals to the store's memory. `scratch` is a pool that
    /// runners which never run at the same time may share; slots that do not fit are replaced by larger ones.
    pub fn new(plan: Plan, store: &Store, scratch: &mut Vec<Buffer>) -> Result<Runner> {
        let device = store.device().clone();
        let mut externals = Vec::new();
        for (name, tensor) in &plan.externals {
            externals.push(store.slice_for(name, *tensor)?);
        }
        for (i, &bytes) in plan.slots.iter().enumerate() {
            match scratch.get(i) {
                Some(buffer) if buffer.bytes() >= bytes => {}
                Some(_) => scratch[i] = device.alloc("activations", bytes)?,
                None => scratch.push(device.alloc("activations", bytes)?),
            }
        }
        let slots = scratch[..plan.slots.len()].to_vec();
        let kept = plan.kept.iter().map(|&bytes| device.alloc("outputs", bytes)).collect::<Result<_>>()?;
        let mut runner = Runner { device, plan, externals, slots, kept, recorded: None };
        if let Device::Gpu(gpu) = &runner.device {
            runner.recorded = Some(gpu.record(&runner.launches()?)?);
        }
        Ok(runner)
    }

    /// A scratch pool that holds every one of these plans, so that none has to replace a buffer of another's.
    pub fn reserve(device: &Device, plans: &[&Plan]) -> Result<Vec<Buffer>> {
        Plan::shared_slots(plans).into_iter().map(|bytes| device.alloc("activations", bytes)).collect()
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Replays the plan once. On a GPU this only submits; reading an output waits.
    pub fn run(&mut self) -> Result<()> {
        match (&self.device, &mut self.recorded) {
            (Device::Gpu(gpu), Some(recorded)) => gpu.submit(recorded),
            _ => self.plan.steps.iter().try_for_each(|step| self.run_on_cpu(step)),
        }
    }

    /// Reads a float output.
    pub async fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.device.read_f32(&self.output(name)?).await
    }

    /// Reads an integer output.
    pub async fn read_u32(&self, name: &str) -> Result<Vec<u32>> {
        self.device.read_u32(&self.output(name)?).await
    }

    fn output(&self, name: &str) -> Result<Slice> {
        let found = self.plan.outputs.get(name);
        let (tensor, place) = found.ok_or_else(|| Error::internal(format!("the plan has no output `{name}`")))?;
        Ok(self.slice(*tensor, *place))
    }

    fn slice(&self, tensor: Tensor, place: Place) -> Slice {
        match place {
            Place::External(i) => self.externals[i].clone(),
            Place::Slot(i) => Slice { buffer: self.slots[i].clone(), offset: 0, bytes: tensor.bytes() },
            Place::Kept(i) => Slice { buffer: self.kept[i].clone(), offset: 0, bytes: tensor.bytes() },
        }
    }

    /// Every dispatch of the plan with the memory each binding covers and the work it does.
    fn launches(&self) -> Result<Vec<crate::device::Launch>> {
        let mut launches = Vec::new();
        for step in &self.plan.steps {
            let dispatches = step.with_node(|node| step.op.dispatches(node, self.device.caps()))?;
            let share = dispatches.len().max(1) as u64;
            for dispatch in dispatches {
                let bindings = dispatch.binds.iter().map(|&bind| self.binding(step, bind)).collect::<Result<_>>()?;
                let work = (step.cost.flops + step.cost.bytes) / share;
                launches.push(crate::device::Launch { dispatch, bindings, work });
            }
        }
        Ok(launches)
    }

    /// The memory behind one binding and whether the kernel writes it.
    fn binding(&self, step: &PlannedStep, bind: Bind) -> Result<(Slice, bool)> {
        let ((tensor, place), range, writes) = match bind {
            Bind::In(i) => (step.inputs[i], None, false),
            Bind::InRange(i, offset, bytes) => (step.inputs[i], Some((offset, bytes)), false),
            Bind::Out(i) => (step.outputs[i], None, true),
            Bind::OutRange(i, offset, bytes) => (step.outputs[i], Some((offset, bytes)), true),
        };
        let mut slice = self.slice(tensor, place);
        if let Some((offset, bytes)) = range {
            slice = Slice { offset: slice.offset + offset, bytes, ..slice };
        }
        let limit = self.device.caps().max_binding;
        if slice.bytes > limit {
            return Err(Error::device(
                format!("`{}` needs {} bytes in one binding, the limit here is {limit}", step.op.name(), slice.bytes),
                "use a smaller batch or sequence length",
            ));
        }
        Ok((slice, writes))
    }

    fn run_on_cpu(&self, step: &PlannedStep) -> Result<()> {
        let in_place = step.op.in_place();
        let slices = |tensors: &[(Tensor, Place)]| -> Vec<Slice> {
            tensors.iter().map(|(tensor, place)| self.slice(*tensor, *place)).collect()
        };
        let (inputs, outputs) = (slices(&step.inputs), slices(&step.outputs));
        let mut read: Vec<Option<RwLockReadGuard<'_, Words>>> = Vec::new();
        for (i, slice) in inputs.iter().enumerate() {
            let taken_over = in_place.iter().any(|&(_, input)| input == i);
            read.push(if taken_over { None } else { Some(words(slice)?.read().map_err(|_| cpu::poisoned())?) });
        }
        let mut written: Vec<RwLockWriteGuard<'_, Words>> = Vec::new();
        for slice in &outputs {
            // Two bindings of one buffer, one of them written: a GPU refuses this, so the CPU does too.
            let guard = words(slice)?.try_write();
            written.push(guard.map_err(|_| {
                Error::internal(format!("`{}` writes a buffer that it binds a second time", step.op.name()))
            })?);
        }
        let arg = |(i, (tensor, _)): (usize, &(Tensor, Place))| match (&read[i], tensor.dtype) {
            (Some(guard), DType::F32) => Arg::F(bytemuck::cast_slice(&guard[word_range(&inputs[i])])),
            (Some(guard), DType::U32 | DType::Packed(_)) => Arg::U(&guard[word_range(&inputs[i])]),
            (None, DType::F32) => Arg::F(&[]),
            (None, DType::U32 | DType::Packed(_)) => Arg::U(&[]),
        };
        let arguments = step.inputs.iter().enumerate().map(arg).collect();
        let mut results = Vec::new();
        for ((guard, slice), (tensor, _)) in written.iter_mut().zip(&outputs).zip(&step.outputs) {
            let data = &mut guard[word_range(slice)];
            results.push(match tensor.dtype {
                DType::F32 => ArgMut::F(bytemuck::cast_slice_mut(data)),
                DType::U32 | DType::Packed(_) => ArgMut::U(data),
            });
        }
        step.with_node(|node| {
            let node = Node { inputs: node.inputs, outputs: node.outputs };
            step.op.run_f32(&mut CpuIo { node, inputs: arguments, outputs: results });
        });
        Ok(())
    }
}

fn words(slice: &Slice) -> Result<&std::sync::RwLock<Words>> {
    match &slice.buffer.memory {
        Memory::Cpu(words) => Ok(words),
        Memory::Gpu(_) => Err(Error::internal("a GPU buffer in a CPU plan")),
    }
}

fn word_range(slice: &Slice) -> std::ops::Range<usize> {
    let start = (slice.offset / 4) as usize;
    start..start + (slice.bytes / 4) as usize
}
