//! The recipe's `teacher`: one, or several that share the text.
//!
//! Of a list, every teacher teaches each row, or only the rows of documents whose `route_field` names one of its
//! `route`s. The teachers of a row share it by their `weight`s, divided by the sum of those that teach it: a loss on
//! the teacher is their weighted mean, whatever their number. Rows that no teacher is for learn from the text alone.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::canonical::name;
use super::check::Problems;
use super::read::path;
use super::*;
use crate::Result;
use crate::models::FrozenWeights;
use crate::yaml::{Names, Node};

const WEIGHTS: Names<FrozenWeights> = &[("stored", FrozenWeights::Stored), ("f32", FrozenWeights::F32)];

/// A teacher, and what of the text it teaches.
#[derive(Clone, Debug, PartialEq)]
pub struct Teacher {
    /// Where its distributions come from.
    pub source: TeacherSource,
    /// `weight`: its share of a row beside others that teach the same; default 1.
    pub weight: f64,
    /// `route`, one or a list: the values of `dataset.route_field` whose documents it teaches; default all documents.
    pub routes: Vec<String>,
}

/// Where a teacher's distributions come from.
#[derive(Clone, Debug, PartialEq)]
pub enum TeacherSource {
    /// `kind: shards`: recorded before, by `potstill capture`.
    Shards {
        /// The shard set's folder.
        path: PathBuf,
        /// Whose head to apply to recorded hidden states, the teacher's: a folder, a GGUF file or a hub id.
        head: Option<String>,
    },
    /// `kind: live` (DistillKit says `hf`): run beside the student.
    Live {
        /// A folder, a GGUF file or a hub id.
        path: String,
        /// `weights`: how its matrices lie in memory.
        weights: FrozenWeights,
    },
}

impl From<TeacherSource> for Teacher {
    /// The teacher of every document.
    fn from(source: TeacherSource) -> Teacher {
        Teacher { source, weight: 1.0, routes: Vec::new() }
    }
}

/// A teacher, or a list of them.
pub(super) fn read(node: &Node) -> Result<Vec<Teacher>> {
    let alone = !node.value.is_array();
    node.one_or_more(|item| teacher(&item, alone))
}

fn teacher(node: &Node, alone: bool) -> Result<Teacher> {
    let known = ["kind", "path", "head", "weights", "weight", "route"];
    let fields = node.clone().fields(&known, &["top_k", "kwargs", "logprob_compressor"])?;
    if alone && fields.node("weight").is_some() {
        let complaint = fields.complaint("weight").expected("no such key for the only teacher").found("one");
        return complaint.help("weight the losses: `loss_functions[i].weight`").err();
    }
    let kind = fields.need("kind", "`shards` or `live`", Node::text)?;
    let source = match kind.as_str() {
        "shards" if fields.node("weights").is_some() => {
            let complaint = fields.complaint("weights").expected("no such key for recorded rows").found("one");
            return complaint.help("remove the key: no teacher is in memory").err();
        }
        "shards" => TeacherSource::Shards {
            path: fields.need("path", "the shard set's folder", path)?,
            head: fields.maybe("head", Node::text)?,
        },
        "live" | "hf" if fields.node("head").is_some() => {
            let complaint = fields.complaint("head").expected("no such key for a live teacher").found("one");
            return complaint.help("a live teacher has its own head: remove the key").err();
        }
        "live" | "hf" => TeacherSource::Live {
            path: fields.need("path", "the teacher's folder or hub id", Node::text)?,
            weights: fields.or("weights", FrozenWeights::default(), |node| node.choice(WEIGHTS))?,
        },
        _ => {
            let complaint = fields.complaint("kind").expected("shards or live").found(format!("the text {kind:?}"));
            return complaint.help("record a teacher with `potstill capture` and name the shards here").err();
        }
    };
    Ok(Teacher {
        source,
        weight: fields.or("weight", 1.0, Node::number)?,
        routes: fields.or("route", Vec::new(), |node| node.one_or_more(|item| item.text()))?,
    })
}

impl Teacher {
    pub(super) fn to_json(&self, weighted: bool) -> Value {
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.to_string(), value);
        match &self.source {
            TeacherSource::Shards { path, head } => {
                put("kind", json!("shards"));
                put("path", json!(path));
                if let Some(head) = head {
                    put("head", json!(head));
                }
            }
            TeacherSource::Live { path, weights } => {
                put("kind", json!("live"));
                put("path", json!(path));
                // Older runs do not know the key.
                if *weights != FrozenWeights::default() {
                    put("weights", json!(name(WEIGHTS, *weights)));
                }
            }
        }
        if weighted {
            put("weight", json!(self.weight));
        }
        if !self.routes.is_empty() {
            put("route", json!(self.routes));
        }
        Value::Object(map)
    }

    /// Whether it teaches documents of this route, or those without one.
    pub fn teaches(&self, route: Option<&str>) -> bool {
        self.routes.is_empty() || route.is_some_and(|route| self.routes.iter().any(|own| own == route))
    }
}

impl Recipe {
    /// The key of a teacher, for messages.
    pub fn teacher_key(&self, number: usize) -> String {
        if self.teachers.len() == 1 { "teacher".to_string() } else { format!("teacher[{number}]") }
    }

    /// Whether rows are shared: each teacher then has weights of its own for them.
    pub fn shares_rows(&self) -> bool {
        self.teachers.len() > 1 || self.teachers.iter().any(|teacher| !teacher.routes.is_empty())
    }

    pub(super) fn check_teachers(&self, problems: &mut Problems) {
        for (number, teacher) in self.teachers.iter().enumerate() {
            let key = self.teacher_key(number);
            let weight = teacher.weight;
            problems.rule(weight > 0.0 && weight.is_finite(), &format!("{key}.weight"), "a positive number", &weight);
            if !teacher.routes.is_empty() && self.dataset.route_field.is_none() {
                let complaint = problems.at("dataset.route_field").expected(format!("a field, for `{key}.route`"));
                problems.add(complaint.found("none").help("name the field of the text's JSON lines that routes them"));
            }
        }
        let routed = self.teachers.iter().any(|teacher| !teacher.routes.is_empty());
        if self.dataset.route_field.is_some() && !routed {
            let complaint = problems.at("dataset.route_field").expected("a teacher with a `route`").found("none");
            problems.add(complaint.help("give teachers the values they are for, or remove the key"));
        }
    }
}
