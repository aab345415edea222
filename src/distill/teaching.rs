//! What the host tells the device of the teachers with each batch: their records, and how they share its rows.

use super::recipe::{Recipe, Teacher};
use super::teacher_rows::{RowTensors, TeacherRows};
use super::terms::{records_prefix, row_weights};
use crate::data::packing::{Batch, IGNORE};
use crate::data::tokens::Corpus;
use crate::graph::Store;
use crate::{Error, Result};
use std::path::PathBuf;

/// Each teacher's share of a row, by the row's route: its weight divided by the sum of those that teach the row, 0 where
/// it does not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shares {
    /// One item a route of the corpus, in the order of [`Corpus::routes`], with one share a teacher.
    by_route: Vec<Vec<f64>>,
    /// The same for rows without a route.
    without: Vec<f64>,
}

/// Everything of the teachers that changes from batch to batch.
#[derive(Default)]
pub struct Teaching {
    /// Each teacher's recorded rows, at each of the temperatures that a graph asks for; none of a live one.
    pub records: Vec<Vec<TeacherRows>>,
    /// How the teachers share the rows.
    pub shares: Shares,
}

impl Shares {
    /// Shares in the rows of a corpus with these `routes`. Only teachers that `counts` holds for take part.
    pub fn new(teachers: &[Teacher], counts: &[bool], routes: &[String]) -> Shares {
        let of = |route: Option<&str>| -> Vec<f64> {
            let takes_part = |(teacher, counts): (&Teacher, &bool)| *counts && teacher.teaches(route);
            let weight = |pair: (&Teacher, &bool)| if takes_part(pair) { pair.0.weight } else { 0.0 };
            let weights: Vec<f64> = teachers.iter().zip(counts).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            weights.into_iter().map(|weight| if sum > 0.0 { weight / sum } else { 0.0 }).collect()
        };
        Shares { by_route: routes.iter().map(|route| of(Some(route))).collect(), without: of(None) }
    }

    /// The only teacher's share of every row.
    pub fn alone() -> Shares {
        Shares { by_route: Vec::new(), without: vec![1.0] }
    }

    /// One share a teacher, of a row whose route has the id `route`.
    pub fn of(&self, route: u32) -> &[f64] {
        self.by_route.get(route as usize).unwrap_or(&self.without)
    }

    /// Whether some teacher teaches rows of this route.
    pub fn taught(&self, route: u32) -> bool {
        self.of(route).iter().any(|share| *share > 0.0)
    }

    /// Rows of a batch that count and that some teacher teaches.
    pub fn taught_rows(&self, batch: &Batch) -> usize {
        let counts = |(label, route): &(&u32, &u32)| **label != IGNORE && self.taught(**route);
        batch.labels.iter().zip(&batch.route).filter(counts).count()
    }

    /// The weight of each of a batch's rows for teacher `number`: `weight` times its share, 0 for rows without a label.
    fn weights(&self, batch: &Batch, number: usize, weight: f64) -> Vec<f32> {
        let share = |route: u32| self.of(route).get(number).copied().unwrap_or(0.0);
        let of = |(label, route): (&u32, &u32)| if *label == IGNORE { 0.0 } else { (weight * share(*route)) as f32 };
        batch.labels.iter().zip(&batch.route).map(of).collect()
    }
}

impl Teaching {
    /// The files of shards that a batch's records lie in.
    pub fn files(&self, batch: &Batch) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for records in self.records.iter().flatten() {
            files.extend(records.files(batch)?);
        }
        Ok(files)
    }

    /// Reads the records of a batch and writes them, with each teacher's row weights, to the externals of `graph` that
    /// are in `store`. What was read, one item a teacher: of the first temperature, if of any.
    pub fn write(&self, store: &Store, graph: &str, batch: &Batch, weight: f64) -> Result<Vec<Option<RowTensors>>> {
        let mut read = Vec::new();
        for (number, temperatures) in self.records.iter().enumerate() {
            let weights = row_weights(graph, number);
            if store.contains(&weights) {
                store.write(&weights, &self.shares.weights(batch, number, weight))?;
            }
            let mut first = None;
            for (index, records) in temperatures.iter().enumerate() {
                let prefix = records_prefix(graph, number, index);
                if records.wanted(store, &prefix) {
                    let rows = records.read(batch)?;
                    rows.write(store, &prefix)?;
                    first.get_or_insert(rows);
                }
            }
            read.push(first);
        }
        Ok(read)
    }
}

/// Refuses routes that no document of the training text has; says how much of it no teacher is for.
pub(super) fn check_routes(recipe: &Recipe, corpus: &Corpus) -> Result<Option<String>> {
    let Some(field) = recipe.dataset.route_field.as_ref().filter(|_| recipe.shares_rows()) else { return Ok(None) };
    let mut problems = Vec::new();
    for (number, teacher) in recipe.teachers.iter().enumerate() {
        for route in teacher.routes.iter().filter(|route| !corpus.routes().contains(route)) {
            let known = corpus.routes().iter().map(String::as_str);
            let complaint = Error::at(format!("the recipe's `{}.route`", recipe.teacher_key(number)))
                .expected(format!("a value of `{field}` in the text: {}", known.clone().collect::<Vec<_>>().join(", ")))
                .found(route);
            let help = match Error::nearest(route, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "name one of those, or remove it".to_owned(),
            };
            problems.push(complaint.help(help).error());
        }
    }
    Error::all(problems)?;
    let documents = corpus.documents();
    let taught = |document: &usize| recipe.teachers.iter().any(|teacher| teacher.teaches(corpus.route(*document)));
    let untaught = (0..documents).filter(|document| !taught(document)).count();
    Ok((untaught > 0).then(|| {
        format!("{untaught} of {documents} documents are for no teacher: they teach by the losses on text alone")
    }))
}
