//! What a student was made from, and the two documents that tell it: the model card and the report.

use super::card::{self, CardData, Corpus, Origin};
use super::checkpoint::State;
use super::memory::binary;
use super::metrics::{Evaluation, Record};
use super::recipe::{Recipe, TeacherSource};
use super::report::{self, Facts, ReportData, Sample};
use super::run::Outcome;
use super::setup::Setup;
use super::teacher::digest_name;
use crate::formats::write_atomically;
use crate::shards::spec::UNKNOWN_DIGEST;
use crate::{Error, Result};
use std::io::Write;
use std::path::Path;

/// What is known before training.
pub(super) struct Lineage {
    student: Origin,
    teachers: Vec<Origin>,
    shards: Vec<Origin>,
    data: Vec<Corpus>,
    license: Option<String>,
    device: String,
    warnings: Vec<String>,
}

impl Lineage {
    /// Gathers it from what a run has opened.
    pub fn of(recipe: &Recipe, setup: &Setup) -> Lineage {
        let digest = |name: &str| setup.digests.get(name).cloned();
        let origin = |name: String, digest| Origin { name, digest };
        let (mut teachers, mut shards) = (Vec::new(), Vec::new());
        for (number, teacher) in recipe.teachers.iter().enumerate() {
            match &teacher.source {
                TeacherSource::Live { path, .. } => {
                    teachers.push(origin(path.clone(), digest(&digest_name("teacher", number))));
                }
                TeacherSource::Shards { path, .. } => {
                    shards.push(origin(path.display().to_string(), digest(&digest_name("shards", number))));
                    let known = |digest: &String| Some(digest.clone()).filter(|digest| digest != UNKNOWN_DIGEST);
                    let recorded = setup.recorded_teacher(number);
                    teachers.extend(recorded.map(|t| origin(t.name.clone(), known(&t.digest))));
                }
            }
        }
        let corpus = |(role, tokens): (&str, usize)| Corpus {
            name: recipe.dataset.train.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
            role: role.to_owned(),
            tokens: tokens as u64,
            digest: digest("corpus").unwrap_or_default(),
        };
        let sides = [("training", setup.training_tokens()), ("held out", setup.held_out_tokens())];
        Lineage {
            student: origin(setup.origin.lineage.clone(), digest("student")),
            teachers,
            shards,
            data: sides.into_iter().filter(|(_, tokens)| *tokens > 0).map(corpus).collect(),
            license: setup.origin.license.clone(),
            device: setup.device.name(),
            warnings: setup.warnings.clone(),
        }
    }

    /// Adds what a finished run knows.
    pub fn finish<'a>(&'a self, recipe: &'a Recipe, state: &'a State, outcome: &'a Outcome) -> Story<'a> {
        Story { lineage: self, recipe, state, outcome }
    }
}

/// A finished run.
pub(super) struct Story<'a> {
    lineage: &'a Lineage,
    recipe: &'a Recipe,
    state: &'a State,
    outcome: &'a Outcome,
}

impl Story<'_> {
    /// Writes `README.md` and `report.html` into the student's folder.
    pub fn write(&self, folder: &Path, records: Vec<Record>, samples: Vec<Sample>) -> Result<()> {
        let put = |name: &str, text: String| {
            let path = folder.join(name);
            write_atomically(&path, |file| file.write_all(text.as_bytes()).map_err(Error::io("write", &path)))
        };
        put("README.md", card::markdown(&self.card()))?;
        put("report.html", report::html(&self.report(records, samples)?)?)
    }

    fn name(&self) -> String {
        let folder = || self.recipe.output_path.file_name().map(|name| name.to_string_lossy().into_owned());
        self.recipe.project_name.clone().or_else(folder).unwrap_or_else(|| "student".into())
    }

    fn evaluations(&self) -> Vec<(String, Evaluation)> {
        let named = [("before training", self.outcome.before), ("this model", self.outcome.after)];
        named.into_iter().filter_map(|(name, evaluation)| Some((name.to_owned(), evaluation?))).collect()
    }

    fn card(&self) -> CardData<'_> {
        let Lineage { student, teachers, shards, data, license, device, .. } = self.lineage;
        CardData {
            name: self.name(),
            license: license.clone(),
            base_models: Vec::new(),
            student: student.clone(),
            teachers: teachers.clone(),
            shards: shards.clone(),
            data: data.clone(),
            evaluations: self.evaluations(),
            recipe: self.recipe,
            steps: self.outcome.steps,
            tokens: self.state.tokens,
            device: device.clone(),
        }
    }

    fn report(&self, records: Vec<Record>, samples: Vec<Sample>) -> Result<ReportData> {
        let Lineage { student, teachers, shards, data, device, warnings, .. } = self.lineage;
        let mut made_of = vec![("student".to_owned(), describe(student))];
        made_of.extend(teachers.iter().map(|teacher| ("teacher".to_owned(), describe(teacher))));
        made_of.extend(shards.iter().map(|shards| ("shards".to_owned(), describe(shards))));
        for corpus in data {
            made_of.push((format!("text, {}", corpus.role), format!("{}, {} tokens", corpus.name, corpus.tokens)));
        }
        let outcome = self.outcome;
        let mut run = vec![
            ("device".to_owned(), device.clone()),
            ("steps".to_owned(), outcome.steps.to_string()),
            ("training time".to_owned(), format!("{:.0} s", self.state.seconds)),
            ("speed".to_owned(), format!("{:.0} tokens/s", outcome.tokens_per_second)),
            ("planned memory".to_owned(), binary(outcome.memory.total())),
        ];
        run.extend(outcome.peak_memory.map(|bytes| ("peak memory of the process".to_owned(), binary(bytes))));
        let facts = |title: &str, rows| Facts { title: title.to_owned(), rows };
        Ok(ReportData {
            title: self.name(),
            subtitle: student.name.clone(),
            before: outcome.before,
            after: outcome.after,
            records,
            samples,
            warnings: warnings.clone(),
            facts: vec![facts("Run", run), facts("Made of", made_of)],
            recipe: self.recipe.to_yaml()?,
            ..ReportData::default()
        })
    }
}

fn describe(origin: &Origin) -> String {
    match &origin.digest {
        Some(digest) => format!("{} (sha256 {})", origin.name, &digest[..digest.len().min(12)]),
        None => origin.name.clone(),
    }
}
