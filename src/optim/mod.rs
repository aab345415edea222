//! Optimisers over a model's parameter arenas: where the state lives and how one update is recorded.

use crate::Result;
use crate::graph::{DType, Graph, Plan, Runner, Shape, Store};
use crate::ops::{self, Page};

/// AdamW's constants (arXiv:1711.05101), with transformers' names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub adam_beta1: f64,
    /// Decay of the second moment.
    pub adam_beta2: f64,
    /// Added to the root of the second moment.
    pub adam_epsilon: f64,
    /// Decoupled decay, applied to matrices only.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 does not clip.
    pub max_grad_norm: f64,
}

/// Names of the externals an update reads or writes.
pub const STEP: &str = "optim.step";
/// Global gradient norms before clipping of the last steps, a ring.
pub const NORMS: &str = "optim.norms";
/// Steps whose scalars a ring holds: how far apart two reports may be.
pub const RING: usize = 64;
/// Where in the rings the running step's scalars go, u32 [1].
pub const RING_AT: &str = "optim.ring_at";

/// Gradients and moments of a model's parameters, and the plan that updates them.
pub struct Optimiser {
    settings: AdamW,
    runner: Runner,
    /// Names of the first and second moments' pages, for checkpoints.
    pub state_pages: Vec<String>,
}

impl Optimiser {
    /// Allocates gradients and moments beside the parameters `groups` (matrices, vectors) whose pages are
    /// `pages`, and prepares the update.
    pub fn new(
        settings: AdamW,
        store: &mut Store,
        groups: &[Vec<(String, Shape)>; 2],
        pages: &[Vec<String>; 2],
    ) -> Result<Optimiser> {
        let mut g = Graph::new();
        let (mut flat, mut state_pages) = (Vec::new(), Vec::new());
        for ((group, label), params) in groups.iter().zip(["decay", "plain"]).zip(pages) {
            let grads: Vec<_> = group.iter().map(|(name, shape)| (Graph::grad_name(name), *shape)).collect();
            let moment = |which: &str| -> Vec<_> {
                group.iter().map(|(name, shape)| (format!("{which}:{name}"), *shape)).collect()
            };
            let grads = store.arena(&format!("grads.{label}"), &grads)?;
            let first = store.arena(&format!("m.{label}"), &moment("m"))?;
            let second = store.arena(&format!("v.{label}"), &moment("v"))?;
            for (i, param) in params.iter().enumerate() {
                let mut page = |name: &str| -> Result<_> { Ok(g.external(name, store.shape(name)?, DType::F32)) };
                flat.push(Page {
                    param: page(param)?,
                    grad: page(&grads[i])?,
                    m: page(&first[i])?,
                    v: page(&second[i])?,
                    decay: label == "decay",
                });
            }
            state_pages.extend(first.into_iter().chain(second));
        }
        store.add(STEP, [8], DType::F32)?;
        for (name, count, dtype) in [("optim.norm", 2, DType::F32), (NORMS, RING, DType::F32), (RING_AT, 1, DType::U32)]
        {
            store.add(name, [count], dtype)?;
        }
        // Picks the norm out of (norm, clip factor).
        store.add("optim.first", [2], DType::F32)?;
        store.write("optim.first", &[1f32, 0.0])?;
        let step = g.external(STEP, [8], DType::F32);
        let norm = g.external("optim.norm", [2], DType::F32);
        let gradients: Vec<_> = flat.iter().map(|page| page.grad).collect();
        let norm = ops::grad_norm(&mut g, &gradients, settings.max_grad_norm as f32, norm);
        let (ring, at) = (g.external(NORMS, [RING], DType::F32), g.external(RING_AT, [1], DType::U32));
        let first = g.external("optim.first", [2], DType::F32);
        ops::weighted_sum(&mut g, norm, first, ring, at);
        for page in flat {
            ops::adamw(&mut g, page, norm, step);
        }
        let runner = Runner::new(Plan::new(&g)?, store, &mut Vec::new())?;
        Ok(Optimiser { settings, runner, state_pages })
    }

    /// One update with this learning rate; `step` counts from 1. Clears the gradients.
    pub fn update(&mut self, store: &Store, step: u64, learning_rate: f64) -> Result<()> {
        let AdamW { adam_beta1: b1, adam_beta2: b2, adam_epsilon, weight_decay, .. } = self.settings;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let values = [learning_rate, b1, b2, adam_epsilon, weight_decay, correction(b1), correction(b2), 0.0];
        store.write(STEP, &values.map(|x| x as f32))?;
        self.runner.run()
    }

    /// The update's plan.
    pub fn plan(&self) -> &Plan {
        self.runner.plan()
    }
}
