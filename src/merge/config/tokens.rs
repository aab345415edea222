//! `tokenizer` and `tokenizer_source`.

use super::reference::reference;
use super::{TokenRow, TokenRule, TokenizerSource};
use crate::yaml::{Fields, Names, Node, keep};
use crate::{Error, Result};

/// What is said of the result's tokenizer.
#[derive(Default)]
pub(super) struct TokenizerKeys {
    pub source: Option<TokenizerSource>,
    pub tokens: Vec<TokenRule>,
    pub pad: Option<usize>,
}

#[derive(Clone, Copy)]
enum Kind {
    Zero,
    ModelToken,
}

const KINDS: Names<Kind> = &[("zero", Kind::Zero), ("model_token", Kind::ModelToken)];

pub(super) fn tokenizer(fields: &Fields) -> Result<TokenizerKeys> {
    let old = fields.maybe("tokenizer_source", source)?;
    let Some(node) = fields.node("tokenizer") else {
        return Ok(TokenizerKeys { source: old, ..TokenizerKeys::default() });
    };
    if old.is_some() {
        let complaint = fields.complaint("tokenizer_source").expected("this or `tokenizer`").found("both");
        return complaint.help("remove one").err();
    }
    let fields = node.clone().fields(&["source", "tokens", "pad_to_multiple_of"], &[])?;
    let mut wrong = Vec::new();
    // The default is mergekit's.
    let source = keep(&mut wrong, fields.or("source", TokenizerSource::Union, source));
    let tokens = keep(&mut wrong, fields.or("tokens", Vec::new(), rules)).unwrap_or_default();
    let pad = keep(&mut wrong, fields.maybe("pad_to_multiple_of", Node::count)).flatten();
    if pad.is_some_and(|pad| pad == 0 || pad > 1 << 20) {
        let complaint = fields.complaint("pad_to_multiple_of").expected("a number from 1 to 1048576");
        wrong.push(complaint.found(pad.unwrap_or(0)).error());
    }
    Error::all(wrong)?;
    Ok(TokenizerKeys { source, tokens, pad })
}

fn source(node: &Node) -> Result<TokenizerSource> {
    match node.value.as_str() {
        Some("union") => Ok(TokenizerSource::Union),
        Some("base") => Ok(TokenizerSource::Base),
        _ => reference(node).map(TokenizerSource::Model),
    }
}

fn rules(node: &Node) -> Result<Vec<TokenRule>> {
    let Some(map) = node.value.as_object() else { return node.wrong("a mapping from tokens to their rows") };
    let mut wrong = Vec::new();
    let mut rules = Vec::new();
    for (token, value) in map {
        let node = Node { file: node.file, path: format!("{}.{token}", node.path), value };
        rules.extend(keep(&mut wrong, rule(token, &node)));
    }
    Error::all(wrong)?;
    Ok(rules)
}

fn rule(token: &str, node: &Node) -> Result<TokenRule> {
    let fields = node.clone().fields(&["source", "force"], &[])?;
    let row = fields.maybe("source", row)?;
    Ok(TokenRule { token: token.to_string(), row, force: fields.or("force", false, Node::boolean)? })
}

/// A model, or `{kind, ...}`.
fn row(node: &Node) -> Result<TokenRow> {
    if node.value.get("kind").is_none() {
        return reference(node).map(TokenRow::Model);
    }
    let fields = node.clone().fields(&["kind", "model", "token", "token_id"], &[])?;
    match fields.need("kind", "a kind", |node| node.choice(KINDS))? {
        Kind::Zero => {
            let other = ["model", "token", "token_id"].into_iter().find(|key| fields.node(key).is_some());
            match other {
                None => Ok(TokenRow::Zero),
                Some(key) => fields.complaint(key).expected("nothing beside `kind: zero`").found("a value").err(),
            }
        }
        Kind::ModelToken => {
            let model = fields.need("model", "a model", reference)?;
            let (token, id) = (fields.maybe("token", Node::text)?, fields.maybe("token_id", Node::count)?);
            match (token, id) {
                (Some(token), None) => Ok(TokenRow::Token(model, token)),
                (None, Some(id)) => Ok(TokenRow::Id(model, id)),
                (token, _) => {
                    let found = if token.is_some() { "both" } else { "neither" };
                    node.complaint().expected("`token` or `token_id`").found(found).err()
                }
            }
        }
    }
}
