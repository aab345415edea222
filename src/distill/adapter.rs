//! A student's adapters: which layers get one, their first values, their place in the weights at the end.

use super::rates::layer_of;
use super::recipe::{LoraArgs, Targets};
use super::trained::{HEAD, Pattern, Trained, is_embedding, is_inside, key, matching, token_table, unknown_module};
use crate::formats::{Adapter, AdapterConfig, Dtype, TensorSpec, write_adapter};
use crate::graph::Store;
use crate::models::Decoder;
use crate::nn::{Lora, LoraNames, ParamSpec};
use crate::platform::parallel::*;
use crate::random::SplitMix64;
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The adapters a recipe asks for on `decoder`, and the names of the parameters that are trained whole beside them.
/// What of the model does not fit a key of `lora` joins `problems`.
pub(super) fn resolve(args: &LoraArgs, decoder: &Decoder, problems: &mut Vec<Error>) -> (Lora, BTreeSet<String>) {
    let params = decoder.parameters();
    let names: Vec<String> = params.iter().map(|p| p.name.clone()).collect();
    let before = problems.len();
    let layers = decoder.config.num_hidden_layers;
    if let Some(layer) = args.layers_to_transform.iter().flatten().find(|layer| **layer >= layers) {
        let expected = format!("layers from 0 to {}", layers.saturating_sub(1));
        let complaint = key("lora.layers_to_transform").expected(expected);
        problems.push(complaint.found(layer).help("number layers from 0").error());
    }
    let saved = saved_whole(args, decoder, &names, problems);
    let chosen = targets(args, &params, problems);
    let own = |module: &str| !saved.iter().any(|name| is_inside(name, module));
    let modules: BTreeMap<_, _> = chosen.into_iter().filter(|(module, _)| own(module)).collect();
    if modules.is_empty() && problems.len() == before {
        let complaint = key("lora.target_modules").expected("linear layers to adapt").found("none that fits");
        let help = "name layers such as `[q_proj, v_proj]`, or `all-linear`; a single text is a regular expression";
        problems.push(complaint.help(help).error());
    }
    let rank = args.r;
    let small: Vec<_> = modules.iter().filter(|(_, shape)| shape.iter().any(|n| *n < rank)).collect();
    if let Some((module, [out, inner])) = small.first() {
        let least = small.iter().flat_map(|(_, shape)| shape.iter()).min().copied().unwrap_or(1);
        let complaint = key("lora.r").expected(format!("a rank of at most {least}, the narrowest adapted layer's"));
        let found = format!("{rank}, but `{module}` is [{out}, {inner}] ({} such layers)", small.len());
        let help = "lower `r`, or leave the layer out of `target_modules`";
        problems.push(complaint.found(found).help(help).error());
    }
    let root = if args.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
    (Lora { modules, rank, scale: args.lora_alpha / root, dora: args.use_dora }, saved)
}

/// The linear layers that `target_modules` and `layers_to_transform` name.
fn targets(args: &LoraArgs, params: &[ParamSpec], problems: &mut Vec<Error>) -> Vec<(String, [usize; 2])> {
    let all: Vec<_> = linear_modules(params).collect();
    let mut chosen = match &args.target_modules {
        Targets::AllLinear => all,
        Targets::Names(targets) => {
            for target in targets.iter().filter(|target| !all.iter().any(|(module, _)| is_named(module, target))) {
                let names: Vec<String> = params.iter().map(|p| p.name.clone()).collect();
                problems.push(unknown_module("lora.target_modules", target, &names));
            }
            all.into_iter().filter(|(module, _)| targets.iter().any(|target| is_named(module, target))).collect()
        }
        Targets::Pattern(text) => {
            let modules = all.iter().map(|(module, _)| module.clone()).collect::<Vec<_>>();
            let pattern = Pattern::whole("lora.target_modules", text);
            match pattern.and_then(|pattern| matching(&modules, &pattern)) {
                Ok(found) => all.into_iter().filter(|(module, _)| found.contains(module)).collect(),
                Err(error) => {
                    problems.push(error);
                    Vec::new()
                }
            }
        }
    };
    if let Some(layers) = &args.layers_to_transform {
        chosen.retain(|(module, _)| layer_of(module).is_some_and(|layer| layers.contains(&layer)));
    }
    chosen
}

/// The linear layers of a model, but for its head: names and shapes [out, in].
fn linear_modules(params: &[ParamSpec]) -> impl Iterator<Item = (String, [usize; 2])> {
    params.iter().filter_map(|p| match p.shape[..] {
        [out, inner] if !is_embedding(&p.name) && p.name != HEAD => {
            Some((p.name.strip_suffix(".weight")?.to_owned(), [out, inner]))
        }
        _ => None,
    })
}

