//! What each method needs: one table for reading, checking and building.

use crate::merge::methods::{Method, PerModel, Rescale, Sparsify, Task, Vote};

/// What a base is to a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseRole {
    /// It gives configuration and tokenizer, and is merged only where it is listed.
    Donor,
    /// It is the first of the merged models, and has to be there.
    First,
    /// It is subtracted, and has to be there.
    Required,
    /// It is subtracted if it is there.
    Optional,
}

/// The type of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any number.
    Number,
    /// A number from 0 to 1.
    Share,
    /// A positive number.
    Positive,
    /// A whole number from 1 on.
    Count,
    /// true or false.
    Flag,
}

/// A parameter of a method.
#[derive(Debug, PartialEq)]
pub struct ParameterSpec {
    /// Its key.
    pub name: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// Whether each model has its own.
    pub per_model: bool,
    /// What it is when nothing is said; none where something has to be said.
    pub default: Option<f64>,
}

/// A method.
#[derive(Debug, PartialEq)]
pub struct MethodSpec {
    /// `merge_method`.
    pub name: &'static str,
    /// The base.
    pub base: BaseRole,
    /// The least and the largest number of models besides a base that is subtracted or first.
    pub models: (usize, usize),
    /// The parameters.
    pub parameters: &'static [ParameterSpec],
}

const fn global(name: &'static str, kind: Kind, default: f64) -> ParameterSpec {
    ParameterSpec { name, kind, per_model: false, default: Some(default) }
}

const fn own(name: &'static str, kind: Kind, default: Option<f64>) -> ParameterSpec {
    ParameterSpec { name, kind, per_model: true, default }
}

const T: ParameterSpec = ParameterSpec { name: "t", kind: Kind::Number, per_model: false, default: None };
const WEIGHT: ParameterSpec = own("weight", Kind::Number, None);
const DENSITY: ParameterSpec = own("density", Kind::Share, Some(1.0));
const GAMMA: ParameterSpec = own("gamma", Kind::Share, Some(0.01));
const EPSILON: ParameterSpec = own("epsilon", Kind::Share, Some(0.15));
const LAMBDA: ParameterSpec = global("lambda", Kind::Number, 1.0);
/// Accepted because mergekit's recipes have it: how a mask is stored there, without effect on any value.
const INT8_MASK: ParameterSpec = global("int8_mask", Kind::Flag, 0.0);

/// Whether weighted task vectors vote, as in mergekit, or all alike, as in the paper on TIES.
const WEIGHTED_VOTE: ParameterSpec = global("weighted_vote", Kind::Flag, 1.0);
/// Whether the largest values of a whole model are kept, as in the paper on TIES, or of each tensor, as in mergekit.
const WHOLE_MODEL: ParameterSpec = global("trim_whole_model", Kind::Flag, 0.0);
/// Whether `rescale` divides by the probability to be kept, as in the papers on DARE and DELLA, or keeps the L1 norm.
const BY_DENSITY: ParameterSpec = global("rescale_by_density", Kind::Flag, 0.0);

const fn normalize(default: bool) -> ParameterSpec {
    global("normalize", Kind::Flag, if default { 1.0 } else { 0.0 })
}

const fn rescale(default: bool) -> ParameterSpec {
    global("rescale", Kind::Flag, if default { 1.0 } else { 0.0 })
}

const fn spec(
    name: &'static str,
    base: BaseRole,
    models: (usize, usize),
    parameters: &'static [ParameterSpec],
) -> MethodSpec {
    MethodSpec { name, base, models, parameters }
}

const MANY: usize = usize::MAX;

/// Every method.
pub(super) const METHODS: &[MethodSpec] = &[
    spec("linear", BaseRole::Donor, (1, MANY), &[WEIGHT, normalize(true)]),
    spec("slerp", BaseRole::First, (1, 1), &[T]),
    spec(
        "nuslerp",
        BaseRole::Optional,
        (2, 2),
        &[WEIGHT, global("nuslerp_flatten", Kind::Flag, 1.0), global("nuslerp_row_wise", Kind::Flag, 0.0)],
    ),
    spec(
        "multislerp",
        BaseRole::Optional,
        (2, MANY),
        &[WEIGHT, global("normalize_weights", Kind::Flag, 1.0), global("eps", Kind::Positive, 1e-8)],
    ),
    spec(
        "karcher",
        BaseRole::Donor,
        (2, MANY),
        &[global("max_iter", Kind::Count, 10.0), global("tol", Kind::Positive, 1e-5)],
    ),
    spec("passthrough", BaseRole::Donor, (1, 1), &[own("scale", Kind::Number, Some(1.0))]),
    spec("task_arithmetic", BaseRole::Required, (1, MANY), &[WEIGHT, LAMBDA, normalize(false), INT8_MASK]),
    spec(
        "ties",
        BaseRole::Required,
        (1, MANY),
        &[WEIGHT, DENSITY, LAMBDA, normalize(true), rescale(false), WEIGHTED_VOTE, WHOLE_MODEL, INT8_MASK],
    ),
    spec(
        "dare_linear",
        BaseRole::Required,
        (1, MANY),
        &[WEIGHT, DENSITY, LAMBDA, normalize(false), rescale(true), BY_DENSITY, INT8_MASK],
    ),
    spec(
        "dare_ties",
        BaseRole::Required,
        (1, MANY),
        &[WEIGHT, DENSITY, LAMBDA, normalize(false), rescale(true), WEIGHTED_VOTE, BY_DENSITY, INT8_MASK],
    ),
    spec(
        "breadcrumbs",
        BaseRole::Required,
        (1, MANY),
        &[WEIGHT, DENSITY, GAMMA, LAMBDA, normalize(false), rescale(false), INT8_MASK],
    ),
    spec(
        "breadcrumbs_ties",
        BaseRole::Required,
        (1, MANY),
        &[WEIGHT, DENSITY, GAMMA, LAMBDA, normalize(false), rescale(false), WEIGHTED_VOTE, INT8_MASK],
    ),
    spec(
        "della",
        BaseRole::Required,
        (1, MANY),
        &[WEIGHT, DENSITY, EPSILON, LAMBDA, normalize(true), rescale(true), WEIGHTED_VOTE, BY_DENSITY, INT8_MASK],
    ),
    spec(
        "della_linear",
        BaseRole::Required,
        (1, MANY),
        &[WEIGHT, DENSITY, EPSILON, LAMBDA, normalize(false), rescale(true), BY_DENSITY, INT8_MASK],
    ),
    spec("model_stock", BaseRole::Required, (2, MANY), &[global("filter_wise", Kind::Flag, 0.0)]),
    spec("arcee_fusion", BaseRole::Required, (1, 1), &[]),
    spec("nearswap", BaseRole::Required, (1, 1), &[T]),
    spec("ram", BaseRole::Required, (1, MANY), &[global("epsilon", Kind::Positive, 1e-5)]),
    spec(
        "ramplus_tl",
        BaseRole::Required,
        (1, MANY),
        &[
            global("epsilon", Kind::Positive, 1e-5),
            global("r", Kind::Number, 0.1),
            global("alpha", Kind::Positive, 0.2),
        ],
    ),
    spec("sce", BaseRole::Required, (1, MANY), &[global("select_topk", Kind::Share, 1.0), INT8_MASK]),
    // Its parameters are of another kind: see `learning.rs`.
    spec("dam", BaseRole::Donor, (1, MANY), &[]),
];

