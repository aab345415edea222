//! How one tensor of the result is made: from which tensors, by which parameters; and what is wrong with that.

use super::config::{BaseRole, Levels, Parameters, Reference, Source};
use super::methods::{Method, PerModel};
use super::names::{is_head, is_token_table};
use super::plan::{Piece, Place, Planned, Planner};
use crate::formats::Dtype;
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Names listed in one message.
const LISTED: usize = 6;

impl<'a> Planner<'a> {
    /// Plans one tensor from those of each source; `base_name` is what the base calls it where it is not a source.
    pub fn tensor(
        &mut self,
        name: &str,
        sources: Vec<(&'a Source, String)>,
        base_name: Option<&str>,
        place: Place<'a>,
    ) {
        let spec = self.config.method;
        let base = self.config.base_of(place.slice).filter(|_| spec.uses_base());
        let listed = sources.iter().find(|(source, _)| Some(&source.model) == base);
        let base_name = listed.map(|(_, name)| name.as_str()).or(base_name);
        let base = match (base, base_name) {
            (Some(base), Some(name)) => Some((base, name.to_string())),
            (Some(base), None) if spec.base != BaseRole::Optional => {
                self.lacks_base(base, place);
                return;
            }
            _ => None,
        };
        let others = sources.iter().filter(|(s, _)| base.as_ref().is_none_or(|(base, _)| s.model != **base));
        let pieces: Vec<Option<Piece>> =
            others.clone().map(|(source, name)| self.piece(self.index(&source.model), name)).collect();
        let written = self.models[self.donor].written(name);
        let settings = others.map(|(source, _)| self.settings(source, place, &written)).collect();
        let base = base.map(|(base, name)| self.piece(self.index(base), &name));
        let method = self.method(place, &written);
        let (Some(mut models), false) = (pieces.into_iter().collect::<Option<Vec<_>>>(), base == Some(None)) else {
            return;
        };
        let mut base = base.flatten();
        let mut settings: Vec<PerModel> = settings;
        if spec.base == BaseRole::First {
            models.splice(0..0, base.take());
            settings.resize(models.len(), PerModel::default());
        }
        let by_token = self.vocabulary.is_some() && (is_head(name) || is_token_table(name));
        let Some(shape) = self.shape(base.iter().chain(&models), by_token) else { return };
        let dtype = self.dtype(base.iter().chain(&models).next());
        self.tensors.push(Planned { name: written, shape, dtype, method, settings, base, models, by_token });
    }

    /// A slice of a method that needs a base does not say which layers of it.
    fn lacks_base(&mut self, base: &Reference, place: Place<'a>) {
        let complaint = Error::file(&self.config.file).field(format!("`{}.sources`", place.slice.place));
        let complaint = complaint.expected(format!("the base `{base}`, with its layers")).found("none of it");
        self.once(complaint.help("list the base among the sources of the slice").error());
    }

    /// Notes an error that many tensors have alike.
    fn once(&mut self, error: Error) {
        if !self.wrong.iter().any(|other| other.to_string() == error.to_string()) {
            self.wrong.push(error);
        }
    }

    /// The type of a result: what is asked for, else that of its first piece.
    fn dtype(&self, first: Option<&Piece>) -> Dtype {
        let stored = first.and_then(|piece| self.models[piece.model].folder.tensors.dtype(&piece.stored).ok());
        let stored = match stored {
            Some(Dtype::Quant(_)) => Dtype::F16,
            Some(dtype) => dtype,
            None => Dtype::F32,
        };
        self.config.out_dtype.or(self.config.dtype).unwrap_or(stored)
    }

    fn piece(&mut self, model: usize, name: &str) -> Option<Piece> {
        match self.models[model].stored_or_tied(name) {
            Some(stored) => Some(Piece { model, name: name.to_string(), stored: stored.to_string() }),
            None => {
                self.missing.entry(model).or_default().insert(name.to_string());
                None
            }
        }
    }

    /// The parameters of a place, the nearest first.
    fn levels(&self, place: Place<'a>) -> Vec<&'a Parameters> {
        vec![&place.slice.parameters, &place.module.parameters, &self.config.parameters]
    }

    fn method(&mut self, place: Place<'a>, name: &str) -> Method {
        let (levels, config) = (Levels(self.levels(place)), self.config);
        let mut unsaid = Vec::new();
        let mut values = BTreeMap::new();
        for spec in config.method.parameters.iter().filter(|spec| !spec.per_model) {
            let value = levels.get(spec.name, name, place.depth, &self.used).or(spec.default);
            unsaid.extend(value.is_none().then_some((spec.name, String::new())));
            values.insert(spec.name, value.unwrap_or(0.0));
        }
        unsaid.into_iter().for_each(|key| self.unsaid.entry(key).or_default().push(name.to_string()));
        let on = |parameter: &str| values.get(parameter).is_some_and(|value| *value != 0.0);
        if on("rescale_by_density") && !on("rescale") {
            let complaint = Error::file(&self.config.file).field("`rescale_by_density`");
            let complaint = complaint.expected("`rescale: true` beside it").found("`rescale: false`");
            self.once(complaint.help("it says how to rescale: remove it, or rescale").error());
        }
        config.method.method(|parameter| values.get(parameter).copied().unwrap_or(0.0))
    }

    fn settings(&mut self, source: &'a Source, place: Place<'a>, name: &str) -> PerModel {
        let mut levels = self.levels(place);
        levels.insert(0, &source.parameters);
        let (levels, config) = (Levels(levels), self.config);
        let mut values = BTreeMap::new();
        for spec in config.method.parameters.iter().filter(|spec| spec.per_model) {
            let value = levels.get(spec.name, name, place.depth, &self.used).or(spec.default);
            if value.is_none() {
                let key = (spec.name, source.model.to_string());
                self.unsaid.entry(key).or_default().push(name.to_string());
            }
            values.insert(spec.name, value.unwrap_or(0.0));
        }
        let settings = config.method.per_model(|parameter| values.get(parameter).copied().unwrap_or(0.0));
        self.check_ranked(&settings, source);
        settings
    }

    /// DELLA's probabilities lie between 0 and 1.
    fn check_ranked(&mut self, settings: &PerModel, source: &Source) {
        let (density, epsilon) = (settings.density, settings.epsilon);
        let ranked = self.config.method.name.starts_with("della") && density > 0.0 && density < 1.0;
        if !ranked || (density - epsilon > 0.0 && density + epsilon < 1.0) {
            return;
        }
        let complaint = Error::file(&self.config.file).field(format!("`{}.parameters`", source.place));
        let complaint = complaint.expected("density - epsilon above 0 and density + epsilon below 1");
        let found = format!("density {density}, epsilon {epsilon}");
        self.once(complaint.found(found).help("lower `epsilon`").error());
    }

    /// The shape that all pieces have; the rows of a table of tokens are the result's vocabulary.
    fn shape<'p>(&mut self, mut pieces: impl Iterator<Item = &'p Piece>, by_token: bool) -> Option<Vec<usize>> {
        let of =
            |piece: &Piece| self.models[piece.model].shape(&piece.stored).map(<[usize]>::to_vec).unwrap_or_default();
        let first = pieces.next()?;
        let mut shape = of(first);
        let skip = usize::from(by_token);
        let mut same = true;
        for piece in pieces {
            let other = of(piece);
            if other.get(skip..) != shape.get(skip..) {
                let complaint =
                    self.models[piece.model].reference.complaint().field(format!("tensor `{}`", piece.stored));
                let expected = format!("shape {shape:?}, as in `{}`", self.models[first.model].reference);
                let complaint = complaint.expected(expected).found(format!("{other:?}"));
                let tokens = is_head(&piece.name) || is_token_table(&piece.name);
                self.wrong.push(match tokens && other.get(1..) == shape.get(1..) {
                    true => complaint.help("the vocabularies differ: say whose to use with `tokenizer_source`").error(),
                    false => complaint.help("merge models of one size").error(),
                });
                same = false;
            }
        }
        if let (true, Some(vocabulary), Some(rows)) = (by_token, self.vocabulary, shape.first_mut()) {
            *rows = vocabulary.rows();
        }
        same.then_some(shape)
    }

    pub fn finish(mut self) -> Result<Vec<Planned>> {
        for (model, names) in &self.missing {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let complaint = self.models[*model].reference.complaint().expected("every tensor that the others have");
            self.wrong.push(complaint.found(format!("none of the name {}", listed(&names))).error());
        }
        for ((parameter, model), tensors) in &self.unsaid {
            let names: Vec<&str> = tensors.iter().map(String::as_str).collect();
            let of = if model.is_empty() { String::new() } else { format!(" of `{model}`") };
            let complaint = Error::file(&self.config.file).field(format!("`{parameter}`{of}"));
            let complaint =
                complaint.expected("a value for every tensor").found(format!("none for {}", listed(&names)));
            self.wrong.push(complaint.help("add a last item without a `filter`").error());
        }
        let modules = &self.config.modules;
        let slices = || modules.iter().flat_map(|module| &module.slices);
        let sources = slices().flat_map(|slice| &slice.sources).map(|source| &source.parameters);
        let all = [&self.config.parameters].into_iter().chain(modules.iter().map(|m| &m.parameters));
        let all = all.chain(slices().map(|slice| &slice.parameters)).chain(sources);
        for (place, filter) in super::config::unused(all, &self.used) {
            let complaint = Error::file(&self.config.file).field(format!("`{place}`"));
            let complaint =
                complaint.expected("a filter that some tensor's name contains").found(format!("`{filter}`"));
            let help = "no tensor gets this value: correct the filter, put it before those that take its tensors, or \
                        remove it";
            self.wrong.push(complaint.help(help).error());
        }
        Error::all(self.wrong)?;
        Ok(self.tensors)
    }
}

/// Some names and how many more there are.
pub(super) fn listed(names: &[&str]) -> String {
    let some = names.iter().take(LISTED).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED) {
        0 => some,
        more => format!("{some} and {more} more"),
    }
}
