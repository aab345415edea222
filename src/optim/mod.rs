//! Optimisers over a model's parameter arenas: where the state lives and how one update is recorded.

mod average;
mod rule;
mod state;

pub use rule::{Rule, Settings};

use crate::Result;
use crate::graph::{DType, Graph, Plan, Runner, Shape, Store, Tensor};
use crate::ops;
use average::Average;
use state::State;

/// Global gradient norms before clipping of the last steps, a ring.
pub const NORMS: &str = "optim.norms";
/// Steps whose scalars a ring holds: how far apart two reports may be.
pub const RING: usize = 64;
/// Where in the rings the running step's scalars go, u32 [1].
pub const RING_AT: &str = "optim.ring_at";

/// Trained parameters that are updated alike and lie together in the arena `label` ([`Store::arena`]).
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// The arena's label.
    pub label: String,
    /// Names and shapes, in the order in which they lie there.
    pub params: Vec<(String, Shape)>,
    /// Whether weight decay applies.
    pub decay: bool,
    /// The learning rate's factor for them.
    pub rate: f64,
}

/// Gradients and state of a model's trained parameters, and the plan that updates them.
pub struct Optimiser {
    settings: Settings,
    runner: Runner,
    rates: Vec<f64>,
    state: Vec<(String, Shape)>,
    average: Option<Average>,
}

impl Optimiser {
    /// Allocates gradients and state beside the parameters of `groups`, which lie in `store` with their first values,
    /// and prepares the update.
    pub fn new(settings: Settings, store: &mut Store, groups: &[Group]) -> Result<Optimiser> {
        let mut g = Graph::new();
        let mut state = State::new(settings.rule, store)?;
        let mut pages = Vec::new();
        for (i, group) in groups.iter().enumerate() {
            store.add(&step_name(i), [8], DType::F32)?;
            let grads: Vec<_> = group.params.iter().map(|(name, shape)| (Graph::grad_name(name), *shape)).collect();
            for (page, grad) in store.arena(&format!("grads.{}", group.label), &grads)?.into_iter().enumerate() {
                pages.push((i, page_name(group, page), grad));
            }
            state.allocate(store, group)?;
        }
        let gradients: Vec<Tensor> = pages
            .iter()
            .map(|(.., grad)| Ok(g.external(grad, store.shape(grad)?, DType::F32)))
            .collect::<Result<_>>()?;
        let norm = record_norm(&mut g, store, &gradients, settings.max_grad_norm)?;
        let mut average = settings.averages().then(|| Average::new(store, groups)).transpose()?;
        for ((i, param, _), grad) in pages.iter().zip(gradients) {
            let step = g.external(&step_name(*i), [8], DType::F32);
            let param_tensor = g.external(param, store.shape(param)?, DType::F32);
            let decay = groups[*i].decay && settings.weight_decay != 0.0;
            let updated = state.record(&mut g, store, param, [param_tensor, grad], decay, [norm, step])?;
            if let Some(average) = &mut average {
                average.record(&mut g, store, param, updated, settings.ema_decay)?;
            }
        }
        let runner = Runner::new(Plan::new(&g)?, store, &mut Vec::new())?;
        let rates = groups.iter().map(|group| group.rate).collect();
        let mut names = state.tensors;
        names.extend(average.iter().flat_map(|average| average.tensors.iter().cloned()));
        Ok(Optimiser { settings, runner, rates, state: names, average })
    }

    /// One update with this learning rate; `step` counts from 1. Clears the gradients.
    pub fn update(&mut self, store: &Store, step: u64, learning_rate: f64) -> Result<()> {
        for (i, rate) in self.rates.iter().enumerate() {
            store.write(&step_name(i), &self.settings.scalars(step, learning_rate * rate).map(|x| x as f32))?;
        }
        self.runner.run()
    }

    /// The update's plan.
    pub fn plan(&self) -> &Plan {
        self.runner.plan()
    }

    /// Names and shapes of what a checkpoint needs besides the parameters: moments, quantised moments (u32, whose bits
    /// have to survive) and averages. The names do not depend on the device.
    pub fn state(&self) -> &[(String, Shape)] {
        &self.state
    }

    /// Whether an average of the parameters is kept.
    pub fn averages(&self) -> bool {
        self.average.is_some()
    }

    /// Exchanges the parameters' values with their average's, if there is one; called again, it puts them back.
    pub fn exchange_average(&self, store: &Store) -> Result<()> {
        self.average.as_ref().map_or(Ok(()), |average| average.exchange(store))
    }
}

/// The name of a group's scalars of the running step.
fn step_name(group: usize) -> String {
    format!("optim.step.{group}")
}

/// The name of a page of a group's parameters.
fn page_name(group: &Group, page: usize) -> String {
    format!("{}/{page}", group.label)
}

/// Records the clip factor over all gradients and the norm's way into its ring.
fn record_norm(g: &mut Graph, store: &mut Store, gradients: &[Tensor], max_grad_norm: f64) -> Result<Tensor> {
    for (name, count, dtype) in [("optim.norm", 2, DType::F32), (NORMS, RING, DType::F32), (RING_AT, 1, DType::U32)] {
        store.add(name, [count], dtype)?;
    }
    // Picks the norm out of (norm, clip factor).
    store.add("optim.first", [2], DType::F32)?;
    store.write("optim.first", &[1f32, 0.0])?;
    let norm = g.external("optim.norm", [2], DType::F32);
    let norm = ops::grad_norm(g, gradients, max_grad_norm as f32, norm);
    let (ring, at) = (g.external(NORMS, [RING], DType::F32), g.external(RING_AT, [1], DType::U32));
    let first = g.external("optim.first", [2], DType::F32);
    ops::weighted_sum(g, norm, first, ring, at);
    Ok(norm)
}
