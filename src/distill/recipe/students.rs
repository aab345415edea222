//! The recipe's keys that say what of a student is trained: masks under the names of DistillKit and of Spectrum, and
//! `lora` under those of PEFT.

use crate::yaml::{Fields, Node};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::fmt;
use std::path::{Path, PathBuf};

/// Which parameters keep their values. Default: none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Masks {
    /// `frozen_modules`: modules by their exact names, with all inside them.
    pub frozen_modules: Vec<String>,
    /// `frozen_res`: regular expressions that match anywhere in parameters' names.
    pub frozen_res: Vec<String>,
    /// `unfrozen_parameters`: if given, all others are frozen.
    pub unfrozen_parameters: Option<Unfrozen>,
    /// `freeze_embeddings`.
    pub freeze_embeddings: bool,
    /// `freeze_head`.
    pub freeze_head: bool,
}

/// Spectrum's list of what is trained.
#[derive(Clone, Debug, PartialEq)]
pub enum Unfrozen {
    /// Regular expressions that match from the start of parameters' names on.
    Patterns(Vec<String>),
    /// The YAML file that holds them under `unfrozen_parameters`.
    File(PathBuf),
}

/// Low-rank adapters, under the names of PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraArgs {
    /// The rank; default 8.
    pub r: usize,
    /// The adapters' products are multiplied by this over `r`; default 8.
    pub lora_alpha: f64,
    /// Which linear layers; default all.
    pub target_modules: Targets,
    /// DoRA: magnitudes and directions are trained apart. Default false.
    pub use_dora: bool,
    /// Divide `lora_alpha` by the root of `r` instead of by `r`. Default false.
    pub use_rslora: bool,
    /// Modules that are trained whole and saved with the adapter; default none.
    pub modules_to_save: Vec<String>,
    /// Only layers of these numbers; default all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Of the adapters' first values; default the recipe's `seed`.
    pub init_seed: u64,
    /// Write the student with the adapters merged too, as an ordinary folder; default true.
    pub save_merged: bool,
}

/// The linear layers that get an adapter.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// `all-linear`: all but the head.
    AllLinear,
    /// A list of names or of their last parts.
    Names(Vec<String>),
    /// A regular expression that matches whole names.
    Pattern(String),
}

const LORA: &[&str] = &[
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "use_dora",
    "use_rslora",
    "modules_to_save",
    "layers_to_transform",
    "init_seed",
    "save_merged",
];

fn texts(node: &Node) -> Result<Vec<String>> {
    node.list(|item| item.text())
}

/// Reads the masks from the recipe's root.
pub(super) fn masks(fields: &Fields) -> Result<Masks> {
    Ok(Masks {
        frozen_modules: fields.or("frozen_modules", Vec::new(), texts)?,
        frozen_res: fields.or("frozen_res", Vec::new(), texts)?,
        unfrozen_parameters: fields.maybe("unfrozen_parameters", |node| match node.value.is_array() {
            true => texts(node).map(Unfrozen::Patterns),
            false => node.text().map(|path| Unfrozen::File(path.into())),
        })?,
        freeze_embeddings: fields.or("freeze_embeddings", false, Node::boolean)?,
        freeze_head: fields.or("freeze_head", false, Node::boolean)?,
    })
}

/// Reads `lora`.
pub(super) fn lora(node: &Node, seed: u64) -> Result<LoraArgs> {
    let fields = node.clone().fields(LORA, &[])?;
    let dropout = fields.or("lora_dropout", 0.0, Node::number)?;
    if dropout != 0.0 {
        let complaint = fields.complaint("lora_dropout").expected("0: adapters have no dropout here").found(dropout);
        return complaint.help("remove the key; a smaller `r` or `weight_decay` regularises too").err();
    }
    let layers =
        |node: &Node| if node.value.is_array() { node.list(|item| item.count()) } else { Ok(vec![node.count()?]) };
    Ok(LoraArgs {
        r: fields.or("r", 8, Node::count)?,
        lora_alpha: fields.or("lora_alpha", 8.0, Node::number)?,
        target_modules: fields.or("target_modules", Targets::AllLinear, |node| match node.value.as_str() {
            Some("all-linear") => Ok(Targets::AllLinear),
            Some(_) => node.text().map(Targets::Pattern),
            None => texts(node).map(Targets::Names),
        })?,
        use_dora: fields.or("use_dora", false, Node::boolean)?,
        use_rslora: fields.or("use_rslora", false, Node::boolean)?,
        modules_to_save: fields.or("modules_to_save", Vec::new(), texts)?,
        layers_to_transform: fields.maybe("layers_to_transform", layers)?,
        init_seed: fields.or("init_seed", seed, Node::integer)?,
        save_merged: fields.or("save_merged", true, Node::boolean)?,
    })
}

