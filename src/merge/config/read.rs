//! From YAML to [`MergeConfig`]s.

use super::learning::{Learning, learning};
use super::methods::{BaseRole, METHODS, MethodSpec};
use super::reference::{Reference, reference};
use super::sources::{FORMS, modules};
use super::tokens::{TokenizerKeys, tokenizer};
use super::values::parameters;
use super::{ChatTemplate, MergeConfig, Slice, TokenizerSource};
use crate::formats::Dtype;
use crate::yaml::{Fields, Names, Node, keep, read_documents};
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::path::Path;

const DTYPES: Names<Dtype> = &[("float32", Dtype::F32), ("bfloat16", Dtype::Bf16), ("float16", Dtype::F16)];
const ROOT: &[&str] = &[
    "name",
    "merge_method",
    FORMS[0],
    FORMS[1],
    FORMS[2],
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer",
    "tokenizer_source",
    "chat_template",
];
/// ChatML, as its many users write it.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] \
                      + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}\
                      {{ '<|im_start|>assistant\\n' }}{% endif %}";

impl MergeConfig {
    /// Reads documents from `text`; `file` stands for it in messages. See [`MergeConfig::load`].
    pub fn parse(text: &str, file: &Path) -> Result<Vec<MergeConfig>> {
        let trees = read_documents(text, file)?;
        let several = trees.len() > 1;
        let mut wrong = Vec::new();
        let mut documents = Vec::new();
        for (i, value) in trees.iter().enumerate() {
            let path = if several { format!("document {}", i + 1) } else { String::new() };
            let text = if several { value.to_string() } else { text.to_string() };
            documents.extend(keep(&mut wrong, document(&Node { file, path, value }, text)));
        }
        Error::all(wrong)?;
        if documents.is_empty() {
            return Error::file(file).expected("the configuration of a merge").found("nothing").err();
        }
        ordered(documents, file)
    }
}

fn document(node: &Node, text: String) -> Result<MergeConfig> {
    let fields = node.clone().fields(ROOT, &[])?;
    let mut wrong = Vec::new();
    let method = keep(&mut wrong, fields.need("merge_method", "a method", method));
    let name = keep(&mut wrong, fields.maybe("name", Node::text)).flatten();
    let base_model = keep(&mut wrong, fields.maybe("base_model", reference)).flatten();
    let dtype = keep(&mut wrong, fields.maybe("dtype", |node| node.choice(DTYPES))).flatten();
    let out_dtype = keep(&mut wrong, fields.maybe("out_dtype", |node| node.choice(DTYPES))).flatten();
    let TokenizerKeys { source, tokens, pad } = keep(&mut wrong, tokenizer(&fields)).unwrap_or_default();
    let chat_template = keep(&mut wrong, fields.maybe("chat_template", chat_template)).flatten();
    // What the parameters have to be depends on the method.
    let Some(method) = method else {
        Error::all(wrong)?;
        return Err(Error::internal("a method neither read nor refused"));
    };
    let (own, learning) = match method.learns() {
        true => (None, keep(&mut wrong, learned(&fields, node))),
        false => {
            let own = fields.maybe("parameters", |node| parameters(node, method, false));
            (keep(&mut wrong, own).flatten(), None)
        }
    };
    let modules = keep(&mut wrong, modules(&fields, node, method)).unwrap_or_default();
    let config = MergeConfig {
        file: node.file.to_path_buf(),
        name,
        method,
        modules,
        base_model,
        parameters: own.unwrap_or_default(),
        learning,
        dtype,
        out_dtype,
        tokenizer: source,
        tokens,
        pad_to_multiple_of: pad,
        chat_template,
        text,
    };
    config.check(node, &mut wrong);
    Error::all(wrong)?;
    Ok(config)
}

