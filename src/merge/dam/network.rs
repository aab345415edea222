//! The merged model as a network: its decoder, its parameters, and the tensor of the plan that each is.

use super::Coefficients;
use crate::formats::Tokenizer;
use crate::graph::{Shape, Store};
use crate::merge::config::{Learning, MergeConfig};
use crate::merge::methods::Method;
use crate::merge::names::canonical;
use crate::merge::plan::{Plan, Planned};
use crate::merge::plan_tensor::listed;
use crate::models::{self, Decoder};
use crate::nn::{Merged, ParamSpec};
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The arena of the averages of what has no coefficients.
const AVERAGES: &str = "averages";
/// The arena of the coefficients.
pub(super) const COEFFICIENTS: &str = "coefficients";

/// A merged model and those it is made of.
pub(super) struct Network {
    /// The result's.
    pub decoder: Decoder,
    /// Those of the models that it is made of, in the order of the configuration.
    pub sources: Vec<Source>,
    /// The parameters that have coefficients.
    pub merged: Merged,
    /// All parameters.
    parameters: Vec<Parameter>,
    /// The tokenizer of all of them.
    pub tokenizer: Tokenizer,
}

/// A model that is merged.
pub(super) struct Source {
    /// What the configuration calls it.
    pub name: String,
    /// Its network.
    pub decoder: Decoder,
    /// What it is distilled on.
    pub data: Vec<PathBuf>,
}

struct Parameter {
    spec: ParamSpec,
    /// Which tensor of the plan.
    tensor: usize,
}

/// Under which prefix a source's parameters lie.
pub(super) fn prefix(source: usize) -> String {
    format!("source{source}:")
}

impl Network {
    /// The network of a plan.
    ///
    /// Errors if the architecture is none that can be run, a tensor is no parameter of it or the other way round, or
    /// the models have networks or tokenizers that differ.
    pub fn of(plan: &Plan, config: &MergeConfig) -> Result<Network> {
        let learning = config.learning.as_ref().ok_or_else(|| Error::internal("nothing to learn"))?;
        let donor = &plan.models[plan.donor].folder;
        let decoder = models::from_config(donor.path(), &plan.config)?;
        let mut wrong = Vec::new();
        let mut sources = Vec::new();
        for source in config.modules.iter().flat_map(|module| &module.slices).flat_map(|slice| &slice.sources) {
            let model = plan.models.iter().find(|model| model.reference == source.model);
            let folder = &model.ok_or_else(|| Error::internal("a source that was not opened"))?.folder;
            let own = models::from_config(folder.path(), &folder.config)?;
            let (mine, theirs) = (own.parameters(), decoder.parameters());
            if mine.iter().any(|spec| !theirs.contains(spec)) {
                let complaint = source.model.complaint().expected("the same network as the others have");
                wrong.push(complaint.found("parameters of other names or shapes").error());
            }
            sources.push(Source { name: source.model.to_string(), decoder: own, data: source.data.clone() });
        }
        let tokenizer = common_tokenizer(plan, &decoder, &mut wrong);
        let parameters = parameters(plan, &decoder, &mut wrong);
        Error::all(wrong)?;
        let tokenizer = tokenizer.ok_or_else(|| Error::internal("no tokenizer"))?;
        let merged = Merged { models: (0..sources.len()).map(prefix).collect(), columns: columns(&decoder, learning) };
        Ok(Network { decoder, sources, merged, parameters, tokenizer })
    }

    /// A network that no plan makes.
    #[cfg(test)]
    pub fn bare(decoder: Decoder, sources: Vec<Decoder>, tokenizer: Tokenizer, learning: &Learning) -> Network {
        let merged = Merged { models: (0..sources.len()).map(prefix).collect(), columns: columns(&decoder, learning) };
        let source = |decoder| Source { name: String::new(), decoder, data: Vec::new() };
        let sources = sources.into_iter().map(source).collect();
        Network { decoder, sources, merged, parameters: Vec::new(), tokenizer }
    }

    /// The names of all coefficients with their shapes, parameter by parameter, model by model.
    pub fn coefficients(&self) -> Vec<(String, Shape)> {
        let of = |(name, columns): (&String, &usize)| {
            let shape = Shape::from([*columns]);
            let one = |model: &String| (Merged::coefficients(model, name), shape);
            self.merged.models.iter().map(one).collect::<Vec<_>>()
        };
        self.merged.columns.iter().flat_map(of).collect()
    }

    /// Puts every model's parameters, the averages of what has no coefficients, and the coefficients of an average into
    /// `store`, with the tables of rotary positions below `context`.
    pub fn load(&self, plan: &Plan, store: &mut Store, context: usize) -> Result<()> {
        self.decoder.allocate_rope(store, "", context)?;
        for (source, model) in self.sources.iter().enumerate() {
            let prefix = prefix(source);
            let all: Vec<_> =
                self.parameters.iter().map(|p| (format!("{prefix}{}", p.spec.name), p.spec.shape)).collect();
            store.arena(&prefix, &all)?;
            model.decoder.allocate_rope(store, &prefix, context)?;
        }
        let plain = |p: &&Parameter| !self.merged.columns.contains_key(&p.spec.name);
        let averaged: Vec<_> =
            self.parameters.iter().filter(plain).map(|p| (p.spec.name.clone(), p.spec.shape)).collect();
        store.arena(AVERAGES, &averaged)?;
        let coefficients = self.coefficients();
        store.arena(COEFFICIENTS, &coefficients)?;
        let share = 1.0 / self.sources.len() as f32;
        for (name, shape) in &coefficients {
            store.write(name, &vec![share; shape.numel()])?;
        }
        for parameter in &self.parameters {
            self.load_parameter(plan, store, parameter, share)?;
        }
        Ok(())
    }

