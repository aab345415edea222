//! Parameters into a store: from a checkpoint (all layers or chosen ones) or at random.

use super::Decoder;
use super::decoder::ROPE_TABLE;
use crate::formats::Tensors;
use crate::graph::{DType, Shape, Store};
use crate::nn::ParamSpec;
use crate::random::SplitMix64;
use crate::{Error, Result};
use serde_json::{Value, json};

/// Which layers of a source model become the layers of a smaller one: layer `i` of the student is layer `0[i]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerMap(Vec<usize>);

impl LayerMap {
    /// Chosen layers of a model with `of` layers; they must rise.
    pub fn new(layers: &[usize], of: usize) -> Result<LayerMap> {
        let rising = layers.windows(2).all(|pair| pair[0] < pair[1]);
        if layers.is_empty() || !rising || layers.iter().any(|&layer| layer >= of) {
            return Error::at("`model.layers`")
                .expected(format!("rising layer numbers from 0 to {}", of.saturating_sub(1)))
                .found(format!("{layers:?}"))
                .help("number layers from 0, each once")
                .err();
        }
        Ok(LayerMap(layers.to_vec()))
    }

    /// The configuration of the smaller model.
    pub fn config(&self, source: &Value) -> Value {
        let mut config = source.clone();
        config["num_hidden_layers"] = json!(self.0.len());
        if let Some(types) = source.get("layer_types").and_then(Value::as_array) {
            let chosen: Vec<_> = self.0.iter().filter_map(|&layer| types.get(layer).cloned()).collect();
            config["layer_types"] = json!(chosen);
        }
        config
    }

    /// The source's name of the student's parameter `name`.
    fn source_name(&self, name: &str) -> String {
        let parts = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        match parts.and_then(|(layer, rest)| Some((self.0.get(layer.parse::<usize>().ok()?)?, rest))) {
            Some((layer, rest)) => format!("model.layers.{layer}.{rest}"),
            None => name.to_owned(),
        }
    }
}

impl Decoder {
    /// Gives every parameter memory in `store` under `prefix` as two arenas, `PREFIXdecay` for matrices (which
    /// weight decay shrinks) and `PREFIXplain` for vectors, and writes the rotary table for `positions`.
    /// Returns the pages of both.
    pub fn allocate(&self, store: &mut Store, prefix: &str, positions: usize) -> Result<[Vec<String>; 2]> {
        let [matrices, vectors] = self.groups(prefix);
        let pages =
            [store.arena(&format!("{prefix}decay"), &matrices)?, store.arena(&format!("{prefix}plain"), &vectors)?];
        self.allocate_tables(store, prefix, positions)?;
        Ok(pages)
    }

    /// Gives what is no parameter memory in `store` under `prefix`, and writes it: the rotary table for `positions`.
    pub fn allocate_tables(&self, store: &mut Store, prefix: &str, positions: usize) -> Result<()> {
        let rope = &self.config.rope;
        let name = format!("{prefix}{ROPE_TABLE}");
        store.add(&name, [positions, rope.dims], DType::F32)?;
        store.write(&name, &rope.table(positions))
    }

    /// Parameters with at least two dimensions, then the others, named with `prefix`.
    pub fn groups(&self, prefix: &str) -> [Vec<(String, Shape)>; 2] {
        let named = |p: ParamSpec| (format!("{prefix}{}", p.name), p.shape);
        let (matrices, vectors) = self.parameters().into_iter().map(named).partition(|(_, shape)| shape.len() >= 2);
        [matrices, vectors]
    }
}

/// Reads a decoder's parameters from a checkpoint, through `layers` if given, into `store` under `prefix`. Every
/// shape is checked before anything is read.
pub fn load_parameters(
    decoder: &Decoder,
    store: &Store,
    prefix: &str,
    tensors: &Tensors,
    layers: Option<&LayerMap>,
) -> Result<()> {
    let source_name = |name: &str| layers.map_or(name.to_owned(), |map| map.source_name(name));
    let specs = decoder.parameters();
    for spec in &specs {
        tensors.expect_shape(&source_name(&spec.name), &spec.shape)?;
    }
    let mut values = Vec::new();
    for spec in &specs {
        values.resize(spec.shape.numel(), 0.0);
        let name = source_name(&spec.name);
        tensors.read_f32_into(&name, &mut values)?;
        if let Some((at, found)) = not_finite(&values) {
            let complaint = Error::file(tensors.file(&name)?).field(format!("tensor `{name}`"));
            let complaint = complaint.expected("finite numbers").found(format!("{found} at value {at}"));
            return complaint.help("the weights are damaged: fetch or train them again").err();
        }
        store.write(&format!("{prefix}{}", spec.name), &values)?;
    }
    Ok(())
}

/// The first value that is not finite, and where.
fn not_finite(values: &[f32]) -> Option<(usize, f32)> {
    values.iter().position(|x| !x.is_finite()).map(|at| (at, values[at]))
}

/// Random parameters as transformers initialises them: matrices normal with `initializer_range` (0.02 if the
/// config has none), norms one, biases zero. The same seed gives the same weights on every machine.
pub fn random_parameters(decoder: &Decoder, store: &Store, prefix: &str, seed: u64) -> Result<()> {
    let range = decoder.config.source.get("initializer_range").and_then(Value::as_f64).unwrap_or(0.02);
    let mut random = SplitMix64::new(seed);
    for spec in decoder.parameters() {
        let values: Vec<f32> = match spec.shape.len() {
            1 if spec.name.ends_with(".bias") => vec![0.0; spec.shape.numel()],
            1 => vec![1.0; spec.shape.numel()],
            _ => (0..spec.shape.numel()).map(|_| (random.normal() * range) as f32).collect(),
        };
        store.write(&format!("{prefix}{}", spec.name), &values)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_layers_are_renamed_and_checked() {
        let map = LayerMap::new(&[0, 5, 29], 30).unwrap();
        assert_eq!(map.source_name("model.layers.1.mlp.up_proj.weight"), "model.layers.5.mlp.up_proj.weight");
        assert_eq!(map.source_name("model.norm.weight"), "model.norm.weight");
        assert_eq!(map.config(&json!({"num_hidden_layers": 30}))["num_hidden_layers"], 3);
        assert!(LayerMap::new(&[0, 30], 30).is_err() && LayerMap::new(&[3, 3], 30).is_err());
    }
}
