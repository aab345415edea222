//! The graphs of a run, the memory they plan for, and what would need less.

use crate::Result;
use crate::device::Caps;
use crate::distill::memory::Memory;
use crate::distill::step::{StepSpec, StepTeacher, TeacherInput};
use crate::graph::{Graph, Plan};
use crate::models::Decoder;
use crate::nn::{Lora, ParamSpec};
use crate::optim::Settings;
use std::collections::BTreeMap;

/// The graphs of a run and their plans' shared memory.
pub(super) struct Graphs {
    pub training: Graph,
    pub evaluation: Option<Graph>,
}

/// What is measured on held-out text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    /// Nothing: there is no such text.
    Nothing,
    /// The student on the text alone.
    Text,
    /// The student beside the teachers, if there are some.
    Teacher,
}

impl Graphs {
    pub fn record(spec: &StepSpec, caps: &Caps, measured: Measured) -> Result<Graphs> {
        let evaluation = match measured {
            Measured::Nothing => None,
            Measured::Text => Some(StepSpec { teachers: Vec::new(), ..spec.clone() }.evaluation(caps)?),
            Measured::Teacher => Some(spec.evaluation(caps)?),
        };
        Ok(Graphs { training: spec.training(caps)?, evaluation })
    }

    pub fn plans(&self) -> Result<Vec<Plan>> {
        [Some(&self.training), self.evaluation.as_ref()].into_iter().flatten().map(Plan::new).collect()
    }
}

/// The memory a run of this shape takes.
pub fn plan_memory(spec: &StepSpec, settings: &Settings, caps: &Caps, measured: Measured) -> Result<Memory> {
    let plans = Graphs::record(spec, caps, measured)?.plans()?;
    let weights = |decoder: &Decoder| decoder.parameter_bytes() + decoder.rope_bytes(spec.context);
    let bytes = |p: &ParamSpec| 4 * p.shape.numel() as u64;
    let adapters: u64 = spec.trained.lora.iter().flat_map(Lora::parameters).map(|p| bytes(&p)).sum();
    let projections: u64 = spec.trained.projections.iter().map(bytes).sum();
    let on_device = |teacher: &StepTeacher| match &teacher.input {
        TeacherInput::Live(teacher) => weights(teacher),
        TeacherInput::States { head: Some(head), .. } => head.head_bytes(),
        _ => 0,
    };
    let mut inputs = BTreeMap::new();
    for plan in &plans {
        for (name, tensor) in &plan.externals {
            let batch = ["train.", "eval.", "metrics"].iter().any(|prefix| name.starts_with(prefix));
            if batch {
                inputs.insert(name.clone(), tensor.bytes());
            }
        }
    }
    Ok(Memory {
        parameters: weights(&spec.student) + adapters + projections,
        optimiser: spec.trained.optimiser_bytes(&spec.student, settings),
        teacher: spec.teachers.iter().map(on_device).sum(),
        activations: Plan::shared_slots(&plans.iter().collect::<Vec<_>>()).iter().sum(),
        inputs: inputs.values().sum::<u64>() + plans.iter().flat_map(|plan| &plan.kept).sum::<u64>(),
    })
}

/// Changes of the recipe that need less memory, mildest first, each with what it would need.
pub(super) fn remedies<'a>(
    spec: &'a StepSpec,
    settings: &'a Settings,
    caps: &'a Caps,
    measured: Measured,
) -> impl Iterator<Item = (String, Result<Memory>)> + 'a {
    let changed = move |change: String, spec: StepSpec| (change, plan_memory(&spec, settings, caps, measured));
    let recompute = (!spec.recompute)
        .then(|| changed("gradient_checkpointing: true".into(), StepSpec { recompute: true, ..spec.clone() }));
    let batches = (0..).map(|i| spec.batch >> (i + 1)).take_while(|batch| *batch > 0).map(move |batch| {
        let change = format!("per_device_train_batch_size: {batch}` with `gradient_checkpointing: true");
        changed(change, StepSpec { batch, recompute: true, ..spec.clone() })
    });
    let contexts = (0..3).map(|i| spec.context >> (i + 1)).filter(|context| *context > 0).map(move |context| {
        let change = format!("sequence_length: {context}` with `per_device_train_batch_size: 1");
        changed(change, StepSpec { context, batch: 1, recompute: true, ..spec.clone() })
    });
    recompute.into_iter().chain(batches).chain(contexts)
}