/// How coefficients are learned; keys that do not go with learning are refused.
fn learned(fields: &Fields, root: &Node) -> Result<Learning> {
    let mut wrong = Vec::new();
    for key in ["slices", "modules", "tokenizer", "tokenizer_source"] {
        if fields.node(key).is_some() {
            let complaint = fields.complaint(key).expected("no such key with `merge_method: dam`").found("one");
            let help = "dam merges whole models of one tokenizer, named in `models`";
            wrong.push(complaint.help(help).error());
        }
    }
    let none = serde_json::json!({});
    let node = fields.node("parameters");
    let node = node.unwrap_or(Node { file: root.file, path: "parameters".into(), value: &none });
    let learning = keep(&mut wrong, learning(&node));
    Error::all(wrong)?;
    learning.ok_or_else(|| Error::internal("parameters neither read nor refused"))
}

fn method(node: &Node) -> Result<&'static MethodSpec> {
    let text = node.text()?;
    METHODS.iter().find(|method| method.name == text).ok_or_else(|| {
        let names: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
        let complaint = node.complaint().expected(format!("one of {}", names.join(", "))).found(format!("`{text}`"));
        match Error::nearest(&text, names) {
            Some(near) => complaint.help(format!("did you mean `{near}`?")).error(),
            None => complaint.error(),
        }
    })
}

fn chat_template(node: &Node) -> Result<ChatTemplate> {
    let text = node.text()?;
    match text.as_str() {
        "auto" => Ok(ChatTemplate::Auto),
        "chatml" => Ok(ChatTemplate::Text(CHATML.to_string())),
        _ if text.len() >= 20 && text.contains('{') => Ok(ChatTemplate::Text(text)),
        _ => {
            let complaint =
                node.complaint().expected("`auto`, `chatml` or a Jinja template").found(format!("`{text}`"));
            complaint.help("write the template out").err()
        }
    }
}

impl MergeConfig {
    /// What a type alone does not rule out.
    fn check(&self, node: &Node, wrong: &mut Vec<Error>) {
        let at = |path: &str| Error::file(node.file).field(format!("`{path}`"));
        let needs = matches!(self.method.base, BaseRole::First | BaseRole::Required);
        let slices = || self.modules.iter().flat_map(|module| &module.slices);
        if needs && self.base_model.is_none() && slices().any(|slice| slice.base_model.is_none()) {
            let complaint = at("base_model").expected(format!("a base for {}", self.method.name)).found("none");
            wrong.push(complaint.help("name the model that the others were made from").error());
        }
        if self.tokenizer == Some(TokenizerSource::Base) && self.base_model.is_none() {
            wrong.push(at("base_model").expected("a base whose tokenizer to use").found("none").error());
        }
        for slice in slices() {
            self.check_slice(slice, &at, wrong);
        }
        let sources: Vec<_> = slices().flat_map(|slice| &slice.sources).collect();
        let none = !sources.is_empty() && sources.iter().all(|source| source.data.is_empty());
        if self.learning.is_some() && none {
            let complaint = at("models").expected("a model with `parameters: { data: FILE }`").found("none");
            wrong.push(complaint.help("say what text each model is distilled on").error());
        }
    }

    /// The base of a slice.
    pub fn base_of<'a>(&'a self, slice: &'a Slice) -> Option<&'a Reference> {
        slice.base_model.as_ref().or(self.base_model.as_ref())
    }

