//! Parameter values: numbers, gradients over the depth, and both by filters on tensors' names.

use super::methods::{Kind, MethodSpec};
use crate::yaml::Node;
use crate::{Error, Result};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// The parameters of one place, by name.
pub type Parameters = BTreeMap<&'static str, Setting>;

/// What a parameter is, for which tensors: the first rule that fits.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting(Vec<Rule>);

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    /// Where it stands in the file.
    place: String,
    /// Part of the tensors' names; none fits all.
    filter: Option<String>,
    /// Values along the depth.
    gradient: Vec<f64>,
    /// Steps instead of lines between them.
    stepped: bool,
}

/// A mapping of parameters of `method`. `per_model` says that it belongs to one model.
pub(super) fn parameters(node: &Node, method: &'static MethodSpec, per_model: bool) -> Result<Parameters> {
    if node.value.as_object().is_none() {
        return node.wrong("a mapping of parameters");
    }
    let fields = node.clone().fields(&method.names(), &[])?;
    let mut wrong = Vec::new();
    let mut parameters = Parameters::new();
    for spec in method.parameters {
        let Some(value) = fields.node(spec.name) else { continue };
        if per_model && !spec.per_model {
            let complaint = value.complaint().expected(format!("`{}` once for all models", spec.name));
            wrong.push(complaint.found("it at one model").help("move it to the `parameters` of the document").error());
            continue;
        }
        match setting(&value, spec.kind) {
            Ok(setting) => _ = parameters.insert(spec.name, setting),
            Err(error) => wrong.push(error),
        }
    }
    Error::all(wrong)?;
    Ok(parameters)
}

fn setting(node: &Node, kind: Kind) -> Result<Setting> {
    let conditional = |value: &Value| value.is_object();
    match node.value {
        Value::Array(items) if items.first().is_some_and(conditional) => {
            node.list(|item| rule(&item, kind)).map(Setting)
        }
        // mergekit accepts it and fails when it comes to the first tensor.
        Value::Object(_) => Ok(Setting(vec![rule(node, kind)?])),
        _ => Ok(Setting(vec![unconditional(node, kind, None)?])),
    }
}

fn rule(node: &Node, kind: Kind) -> Result<Rule> {
    let fields = node.clone().fields(&["filter", "value"], &[])?;
    let filter = fields.maybe("filter", Node::text)?.filter(|filter| filter != "*");
    let mut rule = fields.need("value", "a number or a list of numbers", |value| unconditional(value, kind, filter))?;
    rule.place = node.path.clone();
    Ok(rule)
}

fn unconditional(node: &Node, kind: Kind, filter: Option<String>) -> Result<Rule> {
    let gradient = node.one_or_more(|item| number(&item, kind))?;
    Ok(Rule { place: node.path.clone(), filter, gradient, stepped: kind == Kind::Flag })
}

fn number(node: &Node, kind: Kind) -> Result<f64> {
    if kind == Kind::Flag {
        return match (node.value.as_bool(), node.value.as_f64()) {
            (Some(flag), _) => Ok(f64::from(u8::from(flag))),
            (None, Some(number)) if number == 0.0 || number == 1.0 => Ok(number),
            _ => node.wrong("true or false"),
        };
    }
    let number = node.number()?;
    let (fits, expected) = match kind {
        Kind::Share => ((0.0..=1.0).contains(&number), "a number from 0 to 1"),
        Kind::Positive => (number > 0.0 && number.is_finite(), "a positive number"),
        Kind::Count => ((1.0..=1e6).contains(&number) && number.fract() == 0.0, "a whole number from 1 on"),
        Kind::Number | Kind::Flag => (number.is_finite(), "a number"),
    };
    if fits { Ok(number) } else { node.wrong(expected) }
}

impl Rule {
    fn at(&self, t: f64) -> f64 {
        let last = self.gradient.len() - 1;
        let at = t.clamp(0.0, 1.0) * last as f64;
        let index = (at as usize).min(last);
        if self.stepped {
            return self.gradient[index];
        }
        let next = (index + 1).min(last);
        let part = at - index as f64;
        (1.0 - part) * self.gradient[index] + part * self.gradient[next]
    }
}

/// The parameters that hold for something, the nearest first.
pub struct Levels<'a>(pub Vec<&'a Parameters>);

/// Which rules have served.
pub(in crate::merge) type Used = RefCell<BTreeSet<String>>;

impl Levels<'_> {
    /// The value of a parameter for the tensor of this name at depth `t` (0 to 1).
    pub(in crate::merge) fn get(&self, name: &str, tensor: &str, t: f64, used: &Used) -> Option<f64> {
        let settings = self.0.iter().filter_map(|parameters| parameters.get(name));
        for rule in settings.flat_map(|setting| &setting.0) {
            if rule.filter.as_ref().is_none_or(|filter| tensor.contains(filter.as_str())) {
                used.borrow_mut().insert(rule.place.clone());
                return Some(rule.at(t));
            }
        }
        None
    }
}

/// The filters among `parameters` that have not served, each with its place.
pub(in crate::merge) fn unused<'a>(
    parameters: impl Iterator<Item = &'a Parameters>,
    used: &Used,
) -> Vec<(String, String)> {
    let used = used.borrow();
    let rules = parameters.flat_map(|parameters| parameters.values()).flat_map(|setting| &setting.0);
    let filtered = rules.filter_map(|rule| Some((rule.place.clone(), rule.filter.clone()?)));
    filtered.filter(|(place, _)| !used.contains(place)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gradient_is_piecewise_linear_in_depth() {
        let rule = Rule { place: String::new(), filter: None, gradient: vec![0.0, 0.5, 0.3, 0.7, 1.0], stepped: false };
        // What mergekit gives for layers 0, 1, 8, 16 and 31 of 32.
        for (layer, expected) in [(0, 0.0), (1, 0.0645), (8, 0.4935), (16, 0.3258), (31, 1.0)] {
            let found = rule.at(f64::from(layer) / 31.0);
            assert!((found - expected).abs() < 5e-5, "{layer}: {found}");
        }
        let flags = Rule { gradient: vec![0.0, 1.0], stepped: true, ..rule };
        assert_eq!([0.0, 0.99, 1.0].map(|t| flags.at(t)), [0.0, 0.0, 1.0]);
    }
}