/// PEFT's rule for names in a list: the whole name, or its last parts.
fn is_named(module: &str, target: &str) -> bool {
    module == target || module.strip_suffix(target).is_some_and(|rest| rest.ends_with('.'))
}

/// The parameters of `modules_to_save`.
fn saved_whole(args: &LoraArgs, decoder: &Decoder, names: &[String], problems: &mut Vec<Error>) -> BTreeSet<String> {
    let module = |name: &str| name.rsplit_once('.').map_or(name, |(module, _)| module).to_owned();
    let mut saved = BTreeSet::new();
    for wanted in &args.modules_to_save {
        let found: Vec<&String> = names.iter().filter(|name| is_named(&module(name), wanted)).collect();
        let shared = [token_table(decoder), HEAD.to_owned()].iter().any(|name| is_named(&module(name), wanted));
        if decoder.config.tie_word_embeddings && shared {
            let complaint = key("lora.modules_to_save").expected("modules whose weights are not shared");
            let complaint = complaint.found(format!("`{wanted}`, which in this model is embedding and head at once"));
            let help = "an adapter can only save one of the two: train all parameters, or leave it out";
            problems.push(complaint.help(help).error());
        } else if found.is_empty() {
            problems.push(unknown_module("lora.modules_to_save", wanted, names));
        }
        saved.extend(found.into_iter().cloned());
    }
    saved
}

/// Writes the adapters' first values: A uniform within 1 / sqrt(in) (Kaiming with a = sqrt(5), as PEFT), B zero, the
/// magnitudes the norms of the weights' rows. The network's parameters are in the store already.
pub async fn initialise(lora: &Lora, store: &Store, seed: u64) -> Result<()> {
    let mut random = SplitMix64::new(seed);
    for (module, [out, inner]) in &lora.modules {
        let names = LoraNames::of(module);
        let bound = 1.0 / (*inner as f64).sqrt();
        let a: Vec<f32> = (0..lora.rank * inner).map(|_| (bound * (2.0 * random.uniform() - 1.0)) as f32).collect();
        store.write(&names.a, &a)?;
        store.write(&names.b, &vec![0f32; out * lora.rank])?;
        if lora.dora {
            let weight = store.read_f32(&format!("{module}.weight")).await?;
            let norms: Vec<f32> = weight.chunks(*inner).map(|row| norm(row) as f32).collect();
            store.write(&names.magnitude, &norms)?;
        }
    }
    Ok(())
}

fn norm(row: &[f32]) -> f64 {
    row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// Puts the adapters into the weights they adapt: W + s B A, of DoRA with each row scaled to its magnitude.
pub async fn merge(lora: &Lora, store: &Store) -> Result<()> {
    for (module, [_, inner]) in &lora.modules {
        let names = LoraNames::of(module);
        let weight = format!("{module}.weight");
        let magnitude = if lora.dora { Some(store.read_f32(&names.magnitude).await?) } else { None };
        let (a, b) = (store.read_f32(&names.a).await?, store.read_f32(&names.b).await?);
        let mut values = store.read_f32(&weight).await?;
        merge_into(&mut values, *inner, [&a, &b], magnitude.as_deref(), lora.scale);
        store.write(&weight, &values)?;
    }
    Ok(())
}

/// [`merge`] of one weight [out, inner] with A [r, inner] and B [out, r].
fn merge_into(weight: &mut [f32], inner: usize, [a, b]: [&[f32]; 2], magnitude: Option<&[f32]>, scale: f64) {
    let rank = a.len() / inner;
    weight.par_chunks_mut(inner).enumerate().for_each(|(o, row)| {
        let mut sums: Vec<f64> = row.iter().map(|w| f64::from(*w)).collect();
        for (a, b) in a.chunks(inner).zip(&b[o * rank..]) {
            let factor = scale * f64::from(*b);
            sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += factor * f64::from(*a));
        }
        let length = sums.iter().map(|x| x * x).sum::<f64>().sqrt();
        let factor = magnitude.map_or(1.0, |m| f64::from(m[o]) / length.max(1e-15));
        row.iter_mut().zip(sums).for_each(|(w, sum)| *w = (factor * sum) as f32);
    });
}