impl MethodSpec {
    /// The parameter of this name.
    pub fn parameter(&self, name: &str) -> Option<&'static ParameterSpec> {
        self.parameters.iter().find(|parameter| parameter.name == name)
    }

    /// The parameters' names.
    pub fn names(&self) -> Vec<&'static str> {
        self.parameters.iter().map(|parameter| parameter.name).collect()
    }

    /// Whether it learns coefficients before it merges.
    pub fn learns(&self) -> bool {
        self.name == "dam"
    }

    /// Whether the base takes part in the arithmetic without being listed.
    pub fn uses_base(&self) -> bool {
        self.base != BaseRole::Donor
    }

    /// The method for one tensor; `get` answers for the parameters that hold for all models.
    pub fn method(&self, get: impl Fn(&str) -> f64) -> Method {
        let flag = |name: &str| get(name) != 0.0;
        let task = |sparsify: Sparsify, consensus: bool| {
            let rescale = match sparsify {
                Sparsify::Bernoulli | Sparsify::Ranked if flag("rescale") && flag("rescale_by_density") => {
                    Rescale::Chance
                }
                Sparsify::Nothing => Rescale::Nothing,
                _ if flag("rescale") => Rescale::Norm,
                _ => Rescale::Nothing,
            };
            let vote = match consensus {
                true if flag("weighted_vote") => Vote::Weighted,
                true => Vote::Equal,
                false => Vote::Nothing,
            };
            let (normalize, lambda) = (flag("normalize"), get("lambda"));
            Method::Task(Task { sparsify, vote, normalize, rescale, lambda })
        };
        match self.name {
            "slerp" => Method::Slerp { t: get("t") },
            "nuslerp" => Method::NuSlerp { flatten: flag("nuslerp_flatten"), row_wise: flag("nuslerp_row_wise") },
            "multislerp" => Method::MultiSlerp { normalize_weights: flag("normalize_weights"), eps: get("eps") },
            "karcher" => Method::Karcher { max_iter: get("max_iter") as usize, tol: get("tol") },
            "passthrough" => Method::Passthrough,
            "task_arithmetic" => task(Sparsify::Nothing, false),
            "ties" if flag("trim_whole_model") => task(Sparsify::OfModel, true),
            "ties" => task(Sparsify::Magnitude, true),
            "dare_linear" => task(Sparsify::Bernoulli, false),
            "dare_ties" => task(Sparsify::Bernoulli, true),
            "breadcrumbs" => task(Sparsify::Outliers, false),
            "breadcrumbs_ties" => task(Sparsify::Outliers, true),
            "della" => task(Sparsify::Ranked, true),
            "della_linear" => task(Sparsify::Ranked, false),
            "model_stock" => Method::ModelStock { filter_wise: flag("filter_wise") },
            "arcee_fusion" => Method::ArceeFusion,
            "nearswap" => Method::NearSwap { t: get("t") },
            "ram" => Method::Ram { epsilon: get("epsilon"), plus: None },
            "ramplus_tl" => Method::Ram { epsilon: get("epsilon"), plus: Some((get("r"), get("alpha"))) },
            "sce" => Method::Sce { select_topk: get("select_topk") },
            // What coefficients are not learned for is averaged.
            "dam" => Method::Linear { normalize: true },
            _ => Method::Linear { normalize: flag("normalize") },
        }
    }

    /// What the method knows of one model; `get` answers for the parameters that each model has.
    pub fn per_model(&self, get: impl Fn(&str) -> f64) -> PerModel {
        let or = |name: &str, default: f64| {
            let own = self.parameter(name).is_some_and(|parameter| parameter.per_model);
            if own { get(name) } else { default }
        };
        let default = PerModel::default();
        PerModel {
            weight: or("weight", default.weight),
            density: or("density", default.density),
            gamma: or("gamma", default.gamma),
            epsilon: or("epsilon", default.epsilon),
            scale: or("scale", default.scale),
            // Found out from the tensors.
            threshold: default.threshold,
        }
    }
}
