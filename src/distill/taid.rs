//! TAID's t where it follows the loss: it lives on the device beside the optimiser's state, and moves after each step by
//! what the step's loss was, so that no number has to be read back for it.

use super::recipe::{Adaptive, LossFunction, loss_names};
use super::step::METRICS;
use super::terms::external;
use crate::Result;
use crate::graph::{DType, Graph, Plan, Runner, Shape, Store};
use crate::ops::{self, TaidStep};
use crate::optim::{RING, RING_AT};

/// The losses of a recipe whose t is adaptive, and the plan that moves each.
pub struct AdaptiveTaid {
    runner: Runner,
    moving: Vec<Moving>,
}

struct Moving {
    /// Of the loss in the recipe.
    index: usize,
    /// As reports call it: `taid.t`.
    name: String,
    rule: Adaptive,
}

impl Moving {
    /// Momentum and the loss of the step before.
    fn state(&self) -> String {
        external(self.index, "t_state")
    }

    /// The t of each of the last steps, a ring.
    fn history(&self) -> String {
        external(self.index, "t_history")
    }

    /// What the host sets: the least t of the next step.
    fn least(&self) -> String {
        external(self.index, "t_least")
    }
}

impl AdaptiveTaid {
    /// Allocates the state in a store that has what the training graph reads, and sets every t to its start. `None` if
    /// no loss has an adaptive t.
    pub fn new(losses: &[LossFunction], store: &mut Store) -> Result<Option<AdaptiveTaid>> {
        let of = |(index, (name, loss)): (usize, (String, &LossFunction))| {
            Some(Moving { index, name: format!("{name}.t"), rule: loss.function.adaptive()?.clone() })
        };
        let moving: Vec<Moving> = loss_names(losses).into_iter().zip(losses).enumerate().filter_map(of).collect();
        if moving.is_empty() {
            return Ok(None);
        }
        let mut g = Graph::new();
        let at = g.external(RING_AT, [1], DType::U32);
        for of in &moving {
            let Adaptive { start, end, alpha, beta } = of.rule;
            let t = external(of.index, "t");
            store.write(&t, &[start as f32])?;
            let parts = [(t, 1), (of.state(), 2), (of.history(), RING)].map(|(name, count)| {
                if !store.contains(&name) {
                    store.add(&name, [count], DType::F32)?;
                }
                Ok::<_, crate::Error>(g.external(&name, [count], DType::F32))
            });
            let [t, state, history] = parts;
            store.add(&of.least(), [1], DType::F32)?;
            let least = g.external(&of.least(), [1], DType::F32);
            let losses = g.external(&format!("{METRICS}.{}", of.index), [RING], DType::F32);
            let rule = TaidStep { end: end as f32, alpha: alpha as f32, beta: beta as f32 };
            ops::taid_step(&mut g, rule, [t?, state?, history?], losses, at, least);
        }
        let runner = Runner::new(Plan::new(&g)?, store, &mut Vec::new())?;
        Ok(Some(AdaptiveTaid { runner, moving }))
    }

    /// Moves every t by the loss of the step after `step` steps of `total`, whose micro-batches are done.
    pub fn advance(&mut self, store: &Store, step: u64, total: u64) -> Result<()> {
        for of in &self.moving {
            store.write(&of.least(), &[of.rule.least(step + 1, total) as f32])?;
        }
        self.runner.run()
    }

    /// Names and shapes of what a checkpoint needs: t, momentum and the loss before.
    pub fn state(&self) -> Vec<(String, Shape)> {
        let of = |of: &Moving| [(external(of.index, "t"), [1].into()), (of.state(), [2].into())];
        self.moving.iter().flat_map(of).collect()
    }

    /// The rings of t by loss and key; the step after `step` steps has place `step % RING`.
    pub async fn history(&self, store: &Store) -> Result<Vec<(String, Vec<f32>)>> {
        let mut rings = Vec::new();
        for of in &self.moving {
            rings.push((of.name.clone(), store.read_f32(&of.history()).await?));
        }
        Ok(rings)
    }
}
