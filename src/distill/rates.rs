//! Learning rates that differ between parameters.

use super::recipe::TrainingArgs;
use super::trained::{Pattern, is_embedding, matching, no_match};
use crate::Error;
use crate::nn::ParamSpec;
use std::collections::BTreeMap;

/// The factor of the learning rate of each of `params` where it is not 1: `layerwise_lr_decay` to the power of how far
/// below the head a parameter is (final norm and head 0, block l of L: L - l, embeddings L + 1), times that of the
/// first of `lr_multipliers` that matches anywhere in its name. A pattern that matches nothing joins `problems`.
pub(super) fn resolve(
    args: &TrainingArgs,
    params: &[ParamSpec],
    layers: usize,
    problems: &mut Vec<Error>,
) -> BTreeMap<String, f64> {
    const KEY: &str = "training_args.lr_multipliers";
    let names: Vec<String> = params.iter().map(|p| p.name.clone()).collect();
    let mut rates = BTreeMap::new();
    for (text, factor) in &args.lr_multipliers {
        match Pattern::anywhere(KEY, text).and_then(|pattern| matching(&names, &pattern)) {
            Ok(found) if found.is_empty() => problems.push(no_match(KEY, text, &names)),
            // The first that matches stays.
            Ok(found) => found.into_iter().for_each(|name| _ = rates.entry(name).or_insert(*factor)),
            Err(error) => problems.push(error),
        }
    }
    for name in names {
        let below = match layer_of(&name) {
            Some(layer) => layers.saturating_sub(layer),
            None if is_embedding(&name) => layers + 1,
            None => 0,
        };
        *rates.entry(name).or_insert(1.0) *= args.layerwise_lr_decay.powi(below as i32);
    }
    rates.retain(|_, rate| *rate != 1.0);
    rates
}

/// The number of the block a parameter belongs to: the first part of its name that is a number.
pub(super) fn layer_of(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_fall_towards_the_embeddings_and_the_first_pattern_counts() {
        let names = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.2.a.weight"];
        let names = names.into_iter().chain(["model.norm.weight", "lm_head.weight"]);
        let spec = |name: &str| ParamSpec { name: name.into(), shape: [1].into() };
        let params: Vec<ParamSpec> = names.map(spec).collect();
        let text =
            "{ output_path: o, sequence_length: 8, model: m, dataset: { train: t }, training_args: { max_steps: 1 } }";
        let plain = crate::distill::Recipe::parse(text, std::path::Path::new("r")).unwrap();
        let of = |decay: f64, multipliers: &[(&str, f64)]| {
            let args = TrainingArgs {
                layerwise_lr_decay: decay,
                lr_multipliers: multipliers.iter().map(|(p, f)| (p.to_string(), *f)).collect(),
                ..plain.training_args.clone()
            };
            let mut problems = Vec::new();
            let rates = resolve(&args, &params, 3, &mut problems);
            problems.pop().map_or(Ok(rates), Err)
        };
        assert!(of(1.0, &[]).unwrap().is_empty());
        let rates = of(0.5, &[]).unwrap();
        let found: Vec<f64> = params.iter().map(|p| rates.get(&p.name).copied().unwrap_or(1.0)).collect();
        assert_eq!(found, [1.0 / 16.0, 1.0 / 8.0, 0.5, 1.0, 1.0]);
        let rates = of(0.5, &[("mlp", 2.0), ("layers", 10.0)]).unwrap();
        assert_eq!([rates["model.layers.0.mlp.up_proj.weight"], rates["model.layers.2.a.weight"]], [0.25, 5.0]);
        let error = of(1.0, &[("norm", 2.0), ("attn", 3.0)]).unwrap_err().to_string();
        assert!(error.contains("lr_multipliers") && error.contains("\"attn\""), "{error}");
    }
}
