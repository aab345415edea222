//! Which of a student's parameters are trained: all, what the recipe's masks leave, or adapters; and at which rates.

use super::recipe::{Masks, Recipe, Unfrozen};
use crate::graph::{Shape, Store};
use crate::models::Decoder;
use crate::nn::{Lora, ParamSpec};
use crate::optim::{Group, Settings};
use crate::platform::fs;
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// What is trained of a student. The default is everything, at one rate.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trained {
    /// Parameters of the network that keep their values, by name.
    pub frozen: BTreeSet<String>,
    /// Adapters, which are trained beside what is not frozen.
    pub lora: Option<Lora>,
    /// Factors of the learning rate where they are not 1, by parameter.
    pub rates: BTreeMap<String, f64>,
    /// Parameters beside the student's: the projections of hidden states.
    pub projections: Vec<ParamSpec>,
}

impl Trained {
    /// What a recipe trains of `decoder`.
    ///
    /// Errors name every key that does not fit the model, or one another.
    pub fn of(recipe: &Recipe, decoder: &Decoder) -> Result<Trained> {
        Trained::with_projections(recipe, decoder, Vec::new())
    }

    /// The same, with projections of hidden states beside.
    pub fn with_projections(recipe: &Recipe, decoder: &Decoder, projections: Vec<ParamSpec>) -> Result<Trained> {
        let mut problems = Vec::new();
        let mut trained = Trained { projections, ..Trained::default() };
        match &recipe.lora {
            Some(args) => {
                let (lora, saved) = super::adapter::resolve(args, decoder, &mut problems);
                let own = |name: &String| !saved.contains(name);
                trained.frozen = decoder.parameters().into_iter().map(|p| p.name).filter(own).collect();
                trained.lora = Some(lora);
            }
            None => trained.frozen = frozen(&recipe.masks, decoder, &mut problems),
        }
        if problems.is_empty() {
            let (params, layers) = (trained.parameters(decoder), decoder.config.num_hidden_layers);
            trained.rates = super::rates::resolve(&recipe.training_args, &params, layers, &mut problems);
        }
        Error::all(problems)?;
        Ok(trained)
    }

    /// Whether a parameter of the network or of the adapters is trained.
    pub fn includes(&self, name: &str) -> bool {
        !self.frozen.contains(name)
    }

    /// Whether `name` is an adapter's parameter.
    pub fn adapts(&self, name: &str) -> bool {
        self.lora.is_some() && name.contains(".lora_")
    }

    /// The trained parameters: the network's in its order, the adapters', the projections.
    pub fn parameters(&self, decoder: &Decoder) -> Vec<ParamSpec> {
        let own = decoder.parameters().into_iter().filter(|p| self.includes(&p.name));
        own.chain(self.lora.iter().flat_map(Lora::parameters)).chain(self.projections.iter().cloned()).collect()
    }

    /// How many numbers are trained.
    pub fn count(&self, decoder: &Decoder) -> usize {
        self.parameters(decoder).iter().map(|p| p.shape.numel()).sum()
    }

    /// Bytes of gradients, optimiser state and averages.
    pub fn optimiser_bytes(&self, decoder: &Decoder, settings: &Settings) -> u64 {
        let bytes = |p: &ParamSpec| settings.bytes(p.shape.numel() as u64, p.shape.len() >= 2);
        self.parameters(decoder).iter().map(bytes).sum()
    }

    /// The trained parameters in groups that are updated alike: matrices decay, vectors do not, and each learning rate
    /// has its own.
    pub fn groups(&self, decoder: &Decoder) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for ParamSpec { name, shape } in self.parameters(decoder) {
            let (decay, rate) = (shape.len() >= 2, self.rates.get(&name).copied().unwrap_or(1.0));
            match groups.iter_mut().find(|group| group.decay == decay && group.rate == rate) {
                Some(group) => group.params.push((name, shape)),
                None => {
                    let label = if decay { "decay" } else { "plain" };
                    let label = if rate == 1.0 { label.to_owned() } else { format!("{label}*{rate}") };
                    groups.push(Group { label, params: vec![(name, shape)], decay, rate });
                }
            }
        }
        groups
    }

    /// Gives the student memory in `store`, as [`Decoder::allocate`] does, but an arena for each group, which it
    /// returns, and one for what is frozen.
    pub fn allocate(&self, decoder: &Decoder, store: &mut Store, positions: usize) -> Result<Vec<Group>> {
        let groups = self.groups(decoder);
        for group in &groups {
            store.arena(&group.label, &group.params)?;
        }
        let frozen = decoder.parameters().into_iter().filter(|p| !self.includes(&p.name));
        let frozen: Vec<(String, Shape)> = frozen.map(|p| (p.name, p.shape)).collect();
        store.arena("frozen", &frozen)?;
        decoder.allocate_rope(store, "", positions)?;
        Ok(groups)
    }
}

