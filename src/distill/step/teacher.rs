//! Teachers as graphs see them: models beside the student, or what was recorded of them.

use super::{Inputs, StepSpec};
use crate::distill::hidden::HiddenLosses;
use crate::distill::teacher_rows::state_name;
use crate::distill::terms::{records_prefix, row_weights};
use crate::graph::{DType, Graph, Tensor};
use crate::losses::Live;
use crate::models::{Decoder, Taps, Traced};
use crate::{Error, Result};

/// A teacher and what the losses on hidden states compare with it.
#[derive(Clone)]
pub struct StepTeacher {
    /// What there is of it.
    pub input: TeacherInput,
    /// Pairs of states.
    pub hidden: HiddenLosses,
}

/// What a graph has of a teacher.
#[derive(Clone)]
pub enum TeacherInput {
    /// Records of `entries` tokens a row, written by the host.
    Sparse {
        /// Ids and log-probabilities a row.
        entries: usize,
        /// Random draws rather than the likeliest tokens.
        sampled: bool,
    },
    /// A model on the same device, over the same batch.
    Live(Box<Decoder>),
    /// Hidden states, written by the host.
    States {
        /// d.
        hidden_size: usize,
        /// Which are stored, the final one last.
        indices: Vec<usize>,
        /// The model whose head makes distributions of the final state; only its head is on the device.
        head: Option<Box<Decoder>>,
    },
}

impl TeacherInput {
    /// Whether a student can be measured against it: states without a head say nothing of tokens, and random draws too
    /// little of a single row.
    pub fn measures(&self) -> bool {
        match self {
            TeacherInput::Sparse { sampled, .. } => !sampled,
            TeacherInput::Live(_) => true,
            TeacherInput::States { head, .. } => head.is_some(),
        }
    }
}

impl From<TeacherInput> for StepTeacher {
    /// A teacher whose hidden states no loss compares.
    fn from(input: TeacherInput) -> StepTeacher {
        StepTeacher { input, hidden: HiddenLosses::default() }
    }
}

/// The prefix of the parameters of teacher `number`, from 0.
pub fn teacher_prefix(number: usize) -> String {
    if number == 0 { "teacher:".to_owned() } else { format!("teacher{}:", number + 1) }
}

/// A teacher in a graph that is being recorded.
pub(in crate::distill) struct GraphTeacher<'a> {
    /// Its place in the recipe.
    pub number: usize,
    /// What there is of it.
    pub spec: &'a StepTeacher,
    /// f32 [N]: how much each row counts for it, 0 where it does not.
    pub weights: Tensor,
    /// Its hidden states, if there are some.
    pub trace: Option<Traced>,
    head: Option<(&'a Decoder, [Tensor; 1])>,
}

impl StepSpec {
    /// Teacher `number` in the graph of `inputs`, with the inner tensors of `taps`.
    pub(super) fn teacher(
        &self,
        g: &mut Graph,
        inputs: &Inputs,
        number: usize,
        taps: &Taps,
    ) -> Result<GraphTeacher<'_>> {
        let spec = &self.teachers[number];
        let prefix = teacher_prefix(number);
        let weights = match self.shared {
            true => g.external(&row_weights(inputs.graph, number), [self.rows()], DType::F32),
            false => inputs.weights,
        };
        let trace = match &spec.input {
            TeacherInput::Live(model) => {
                Some(model.forward_traced(g, &model.frozen(&prefix), &inputs.batch, false, taps)?)
            }
            TeacherInput::States { hidden_size, indices, .. } => {
                let last = indices.last().copied().ok_or_else(|| Error::internal("no recorded states"))?;
                let (records, shape) = (records_prefix(inputs.graph, number, 0), [self.rows(), *hidden_size]);
                let mut state = |index: usize| g.external(&state_name(&records, index), shape, DType::F32);
                let hidden = state(last);
                let states = taps.states.iter().map(|&index| (index, state(index))).collect();
                Some(Traced { hidden, states, relations: Vec::new() })
            }
            TeacherInput::Sparse { .. } => None,
        };
        let head = match &spec.input {
            TeacherInput::Live(model) | TeacherInput::States { head: Some(model), .. } => {
                Some((&**model, [model.head_weight(g, &model.frozen(&prefix))]))
            }
            _ => None,
        };
        Ok(GraphTeacher { number, spec, weights, trace, head })
    }

    /// Its distributions, if it gives them on the device: of its last hidden states by its head.
    pub(in crate::distill) fn live<'a>(&self, teacher: &'a GraphTeacher<'_>) -> Option<Live<'a>> {
        let (decoder, weight) = teacher.head.as_ref()?;
        Some(Live { hidden: teacher.trace.as_ref()?.hidden, head: self.head(decoder, weight) })
    }
}
