//! What a configuration means for every tensor of the result.

use super::config::{MergeConfig, Module, Reference, Slice};
use super::methods::{Method, PerModel};
use super::model::Model;
use super::names::{in_layer, is_before_layers, is_head, layer};
use super::plan_tensor::listed;
use super::vocabulary::Vocabulary;
use crate::formats::Dtype;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// One merged model, tensor by tensor. Made by [`Plan::new`], which opens the models and checks everything that can be
/// known without reading a weight.
pub struct Plan {
    /// Every tensor of the result.
    pub tensors: Vec<Planned>,
    /// The result's config.json.
    pub config: Value,
    pub(super) models: Vec<Model>,
    /// Whose configuration and tokenizer the result has.
    pub(super) donor: usize,
    pub(super) vocabulary: Option<Vocabulary>,
}

/// One tensor of the result.
#[derive(Debug)]
pub struct Planned {
    /// Its name in the file.
    pub name: String,
    /// Rows first.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub dtype: Dtype,
    /// How it is made.
    pub method: Method,
    /// What the method knows of each model.
    pub settings: Vec<PerModel>,
    pub(super) base: Option<Piece>,
    pub(super) models: Vec<Piece>,
    /// Rows are tokens, and are looked up in the result's vocabulary.
    pub(super) by_token: bool,
}

/// A tensor of a model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub model: usize,
    /// Its name there, without the family's prefix.
    pub name: String,
    /// Its name in the file.
    pub stored: String,
}

/// Everything that tensors have in common while the plan is made.
pub(super) struct Planner<'a> {
    pub config: &'a MergeConfig,
    pub models: &'a [Model],
    pub donor: usize,
    pub vocabulary: Option<&'a Vocabulary>,
    pub used: super::config::Used,
    pub tensors: Vec<Planned>,
    /// By model, the tensors that it lacks.
    pub missing: BTreeMap<usize, BTreeSet<String>>,
    /// By parameter and model, the tensors for which nobody says it.
    pub unsaid: BTreeMap<(&'static str, String), Vec<String>>,
    pub wrong: Vec<Error>,
}

/// A place in the output: its parameters and depth.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub module: &'a Module,
    pub slice: &'a Slice,
    /// 0 at the first layer and before it, 1 at the last and behind.
    pub depth: f64,
}

impl Plan {
    /// Opens all models of a document and plans its result. `places` says where models are that are not where their
    /// names lead: the results of other documents, what a browser was handed. An adapter has a `+` before its name.
    ///
    /// Errors list every missing tensor, shape that differs, missing parameter and filter without effect at once.
    pub fn new(config: &MergeConfig, places: &BTreeMap<String, PathBuf>) -> Result<Plan> {
        let references = config.references();
        let opened = references.iter().map(|reference| Model::open(reference, places));
        let (mut models, mut wrong) = (Vec::new(), Vec::new());
        opened.for_each(|model| match model {
            Ok(model) => models.push(model),
            Err(error) => wrong.push(error),
        });
        Error::all(wrong)?;
        same_family(&models)?;
        let index = |reference: &Reference| models.iter().position(|model| model.reference == *reference);
        let first = config.modules.first().and_then(|m| Some(&m.slices.first()?.sources.first()?.model));
        let donor = config.base_model.as_ref().or(first).and_then(index).unwrap_or(0);
        let vocabulary = Vocabulary::new(config, &models, donor)?;
        let mut planner = Planner {
            config,
            models: &models,
            donor,
            vocabulary: vocabulary.as_ref(),
            used: Default::default(),
            tensors: Vec::new(),
            missing: BTreeMap::new(),
            unsaid: BTreeMap::new(),
            wrong: Vec::new(),
        };
        planner.plan();
        let tensors = planner.finish()?;
        let config = super::config_json::merged(config, &models, donor, &tensors, vocabulary.as_ref())?;
        Ok(Plan { tensors, config, models, donor, vocabulary })
    }
}