/// A parameter that embeds tokens or positions.
pub(super) fn is_embedding(name: &str) -> bool {
    ["embed_tokens.weight", "wte.weight", "wpe.weight"].iter().any(|end| name.ends_with(end))
}

/// The output matrix, where it is not the embedding.
pub(super) const HEAD: &str = "lm_head.weight";

/// The token embedding's parameter, which is the head's too where the two are tied.
pub(super) fn token_table(decoder: &Decoder) -> String {
    format!("{}.weight", decoder.config.names.embedding)
}

/// The frozen parameters by the recipe's masks.
fn frozen(masks: &Masks, decoder: &Decoder, problems: &mut Vec<Error>) -> BTreeSet<String> {
    let names: Vec<String> = decoder.parameters().into_iter().map(|p| p.name).collect();
    let tied = decoder.config.tie_word_embeddings;
    // By either of its names.
    let shared = tied.then(|| token_table(decoder));
    let mut frozen = match &masks.unfrozen_parameters {
        Some(unfrozen) => all_but(&names, unfrozen, shared.as_deref(), problems),
        None => BTreeSet::new(),
    };
    for module in &masks.frozen_modules {
        let head = shared.as_ref().filter(|_| is_inside(HEAD, module));
        let inside: Vec<&String> = names.iter().filter(|name| is_inside(name, module)).chain(head).collect();
        if inside.is_empty() {
            problems.push(unknown_module("frozen_modules", module, &names));
        }
        frozen.extend(inside.into_iter().cloned());
    }
    for text in &masks.frozen_res {
        match Pattern::anywhere("frozen_res", text).and_then(|pattern| matching(&names, &pattern)) {
            Ok(found) if found.is_empty() => problems.push(no_match("frozen_res", text, &names)),
            Ok(found) => frozen.extend(found),
            Err(error) => problems.push(error),
        }
    }
    if tied && masks.freeze_head != masks.freeze_embeddings {
        let (one, other) = match masks.freeze_head {
            true => ("freeze_head", "freeze_embeddings"),
            false => ("freeze_embeddings", "freeze_head"),
        };
        let complaint = key(one).expected(format!("`{other}: true` too, as this model's head is its embedding"));
        let help = "the weights are tied (`tie_word_embeddings`): set both keys or neither";
        problems.push(complaint.found(format!("`{other}: false`")).help(help).error());
    }
    if masks.freeze_embeddings {
        frozen.extend(names.iter().filter(|name| is_embedding(name)).cloned());
    }
    if masks.freeze_head {
        frozen.extend(names.iter().filter(|name| *name == HEAD).cloned());
    }
    if frozen.len() == names.len() && problems.is_empty() {
        let complaint = Error::at("the recipe").field("frozen parameters").expected("something left to train");
        problems.push(complaint.found("every parameter frozen").help("freeze less, or train a `lora`").error());
    }
    frozen
}

/// What no pattern of `unfrozen_parameters` matches from the start of its name. `shared` is the embedding that is the
/// head too, whichever of the two names is given.
fn all_but(names: &[String], unfrozen: &Unfrozen, shared: Option<&str>, problems: &mut Vec<Error>) -> BTreeSet<String> {
    let mut frozen: BTreeSet<String> = names.iter().cloned().collect();
    let patterns = patterns_of(unfrozen).unwrap_or_else(|error| {
        problems.push(error);
        Vec::new()
    });
    for text in &patterns {
        let found = Pattern::from_start("unfrozen_parameters", text).and_then(|pattern| {
            let mut found = matching(names, &pattern)?;
            if pattern.matches(HEAD)? {
                found.extend(shared.map(str::to_owned));
            }
            Ok(found)
        });
        match found {
            Ok(found) if found.is_empty() => problems.push(no_match("unfrozen_parameters", text, names)),
            Ok(found) => found.iter().for_each(|name| _ = frozen.remove(name)),
            Err(error) => problems.push(error),
        }
    }
    frozen
}