impl Masks {
    /// Whether nothing is frozen.
    pub fn is_empty(&self) -> bool {
        *self == Masks::default()
    }

    pub(super) fn put(&self, root: &mut Map<String, Value>) {
        let mut put = |key: &str, value: Value| root.insert(key.to_owned(), value);
        if !self.frozen_modules.is_empty() {
            put("frozen_modules", json!(self.frozen_modules));
        }
        if !self.frozen_res.is_empty() {
            put("frozen_res", json!(self.frozen_res));
        }
        match &self.unfrozen_parameters {
            Some(Unfrozen::Patterns(patterns)) => put("unfrozen_parameters", json!(patterns)),
            Some(Unfrozen::File(path)) => put("unfrozen_parameters", json!(path)),
            None => None,
        };
        for (key, value) in [("freeze_embeddings", self.freeze_embeddings), ("freeze_head", self.freeze_head)] {
            if value {
                put(key, json!(true));
            }
        }
    }
}

/// The masks as they stand in a recipe, on one line.
impl fmt::Display for Masks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = Map::new();
        self.put(&mut map);
        let parts: Vec<String> = map.iter().map(|(key, value)| format!("{key} {value}")).collect();
        write!(f, "{}", parts.join(", "))
    }
}

impl LoraArgs {
    pub(super) fn to_json(&self) -> Value {
        let targets = match &self.target_modules {
            Targets::AllLinear => json!("all-linear"),
            Targets::Names(names) => json!(names),
            Targets::Pattern(pattern) => json!(pattern),
        };
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
        put("r", json!(self.r));
        put("lora_alpha", json!(self.lora_alpha));
        put("target_modules", targets);
        put("use_dora", json!(self.use_dora));
        put("use_rslora", json!(self.use_rslora));
        if !self.modules_to_save.is_empty() {
            put("modules_to_save", json!(self.modules_to_save));
        }
        if let Some(layers) = &self.layers_to_transform {
            put("layers_to_transform", json!(layers));
        }
        put("init_seed", json!(self.init_seed));
        put("save_merged", json!(self.save_merged));
        Value::Object(map)
    }
}

/// Every contradiction between masks and adapters that shows without the model.
pub(super) fn problems(file: &Path, masks: &Masks, lora: Option<&LoraArgs>, named_base: bool) -> Vec<Error> {
    let complaint = |key: &str| Error::file(file).field(format!("`{key}`"));
    let mut problems = Vec::new();
    if masks.unfrozen_parameters.is_some() {
        let both = [("frozen_modules", &masks.frozen_modules), ("frozen_res", &masks.frozen_res)];
        for (key, _) in both.iter().filter(|(_, list)| !list.is_empty()) {
            let complaint = complaint(key).expected("this or `unfrozen_parameters`").found("both");
            problems.push(complaint.help("one says what is frozen, the other what is not: remove one").error());
        }
    }
    let Some(lora) = lora else { return problems };
    if !masks.is_empty() {
        let complaint = complaint("lora").expected("no frozen parameters beside adapters").found(masks);
        let help =
            "adapters leave all of the model frozen: choose with `lora.target_modules` and `lora.modules_to_save`";
        problems.push(complaint.help(help).error());
    }
    if lora.r == 0 {
        problems.push(complaint("lora.r").expected("at least 1").found(0).error());
    }
    if !(lora.lora_alpha > 0.0 && lora.lora_alpha.is_finite()) {
        let complaint = complaint("lora.lora_alpha").expected("a positive number").found(lora.lora_alpha);
        problems.push(complaint.help("twice `r` is usual").error());
    }
    if matches!(lora.target_modules, Targets::Pattern(_)) && lora.layers_to_transform.is_some() {
        let complaint = complaint("lora.layers_to_transform").expected("a list in `target_modules`");
        problems.push(complaint.found("a regular expression").help("put the layers into the expression").error());
    }
    if !lora.save_merged && !named_base {
        let complaint = complaint("lora.save_merged").expected("true, as the adapter's model exists nowhere else");
        problems.push(complaint.found("false").help("remove the key, or adapt a model by its path").error());
    }
    problems
}