fn same_family(models: &[Model]) -> Result<()> {
    let family = |model: &Model| model.folder.config["model_type"].as_str().unwrap_or("unknown").to_string();
    let Some(first) = models.first() else { return Ok(()) };
    let wrong = |model: &Model| {
        let complaint = model.reference.complaint().expected(format!("`{}`, as `{}`", family(first), first.reference));
        complaint.found(format!("`{}`", family(model))).help("merge models of one architecture").error()
    };
    Error::all(models.iter().filter(|model| family(model) != family(first)).map(wrong).collect())
}

impl<'a> Planner<'a> {
    pub fn index(&self, reference: &Reference) -> usize {
        self.models.iter().position(|model| model.reference == *reference).unwrap_or(self.donor)
    }

    fn plan(&mut self) {
        let (config, mut seen) = (self.config, BTreeSet::new());
        for module in &config.modules {
            let before = self.tensors.len();
            match module.slices.first().and_then(|slice| slice.sources.first()).map(|source| &source.layers) {
                Some(None) => self.whole(module),
                Some(Some(_)) => self.sliced(module),
                None => {}
            }
            if self.tensors.len() == before && self.missing.is_empty() && self.wrong.is_empty() {
                let stacks = self.models[self.donor].stacks().into_keys().collect::<Vec<_>>().join(", ");
                let name = module.name.as_deref().unwrap_or("default");
                let complaint = Error::file(&config.file).field(format!("`modules.{name}`"));
                let complaint = complaint.expected("the beginning of some tensors' names").found("none that fits");
                self.wrong.push(complaint.help(format!("the layers are in {stacks}")).error());
            }
            for tensor in &self.tensors[before..] {
                if !seen.insert(tensor.name.clone()) {
                    let complaint = Error::file(&config.file).field(format!("tensor `{}`", tensor.name));
                    self.wrong.push(complaint.expected("one module for it").found("two").error());
                }
            }
        }
        self.check_coverage(&seen);
    }

    /// Tensors of the donor that no module makes.
    fn check_coverage(&mut self, seen: &BTreeSet<String>) {
        let donor = &self.models[self.donor];
        let sliced = self.config.modules.iter().flat_map(|m| &m.slices).flat_map(|s| &s.sources);
        if self.config.modules.iter().all(|module| module.name.is_none()) || sliced.count() == 0 {
            return;
        }
        let left = |name: &&str| layer(name).is_none() && !self.skips(name) && !seen.contains(&donor.written(name));
        let names: Vec<&str> = donor.names().filter(left).collect();
        if !names.is_empty() {
            let complaint = Error::file(&self.config.file).field("`modules`").expected("a module for every tensor");
            let complaint = complaint.found(format!("none for {}", listed(&names)));
            self.wrong.push(complaint.help("name a module that their names begin with").error());
        }
    }

    /// A head is left out where every model that stores one ties it all the same.
    fn skips(&self, name: &str) -> bool {
        let tied = |model: &Model| model.folder.config["tie_word_embeddings"].as_bool() == Some(true);
        is_head(name) && self.models.iter().filter(|model| model.stored(name).is_some()).all(tied)
    }

