//! The best modules of each type, and the list of them that trainers read.

use super::results::{Results, Scored, descending};
use crate::{Error, Result};
use std::fmt::Write;

/// Which score decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// Spectrum's.
    #[default]
    Snr,
    /// The one by the Marchenko-Pastur edge.
    Mp,
}

/// What a share of a type's modules that is no whole number becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// The next larger one, so that every type is trained.
    #[default]
    Up,
    /// The next smaller one, which may be none: what Spectrum does.
    Down,
}

/// How to choose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The share of each type, above 0 and up to 100.
    pub top_percent: f64,
    /// The score.
    pub by: By,
    /// Parts of modules.
    pub rounding: Rounding,
}

/// The modules of one type, best first.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// The type.
    pub name: String,
    /// Module and score.
    pub modules: Vec<(String, f64)>,
    /// How many of them, from the first, are chosen.
    pub chosen: usize,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The types, in Spectrum's order.
    pub kinds: Vec<Kind>,
}

/// Takes the best of each type.
///
/// Errors for a percentage out of range, for a score that the results do not have, and where nothing is chosen.
pub fn choose(results: &Results, choice: &Choice) -> Result<Chosen> {
    choice.check()?;
    let Choice { top_percent, by, rounding } = *choice;
    let mut kinds = Vec::new();
    for (name, modules) in results.by_kind() {
        let scores: Option<Vec<(String, f64)>> = modules.into_iter().map(|module| score(module, by)).collect();
        let Some(scores) = scores else {
            let complaint = Error::at("--score mp").expected("`mp_snr` of every module");
            return complaint.found("scores that Spectrum made").help("scan the model instead").err();
        };
        let share = scores.len() as f64 * top_percent / 100.0;
        // 12.3 % of 1000 is 123, whatever its floating-point product is.
        let chosen = match rounding {
            Rounding::Up => (share - 1e-9).ceil().max(1.0),
            Rounding::Down => (share + 1e-9).floor(),
        } as usize;
        kinds.push(Kind { name, modules: descending(scores, |(_, score)| *score), chosen });
    }
    if kinds.iter().all(|kind| kind.chosen == 0) {
        let complaint = Error::at("--top-percent").expected("enough for one module of a type").found(top_percent);
        return complaint.help("take more, or leave `--floor` out").err();
    }
    Ok(Chosen { kinds })
}

impl Choice {
    /// Refuses a percentage out of range.
    pub fn check(&self) -> Result<()> {
        if self.top_percent > 0.0 && self.top_percent <= 100.0 {
            return Ok(());
        }
        Error::at("--top-percent").expected("a number above 0, at most 100").found(self.top_percent).err()
    }
}

fn score(module: &Scored, by: By) -> Option<(String, f64)> {
    let score = match by {
        By::Snr => Some(module.snr),
        By::Mp => module.mp_snr,
    };
    Some((module.name.clone(), score?))
}

impl Chosen {
    /// The chosen modules, type by type, best first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.kinds.iter().flat_map(|kind| kind.modules[..kind.chosen].iter().map(|(name, _)| name.as_str()))
    }

    /// Spectrum's YAML: head, embeddings and the chosen modules, as patterns that match from a parameter's start.
    pub fn yaml(&self) -> String {
        let mut yaml = "unfrozen_parameters:\n".to_owned();
        for module in self.always() {
            let _ = writeln!(yaml, "- ^{module}.weight$");
        }
        for Kind { name, modules, chosen } in &self.kinds {
            let _ = writeln!(yaml, "# {name} layers");
            modules[..*chosen].iter().for_each(|(module, _)| yaml.push_str(&format!("- {module}\n")));
        }
        yaml
    }

    /// Head and embeddings, which Spectrum always trains, by the names that the blocks' family gives them.
    fn always(&self) -> [&'static str; 2] {
        let families = [
            ("transformer.h.", ["lm_head", "transformer.wte"]),
            ("gpt_neox.layers.", ["embed_out", "gpt_neox.embed_in"]),
        ];
        let modules = || self.kinds.iter().flat_map(|kind| &kind.modules);
        let family = families.into_iter().find(|(blocks, _)| modules().any(|(name, _)| name.starts_with(blocks)));
        family.map_or(["lm_head", "model.embed_tokens"], |(_, names)| names)
    }
}