    fn check_slice(&self, slice: &Slice, at: &dyn Fn(&str) -> crate::error::Complaint, wrong: &mut Vec<Error>) {
        let base = self.base_of(slice).filter(|_| self.method.uses_base());
        let others: Vec<_> = slice.sources.iter().filter(|source| Some(&source.model) != base).collect();
        let (least, most) = self.method.models;
        if !(least..=most).contains(&others.len()) {
            let count = match (least, most) {
                (least, most) if least == most => format!("{least}"),
                (least, _) => format!("at least {least}"),
            };
            let beside = if base.is_some() { " besides the base" } else { "" };
            let expected =
                format!("{count} model{}{beside} for {}", if least == 1 { "" } else { "s" }, self.method.name);
            wrong.push(at(&slice.place).expected(expected).found(others.len()).error());
        }
        for (i, source) in slice.sources.iter().enumerate() {
            let again = Some(&source.model) == base && slice.sources[..i].iter().any(|s| s.model == source.model);
            if again {
                wrong.push(at(&source.place).expected("the base once").found("it twice").help("remove one").error());
            }
            let subtracted = matches!(self.method.base, BaseRole::Required | BaseRole::Optional);
            if Some(&source.model) == base && subtracted && !source.parameters.is_empty() {
                let complaint = at(&source.place).expected("no parameters of the base").found("some");
                wrong.push(complaint.help("the base has no task vector: remove its `parameters`").error());
            }
        }
        for spec in self.method.parameters.iter().filter(|spec| spec.default.is_none()) {
            self.check_required(slice, &others, spec.name, spec.per_model, at, wrong);
        }
    }

    /// Whether a parameter that has to be there is said for every model of a slice.
    fn check_required(
        &self,
        slice: &Slice,
        others: &[&super::Source],
        name: &str,
        per_model: bool,
        at: &dyn Fn(&str) -> crate::error::Complaint,
        wrong: &mut Vec<Error>,
    ) {
        let module = self.modules.iter().find(|module| module.slices.iter().any(|s| s.place == slice.place));
        let outer = [Some(&slice.parameters), module.map(|m| &m.parameters), Some(&self.parameters)];
        if outer.into_iter().flatten().any(|parameters| parameters.contains_key(name)) {
            return;
        }
        if !per_model {
            let complaint = at(&format!("parameters.{name}")).expected(format!("`{name}` for {}", self.method.name));
            wrong.push(complaint.found("nothing").help(format!("add `{name}`")).error());
            return;
        }
        for source in others.iter().filter(|source| !source.parameters.contains_key(name)) {
            let complaint =
                at(&format!("{}.parameters.{name}", source.place)).expected(format!("the {name} of a model"));
            wrong.push(complaint.found("nothing").help(format!("add `{name}`")).error());
        }
    }
}

/// Puts documents after those they name. The last one is that which nobody names.
fn ordered(mut documents: Vec<MergeConfig>, file: &Path) -> Result<Vec<MergeConfig>> {
    let names: Vec<Option<String>> = documents.iter().map(|d| d.name.clone()).collect();
    let mut wrong = Vec::new();
    for (i, name) in names.iter().enumerate().filter(|(_, name)| name.is_some()) {
        if names[..i].contains(name) {
            let complaint = Error::file(file).field("`name`").expected("another name for every document");
            wrong.push(complaint.found(name.as_deref().unwrap_or_default()).error());
        }
    }
    let uses = |d: &MergeConfig| d.references().iter().map(|r| r.model.clone()).collect::<BTreeSet<_>>();
    let named: BTreeSet<String> = documents.iter().flat_map(uses).collect();
    let last = documents.iter().filter(|d| d.name.as_ref().is_none_or(|name| !named.contains(name))).count();
    if last != 1 {
        let complaint = Error::file(file).expected("one document that no other names: the result").found(last);
        wrong.push(complaint.help("give every other document a `name`, and use it as a model").error());
    }
    Error::all(wrong)?;
    let mut ready: Vec<MergeConfig> = Vec::new();
    while !documents.is_empty() {
        let pending: BTreeSet<String> = documents.iter().filter_map(|d| d.name.clone()).collect();
        let free = documents.iter().position(|d| uses(d).is_disjoint(&pending));
        let Some(free) = free else {
            let found = pending.into_iter().collect::<Vec<_>>().join(", ");
            return Error::file(file).expected("documents that do not need themselves").found(found).err();
        };
        ready.push(documents.remove(free));
    }
    // The result is the last: every other document is needed by one that comes after it.
    Ok(ready)
}
