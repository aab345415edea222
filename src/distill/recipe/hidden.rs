//! The terms of the loss that compare hidden states and attention relations, and their keys.

use serde_json::{Map, Value, json};

use super::Function;
use crate::Result;
use crate::distill::layer_map::LayerMapping;
use crate::yaml::{Fields, Node};

/// A loss on what is inside the models.
#[derive(Clone, Debug, PartialEq)]
pub struct Hidden {
    /// Which.
    pub kind: HiddenKind,
    /// Its own map; default the recipe's.
    pub layer_mapping: Option<LayerMapping>,
    /// `hs_relation`: the heads that both sides' vectors are cut into; default the most that fit, up to the student's
    /// heads.
    pub relation_heads: Option<usize>,
}

/// Which loss on hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HiddenKind {
    /// `hs_mse`: the mean squared difference of two states.
    Mse,
    /// `hs_cosine`: 1 - the cosine of two states.
    Cosine,
    /// `hs_cka`: 1 - the linear centred kernel alignment of a micro-batch's states.
    Cka,
    /// `hs_relation`: MiniLMv2's divergence of self-relations of queries, keys and values.
    Relation,
}

impl HiddenKind {
    /// Its name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            HiddenKind::Mse => "hs_mse",
            HiddenKind::Cosine => "hs_cosine",
            HiddenKind::Cka => "hs_cka",
            HiddenKind::Relation => "hs_relation",
        }
    }

    /// What it is, for a reader who does not know its name.
    pub fn describe(self) -> &'static str {
        match self {
            HiddenKind::Mse => "the squared error of hidden states",
            HiddenKind::Cosine => "the cosine distance of hidden states",
            HiddenKind::Cka => "1 - the linear centred kernel alignment of hidden states",
            HiddenKind::Relation => "the divergence of relations of queries, keys and values",
        }
    }
}

fn read(fields: &Fields, kind: HiddenKind) -> Result<Function> {
    let layer_mapping = fields.maybe("layer_mapping", layer_mapping)?;
    Ok(Function::Hidden(Hidden { kind, layer_mapping, relation_heads: None }))
}

pub(super) fn mse(fields: &Fields) -> Result<Function> {
    read(fields, HiddenKind::Mse)
}

pub(super) fn cosine(fields: &Fields) -> Result<Function> {
    read(fields, HiddenKind::Cosine)
}

pub(super) fn cka(fields: &Fields) -> Result<Function> {
    read(fields, HiddenKind::Cka)
}

pub(super) fn relation(fields: &Fields) -> Result<Function> {
    let layer_mapping = fields.maybe("layer_mapping", layer_mapping)?;
    let relation_heads = fields.maybe("relation_heads", |node| match node.count()? {
        0 => node.complaint().expected("at least 1").found(0).err(),
        heads => Ok(heads),
    })?;
    Ok(Function::Hidden(Hidden { kind: HiddenKind::Relation, layer_mapping, relation_heads }))
}

/// `all`, `last`, `uniform` or a list of pairs.
pub(super) fn layer_mapping(node: &Node) -> Result<LayerMapping> {
    const NAMES: super::Names<usize> = &[("all", 0), ("last", 1), ("uniform", 2)];
    let expected = "all, last, uniform or a list of pairs [student's state, teacher's state]";
    if node.value.is_string() {
        return Ok([LayerMapping::All, LayerMapping::Last, LayerMapping::Uniform][node.choice(NAMES)?].clone());
    }
    if !node.value.is_array() {
        return node.complaint().expected(expected).found("something else").err();
    }
    let pair = |item: Node| match item.value.as_array().map(Vec::as_slice) {
        Some([student, teacher]) if student.is_i64() && teacher.is_i64() => {
            Ok([student, teacher].map(|index| index.as_i64().unwrap_or(i64::MAX)))
        }
        _ => item.complaint().expected("two whole numbers, [student's state, teacher's state]").found(item.value).err(),
    };
    node.list(pair).map(LayerMapping::Pairs)
}

impl LayerMapping {
    pub(super) fn to_json(&self) -> Value {
        match self {
            LayerMapping::All => json!("all"),
            LayerMapping::Last => json!("last"),
            LayerMapping::Uniform => json!("uniform"),
            LayerMapping::Pairs(pairs) => json!(pairs),
        }
    }
}

impl Hidden {
    /// Adds its keys to a loss's canonical form.
    pub(super) fn put_json(&self, map: &mut Map<String, Value>) {
        if let Some(mapping) = &self.layer_mapping {
            map.insert("layer_mapping".to_string(), mapping.to_json());
        }
        if let Some(heads) = self.relation_heads {
            map.insert("relation_heads".to_string(), json!(heads));
        }
    }
}