    fn load_parameter(&self, plan: &Plan, store: &Store, parameter: &Parameter, share: f32) -> Result<()> {
        let (spec, tensor) = (&parameter.spec, &plan.tensors[parameter.tensor]);
        let averaged = !self.merged.columns.contains_key(&spec.name);
        let mut average = vec![0f32; if averaged { spec.shape.numel() } else { 0 }];
        for (source, piece) in tensor.models.iter().enumerate() {
            let mut values = vec![0f32; spec.shape.numel()];
            plan.models[piece.model].reader(&piece.stored)?.read(0, &mut values)?;
            let values = self.decoder.values_in_memory(spec, values);
            store.write(&format!("{}{}", prefix(source), spec.name), &values)?;
            average.iter_mut().zip(&values).for_each(|(sum, x)| *sum += share * x);
        }
        if averaged { store.write(&spec.name, &average) } else { Ok(()) }
    }

    /// Puts learned coefficients into the plan.
    pub fn apply(&self, plan: &mut Plan, coefficients: &Coefficients) {
        for Parameter { spec, tensor } in &self.parameters {
            let Some(found) = coefficients.get(&spec.name) else { continue };
            // Checkpoints of some families hold a matrix as [in, out]: a column is a row there.
            let every = if self.decoder.transposed(spec) { spec.shape[0] } else { 1 };
            plan.tensors[*tensor].method = Method::Columns { coefficients: found.clone(), every };
        }
    }
}

/// Every parameter of the network with its tensor.
fn parameters(plan: &Plan, decoder: &Decoder, wrong: &mut Vec<Error>) -> Vec<Parameter> {
    let name = |tensor: &Planned| tensor.models.first().map_or(String::new(), |piece| piece.name.clone());
    let mut tensors: BTreeMap<String, usize> = plan.tensors.iter().map(name).zip(0..).collect();
    let (mut found, mut lacking) = (Vec::new(), Vec::new());
    for spec in decoder.parameters() {
        match tensors.remove(canonical(&spec.name).1) {
            Some(tensor) => found.push(Parameter { spec, tensor }),
            None => lacking.push(spec.name),
        }
    }
    let place = || Error::file(plan.models[plan.donor].folder.path());
    if !lacking.is_empty() {
        let lacking: Vec<&str> = lacking.iter().map(String::as_str).collect();
        wrong.push(place().expected(format!("tensors {}", listed(&lacking))).found("none of them").error());
    }
    if !tensors.is_empty() {
        let more: Vec<&str> = tensors.keys().map(String::as_str).collect();
        let complaint = place().expected("no tensor that the network does not use").found(listed(&more));
        wrong.push(complaint.help("merge these models by a method that does not run them").error());
    }
    for Parameter { spec, tensor } in &found {
        let (shape, stored) = (&plan.tensors[*tensor].shape, decoder.stored_shape(spec));
        if shape[..] != stored[..] {
            let complaint = place().field(format!("tensor `{}`", spec.name)).expected(format!("shape {stored:?}"));
            wrong.push(complaint.found(format!("{shape:?}")).error());
        }
    }
    found
}

/// The tokenizer that all models have.
fn common_tokenizer(plan: &Plan, decoder: &Decoder, wrong: &mut Vec<Error>) -> Option<Tokenizer> {
    let mut common: Option<Tokenizer> = None;
    for model in &plan.models {
        let own = match model.folder.tokenizer() {
            Ok(own) => own,
            Err(error) => {
                wrong.push(error);
                continue;
            }
        };
        match &common {
            Some(first) if first.digest() != own.digest() => {
                let complaint = model.reference.complaint().field("tokenizer");
                let complaint = complaint.expected("the same as the others have").found("another one");
                wrong.push(
                    complaint.help("dam compares distributions over tokens: take models of one tokenizer").error(),
                );
            }
            Some(_) => {}
            None => common = Some(own),
        }
    }
    if let Some(own) = common.as_ref().filter(|own| own.vocab_size() > decoder.config.vocab_size) {
        let complaint = Error::file(plan.models[plan.donor].folder.path()).field("`vocab_size`");
        let complaint = complaint.expected(format!("at least {}, the tokenizer's ids", own.vocab_size()));
        wrong.push(complaint.found(decoder.config.vocab_size).error());
    }
    common
}

/// How many coefficients each parameter has that has some: as DAM, a linear weight one for each of its inputs, its bias
/// one in all, an embedding one a column, a norm one an element.
fn columns(decoder: &Decoder, learning: &Learning) -> BTreeMap<String, usize> {
    let specs = decoder.parameters();
    let matrices: BTreeSet<&str> =
        specs.iter().filter(|spec| spec.shape.len() == 2).map(|spec| spec.name.as_str()).collect();
    let names = &decoder.config.names;
    let tables = [Some(names.embedding), names.positions].map(|name| name.map(|name| format!("{name}.weight")));
    let of = |spec: &ParamSpec| {
        let table = tables.iter().flatten().any(|table| *table == spec.name);
        if spec.shape.len() == 2 {
            return (!table || learning.embeddings).then_some(spec.shape[1]);
        }
        let linear =
            spec.name.strip_suffix(".bias").is_some_and(|module| matrices.contains(&*format!("{module}.weight")));
        match linear {
            true => Some(1),
            false => learning.norms.then_some(spec.shape.numel()),
        }
    };
    specs.iter().filter_map(|spec| Some((spec.name.clone(), of(spec)?))).collect()
}
