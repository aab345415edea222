//! The graph of one batch of evaluation.

use super::{BEST, GraphTeacher, StepSpec, TeacherInput};
use crate::Result;
use crate::device::Caps;
use crate::distill::recipe::MissingProbability;
use crate::distill::terms::{records, records_prefix};
use crate::graph::{DType, Graph, Tensor};
use crate::losses::{Against, chunk_rows, evaluate_head};
use crate::models::Taps;
use crate::nn::Params;
use crate::ops;
use std::collections::BTreeMap;

impl StepSpec {
    /// The graph of one batch of evaluation at temperature 1. Sums over the batch's rows go into `eval.sum.nll` and,
    /// with teachers to measure against, `eval.sum.kld` and `eval.sum.agreement`, f32 [1] each, which the caller clears
    /// before a pass. Row weights are 1 for rows that count and 0 for the others; several teachers' measures add up by
    /// their row weights. With a sparse teacher the divergence is that of its K + 1 buckets, a lower bound of the full
    /// one.
    pub fn evaluation(&self, caps: &Caps) -> Result<Graph> {
        let mut g = Graph::new();
        let inputs = self.inputs(&mut g, "eval", false);
        let frozen = Params { lora: self.trained.lora.as_ref(), ..Params::frozen("") };
        let hidden = self.student.forward(&mut g, &frozen, &inputs.batch, false)?;
        let head = [self.student.head_weight(&mut g, &frozen)];
        let head = self.head(&self.student, &head);
        let measuring = (0..self.teachers.len()).filter(|&number| self.teachers[number].input.measures());
        let teachers = measuring
            .map(|number| self.teacher(&mut g, &inputs, number, &Taps::default()))
            .collect::<Result<Vec<GraphTeacher<'_>>>>()?;
        let against: Vec<Against<'_>> = teachers.iter().filter_map(|teacher| self.against(&mut g, teacher)).collect();
        let rows = chunk_rows(self.student.config.vocab_size, caps);
        let measured = evaluate_head(&mut g, hidden, &head, inputs.labels, inputs.weights, &against, rows)?;
        let mut sums = vec![("nll", measured.nll, inputs.weights)];
        for (found, teacher) in measured.beside.iter().zip(&teachers) {
            sums.push(("kld", found.kld, teacher.weights));
            sums.extend(found.agreement.map(|rows| ("agreement", rows, teacher.weights)));
        }
        if let Some(best) = measured.best {
            g.output(BEST, best);
        }
        let zero = g.external("eval.zero", [1], DType::U32);
        let mut so_far: BTreeMap<&str, Tensor> = BTreeMap::new();
        for (name, rows, weights) in sums {
            let sum = so_far.get(name).copied();
            let sum = sum.unwrap_or_else(|| g.external(&format!("eval.sum.{name}"), [1], DType::F32));
            so_far.insert(name, ops::weighted_sum(&mut g, rows, weights, sum, zero));
        }
        Ok(g)
    }

    fn against<'a>(&self, g: &mut Graph, teacher: &'a GraphTeacher<'_>) -> Option<Against<'a>> {
        match (self.live(teacher), &teacher.spec.input) {
            (Some(live), _) => Some(Against::Live(live)),
            (None, TeacherInput::Sparse { .. }) => {
                let prefix = records_prefix("eval", teacher.number, 0);
                Some(Against::Stored(records(g, teacher, &prefix, 1.0, MissingProbability::Ghost)))
            }
            (None, _) => None,
        }
    }
}
