//! The graph of one micro-batch of training.

use super::{GraphTeacher, Inputs, METRICS, StepSpec};
use crate::Result;
use crate::device::Caps;
use crate::distill::recipe::Function;
use crate::graph::{DType, Graph, Tensor};
use crate::losses::{Loss, chunk_rows, fused_head};
use crate::models::{Taps, Traced};
use crate::nn::Params;
use crate::ops;
use crate::optim::{RING, RING_AT};
use std::collections::BTreeMap;

/// The values of a loss in every row, beside one teacher.
struct RowValues {
    /// The loss's number in `loss_functions`.
    loss: usize,
    /// f32 [N].
    rows: Tensor,
    /// What they are to be weighted by, the loss's own weight left out.
    weights: Tensor,
}

impl StepSpec {
    /// The graph of one micro-batch: forward, losses, and every gradient added to the parameters' gradients.
    /// Externals besides the batch's: `train.labels` u32 [N], `train.weights` f32 [N] (1 / valid tokens of the whole
    /// optimiser step, 0 where a row does not count), the teachers' records and row weights, the metrics rings, and what
    /// of the losses changes over the run ([`crate::distill::terms::write_scheduled`]).
    pub fn training(&self, caps: &Caps) -> Result<Graph> {
        let mut g = Graph::new();
        g.set_precision(self.precision);
        let inputs = self.inputs(&mut g, "train", true);
        let included = |name: &str| self.trained.includes(name);
        let trained = Params { trainable: &included, lora: self.trained.lora.as_ref(), ..Params::frozen("") };
        let teachers = self.teaching(&mut g, &inputs)?;
        let student =
            self.student.forward_traced(&mut g, &trained, &inputs.batch, self.recompute, &self.student_taps())?;
        let of_states = self.hidden_losses(&mut g, &inputs, &student, &teachers)?;
        let on_logits = self.logit_losses(&mut g, &inputs, &teachers)?;
        let (numbers, losses): (Vec<(usize, Tensor)>, Vec<Loss<'_>>) = on_logits.into_iter().unzip();
        let head = [self.student.head_weight(&mut g, &trained)];
        let head = self.head(&self.student, &head);
        let mut seeds: Vec<(Tensor, Tensor)> = Vec::new();
        let mut values: Vec<RowValues> = Vec::new();
        // Without a loss on them there is no need of logits.
        if !losses.is_empty() {
            let rows = chunk_rows(self.student.config.vocab_size, caps);
            let fused = fused_head(&mut g, student.hidden, &head, &losses, rows, true)?;
            seeds.extend(fused.d_hidden.map(|d_hidden| (student.hidden, d_hidden)));
            let of_logits = numbers.into_iter().zip(fused.loss_rows);
            values.extend(of_logits.map(|((loss, weights), rows)| RowValues { loss, rows, weights }));
        }
        for value in &of_states {
            seeds.push((value.rows, self.weights(&mut g, value.loss, value.weights)));
        }
        values.extend(of_states);
        if !seeds.is_empty() {
            g.backward(&seeds)?;
        }
        sum_into_rings(&mut g, values);
        Ok(g)
    }

    /// The teachers, if a loss asks for one.
    fn teaching(&self, g: &mut Graph, inputs: &Inputs) -> Result<Vec<GraphTeacher<'_>>> {
        if !self.losses.iter().any(|loss| loss.function.needs_teacher()) {
            return Ok(Vec::new());
        }
        let all = self.teachers.iter().enumerate();
        all.map(|(number, teacher)| self.teacher(g, inputs, number, &teacher.hidden.teacher_taps())).collect()
    }

    /// What the losses on hidden states want of the student.
    fn student_taps(&self) -> Taps {
        let mut taps = Taps::default();
        for wanted in self.teachers.iter().map(|teacher| teacher.hidden.student_taps()) {
            taps.states.extend(wanted.states);
            taps.relations.extend(wanted.relations);
        }
        for list in [&mut taps.states, &mut taps.relations] {
            list.sort_unstable();
            list.dedup();
        }
        taps
    }

    /// The losses on hidden states, beside every teacher that has some.
    fn hidden_losses(
        &self,
        g: &mut Graph,
        inputs: &Inputs,
        student: &Traced,
        teachers: &[GraphTeacher<'_>],
    ) -> Result<Vec<RowValues>> {
        let mut values = Vec::new();
        for teacher in teachers {
            let Some(trace) = &teacher.trace else { continue };
            let pairs = teacher.spec.hidden.record(g, student, trace, inputs.batch.ranges, teacher.weights)?;
            for pair in pairs {
                let weights = ops::scale(g, teacher.weights, pair.share as f32);
                values.push(RowValues { loss: pair.loss, rows: pair.rows, weights });
            }
        }
        Ok(values)
    }

    /// The losses on logits, those on a teacher once for each; and with each its number in `loss_functions` and the row
    /// weights of its value.
    fn logit_losses<'a>(
        &self,
        g: &mut Graph,
        inputs: &Inputs,
        teachers: &'a [GraphTeacher<'_>],
    ) -> Result<Vec<((usize, Tensor), Loss<'a>)>> {
        let mut losses = Vec::new();
        for (i, loss) in self.losses.iter().enumerate() {
            match &loss.function {
                Function::Hidden(_) => {}
                Function::CrossEntropy { .. } => {
                    let on_labels = self.on_labels(g, i, inputs.labels, inputs.weights)?;
                    losses.push(((i, inputs.weights), on_labels));
                }
                _ => {
                    for teacher in teachers {
                        losses.push(((i, teacher.weights), self.on_teacher(g, i, teacher)?));
                    }
                }
            }
        }
        Ok(losses)
    }
}

/// Adds each loss's weighted sum to this step's place in its ring.
fn sum_into_rings(g: &mut Graph, values: Vec<RowValues>) {
    let at = g.external(RING_AT, [1], DType::U32);
    // A sum takes over its ring's memory: the next one of the same loss goes on from there.
    let mut rings: BTreeMap<usize, Tensor> = BTreeMap::new();
    for RowValues { loss, rows, weights } in values {
        let so_far = rings.get(&loss).copied();
        let so_far = so_far.unwrap_or_else(|| g.external(&format!("{METRICS}.{loss}"), [RING], DType::F32));
        rings.insert(loss, ops::weighted_sum(g, rows, weights, so_far, at));
    }
}