/// The patterns inline, or those of a file that Spectrum wrote.
pub(super) fn patterns_of(unfrozen: &Unfrozen) -> Result<Vec<String>> {
    match unfrozen {
        Unfrozen::Patterns(patterns) => Ok(patterns.clone()),
        Unfrozen::File(path) => {
            let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
            let wrong = |found: String| {
                let complaint = Error::file(path).field("`unfrozen_parameters`").expected("a list of patterns");
                complaint.found(found).help("name the YAML file that Spectrum writes").error()
            };
            let tree = crate::yaml::read_yaml(&text, path).map_err(|error| wrong(error.to_string()))?;
            let list = tree.get("unfrozen_parameters").and_then(|list| list.as_array());
            let items = list.ok_or_else(|| wrong("none".into()))?;
            let text = |item: &serde_json::Value| item.as_str().map(str::to_owned);
            items.iter().map(|item| text(item).ok_or_else(|| wrong(item.to_string()))).collect()
        }
    }
}

/// Whether parameter `name` belongs to `module` or to one inside it.
pub(super) fn is_inside(name: &str, module: &str) -> bool {
    name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'))
}

/// A regular expression of the recipe's.
pub(super) struct Pattern {
    key: String,
    regex: fancy_regex::Regex,
}

impl Pattern {
    /// One that may match anywhere in a name, as Python's `re.search`.
    pub fn anywhere(key: &str, text: &str) -> Result<Pattern> {
        Pattern::new(key, text, text)
    }

    /// One that matches from a name's start on, as Python's `re.match`.
    pub fn from_start(key: &str, text: &str) -> Result<Pattern> {
        if text.ends_with(']') && text.rsplit_once('[').is_some_and(|(_, range)| range.contains(':')) {
            let complaint = self::key(key).expected("a pattern for whole parameters").found(format!("{text:?}"));
            return complaint.help("a range of rows cannot be trained alone: remove the brackets").err();
        }
        Pattern::new(key, text, &format!("^(?:{text})"))
    }

    /// One that matches whole names, as Python's `re.fullmatch`.
    pub fn whole(key: &str, text: &str) -> Result<Pattern> {
        Pattern::new(key, text, &format!("^(?:{text})$"))
    }

    fn new(key: &str, text: &str, regex: &str) -> Result<Pattern> {
        let regex = fancy_regex::Regex::new(regex).map_err(|error| {
            self::key(key).expected("a regular expression").found(format!("{text:?}: {error}")).error()
        })?;
        Ok(Pattern { key: key.to_owned(), regex })
    }

    pub fn matches(&self, name: &str) -> Result<bool> {
        self.regex.is_match(name).map_err(|error| {
            let complaint = key(&self.key).expected("a regular expression that ends").found(error);
            complaint.help("write a simpler one").error()
        })
    }
}

/// The names that `pattern` matches.
pub(super) fn matching(names: &[String], pattern: &Pattern) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in names {
        if pattern.matches(name)? {
            found.push(name.clone());
        }
    }
    Ok(found)
}

pub(super) fn key(key: &str) -> crate::error::Complaint {
    Error::at("the recipe").field(format!("`{key}`"))
}

/// A pattern of `key` that fits none of `names`.
pub(super) fn no_match(key: &str, pattern: &str, names: &[String]) -> Error {
    let complaint = self::key(key).expected("a pattern that fits a parameter").found(format!("{pattern:?}"));
    let plain = pattern.trim_matches(['^', '$']).replace('\\', "");
    complaint.help(suggestion(&plain, names.iter().map(String::as_str))).error()
}

/// A module that the model does not have.
pub(super) fn unknown_module(key: &str, module: &str, names: &[String]) -> Error {
    let mut modules = BTreeSet::new();
    for name in names {
        modules.extend(name.match_indices('.').map(|(at, _)| &name[..at]));
    }
    let complaint = self::key(key).expected("names of modules").found(format!("{module:?}"));
    complaint.help(suggestion(module, modules)).error()
}

fn suggestion<'a>(word: &str, names: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match Error::nearest(word, names.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("the model has names like `{}`", names.into_iter().last().unwrap_or_default()),
    }
}