/// Writes what was trained as an adapter that PEFT reads. `base` is the model it belongs to, if that has a name.
pub async fn save(
    folder: &Path,
    args: &LoraArgs,
    trained: &Trained,
    decoder: &Decoder,
    store: &Store,
    base: Option<&str>,
) -> Result<()> {
    let module = |name: &str| name.rsplit_once('.').map_or(name, |(module, _)| module).to_owned();
    let params = trained.parameters(decoder);
    let whole = decoder.parameters().into_iter().filter(|p| trained.includes(&p.name));
    let whole: BTreeSet<String> = whole.map(|p| module(&p.name)).collect();
    let ensure_weight_tying = decoder.config.tie_word_embeddings && whole.contains(decoder.config.names.embedding);
    let config = AdapterConfig {
        ensure_weight_tying,
        base_model_name_or_path: base.map(str::to_owned),
        r: args.r,
        lora_alpha: args.lora_alpha,
        target_modules: trained.lora.iter().flat_map(|lora| lora.modules.keys().cloned()).collect(),
        modules_to_save: whole.into_iter().collect(),
        use_dora: args.use_dora,
        use_rslora: args.use_rslora,
        fan_in_fan_out: decoder.config.conv1d,
    };
    // Adapters' matrices lie in the file as they do in memory, whole parameters as the model's checkpoints have them.
    let stored = |p: &ParamSpec| if trained.adapts(&p.name) { p.shape } else { decoder.stored_shape(p) };
    let array = |p: &ParamSpec| TensorSpec { name: p.name.clone(), dtype: Dtype::F32, shape: stored(p).to_vec() };
    let arrays: Vec<TensorSpec> = params.iter().map(array).collect();
    write_adapter(folder, &config, &arrays, async |name| {
        let values = store.read_f32(name).await?;
        Ok(match params.iter().find(|p| p.name == name && !trained.adapts(name)) {
            Some(whole) => decoder.stored_values(whole, values),
            None => values,
        })
    })
    .await
}

/// Puts a stored adapter into the parameters in `store` (under `prefix`) that it was made for.
///
/// Errors name what does not fit the model, before anything is changed.
pub async fn apply(adapter: &Adapter, decoder: &Decoder, store: &Store, prefix: &str) -> Result<()> {
    let (modules, whole) = adapter.contents()?;
    let params: BTreeMap<String, ParamSpec> = decoder.parameters().into_iter().map(|p| (p.name.clone(), p)).collect();
    let unknown = |name: &str| {
        let near = Error::nearest(name, params.keys().map(String::as_str));
        let help =
            near.map_or("take the model the adapter was made for".to_owned(), |near| format!("nearest: `{near}`"));
        Error::file(adapter.path())
            .field(format!("`{name}`"))
            .expected("a parameter of the model")
            .found("none")
            .help(help)
    };
    let tensors = &adapter.tensors;
    let rank = adapter.config.r;
    let mut adapted = Vec::new();
    for module in &modules {
        let weight = format!("{module}.weight");
        let shape = params.get(&weight).map(|p| p.shape).ok_or_else(|| unknown(&weight).error())?;
        let [out, inner] = shape[..] else { return unknown(&weight).expected("a matrix").found("none").err() };
        let names = LoraNames::of(module);
        tensors.expect_shape(&Adapter::stored(&names.a), &[rank, inner])?;
        tensors.expect_shape(&Adapter::stored(&names.b), &[out, rank])?;
        if adapter.config.use_dora {
            tensors.expect_shape(&Adapter::stored(&names.magnitude), &[out])?;
        }
        adapted.push((weight, inner, names));
    }
    for name in &whole {
        let spec = params.get(name).ok_or_else(|| unknown(name).error())?;
        tensors.expect_shape(&Adapter::stored(name), &decoder.stored_shape(spec))?;
    }
    for (weight, inner, names) in adapted {
        let read = |name: &str| tensors.read_f32(&Adapter::stored(name));
        let magnitude = if adapter.config.use_dora { Some(read(&names.magnitude)?) } else { None };
        let place = format!("{prefix}{weight}");
        let mut values = store.read_f32(&place).await?;
        merge_into(
            &mut values,
            inner,
            [&read(&names.a)?, &read(&names.b)?],
            magnitude.as_deref(),
            adapter.config.scale(),
        );
        store.write(&place, &values)?;
    }
    for spec in whole.iter().filter_map(|name| params.get(name)) {
        // Turned back as it was turned for the file: a second transposition is the first's inverse.
        let turned = ParamSpec { shape: decoder.stored_shape(spec), ..spec.clone() };
        let values = decoder.stored_values(&turned, tensors.read_f32(&Adapter::stored(&spec.name))?);
        store.write(&format!("{prefix}{}", spec.name), &values)?;
    }
    Ok(())
}