    fn belongs(&self, module: &Module, name: &str) -> bool {
        let Some(prefix) = &module.name else { return true };
        let written = self.models[self.donor].written(name);
        [name, written.as_str()].iter().any(|name| {
            name.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.starts_with('.') || prefix.ends_with('.'))
        })
    }

    /// Every tensor that one of the sources has.
    fn names(&self, module: &Module, slice: &Slice) -> BTreeSet<String> {
        let sources = slice.sources.iter().map(|source| self.index(&source.model));
        let names = sources.flat_map(|model| self.models[model].names());
        names.filter(|name| self.belongs(module, name) && !self.skips(name)).map(str::to_string).collect()
    }

    /// `models`: every tensor from those of its name.
    fn whole(&mut self, module: &'a Module) {
        let Some(slice) = module.slices.first() else { return };
        let depths: BTreeMap<String, usize> = match slice.sources.first() {
            Some(source) => {
                let stacks = self.models[self.index(&source.model)].stacks();
                stacks.into_iter().map(|(stack, depth)| (stack.to_string(), depth)).collect()
            }
            None => return,
        };
        for name in self.names(module, slice) {
            let depth = match layer(&name) {
                Some((stack, index, _)) => fraction(index, depths.get(stack).copied().unwrap_or(1)),
                None => outside(&name),
            };
            let sources = slice.sources.iter().map(|source| (source, name.clone())).collect();
            self.tensor(&name, sources, Some(&name), Place { module, slice, depth });
        }
    }

    /// `slices`: layers in their new order, and what is around them.
    fn sliced(&mut self, module: &'a Module) {
        let Some(first) = module.slices.first().and_then(|slice| slice.sources.first()) else { return };
        let model = self.index(&first.model);
        let stacks = self.models[model].stacks();
        let own: Vec<&str> = stacks.into_keys().filter(|stack| self.belongs(module, &format!("{stack}."))).collect();
        let [stack] = own[..] else {
            let complaint = Error::file(&self.config.file).field("`slices`").expected("one stack of layers");
            let complaint = complaint.found(if own.is_empty() { "none".to_string() } else { own.join(", ") });
            self.wrong.push(complaint.help("use `modules`, one for each stack").error());
            return;
        };
        let stack = stack.to_string();
        let (mut next, last) = (0, module.slices.len() - 1);
        for (i, slice) in module.slices.iter().enumerate() {
            for name in self.names(module, slice).into_iter().filter(|name| layer(name).is_none()) {
                let depth = outside(&name);
                if (depth == 0.0 && i == 0) || (depth == 1.0 && i == last) {
                    let sources = slice.sources.iter().map(|source| (source, name.clone())).collect();
                    self.tensor(&name, sources, None, Place { module, slice, depth });
                }
            }
            next = self.slice(module, slice, &stack, next);
        }
    }

    /// The layers of one slice, from output layer `next` on; returns the one after them.
    fn slice(&mut self, module: &'a Module, slice: &'a Slice, stack: &str, next: usize) -> usize {
        let ranges: Vec<_> = slice.sources.iter().map(|source| source.layers.clone().unwrap_or(0..0)).collect();
        for (source, range) in slice.sources.iter().zip(&ranges) {
            let depth = self.models[self.index(&source.model)].stacks().get(stack).copied().unwrap_or(0);
            if range.end > depth {
                let complaint = Error::file(&self.config.file).field(format!("`{}.layer_range`", source.place));
                let complaint = complaint.expected(format!("layers of `{}`, which has {depth}", source.model));
                self.wrong.push(complaint.found(format!("[{}, {}]", range.start, range.end)).error());
                return next;
            }
        }
        let length = ranges.first().map_or(0, |range| range.len());
        for offset in 0..length {
            let mut rests = BTreeSet::new();
            for (source, range) in slice.sources.iter().zip(&ranges) {
                let names = self.models[self.index(&source.model)].names().filter_map(layer);
                let own = names.filter(|(s, index, _)| *s == stack && *index == range.start + offset);
                rests.extend(own.map(|(_, _, rest)| rest.to_string()));
            }
            for rest in rests {
                let numbered = slice.sources.iter().zip(&ranges);
                let sources = numbered.map(|(s, range)| (s, in_layer(stack, range.start + offset, &rest))).collect();
                let place = Place { module, slice, depth: fraction(offset, length) };
                self.tensor(&in_layer(stack, next + offset, &rest), sources, None, place);
            }
        }
        next + length
    }
}

/// Where a layer is among `depth`.
fn fraction(index: usize, depth: usize) -> f64 {
    if depth <= 1 { 1.0 } else { index as f64 / (depth - 1) as f64 }
}

/// Where a tensor outside the layers is.
fn outside(name: &str) -> f64 {
    if is_before_layers(name) { 0.0 } else { 1.0 }
}
