//! Parameters into a store: from a checkpoint (all layers or chosen ones) or at random.

use super::Decoder;
use crate::formats::Tensors;
use crate::graph::{DType, Shape, Store};
use crate::nn::{Norm, ParamSpec};
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

    /// The configuration of the smaller model; `source` is that of [`super::DecoderConfig::source`].
    pub fn config(&self, source: &Value) -> Value {
        let mut config = source.clone();
        let layers = if source.get("n_layer").is_some() { "n_layer" } else { "num_hidden_layers" };
        config[layers] = json!(self.0.len());
        if let Some(types) = source.get("layer_types").and_then(Value::as_array) {
            let chosen: Vec<_> = self.0.iter().filter_map(|&layer| types.get(layer).cloned()).collect();
            config["layer_types"] = json!(chosen);
        }
        config
    }

    /// The source's name of the student's parameter `name`, in a family whose block numbers follow `layers`.
    fn source_name(&self, layers: &str, name: &str) -> String {
        let within = name.strip_prefix(layers).and_then(|rest| rest.strip_prefix('.'));
        let parts = within.and_then(|rest| rest.split_once('.'));
        match parts.and_then(|(layer, rest)| Some((self.0.get(layer.parse::<usize>().ok()?)?, rest))) {
            Some((layer, rest)) => format!("{layers}.{layer}.{rest}"),
            None => name.to_owned(),
        }
    }
}

/// How the matrices of a model that is not trained lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FrozenWeights {
    /// As the file stores them, decoded inside the products: the same values in the file's size.
    #[default]
    Stored,
    /// Decoded once, when they are loaded.
    F32,
}

impl Decoder {
    /// Gives every parameter memory in `store` under `prefix` as two arenas, `PREFIXdecay` for matrices (which
    /// weight decay shrinks) and `PREFIXplain` for vectors, and writes the rotary tables for `positions`.
    /// Returns the pages of both. Matrices that stay as they are stored have memory of their own.
    pub fn allocate(&self, store: &mut Store, prefix: &str, positions: usize) -> Result<[Vec<String>; 2]> {
        let [mut matrices, vectors] = self.groups(prefix);
        matrices.retain(|(name, _)| !self.packed.contains_key(&name[prefix.len()..]));
        for spec in self.parameters().iter().filter(|spec| self.packed.contains_key(&spec.name)) {
            store.add(&format!("{prefix}{}", spec.name), spec.shape, self.dtype(&spec.name))?;
        }
        let pages =
            [store.arena(&format!("{prefix}decay"), &matrices)?, store.arena(&format!("{prefix}plain"), &vectors)?];
        self.allocate_rope(store, prefix, positions)?;
        Ok(pages)
    }

    /// Gives the rotary tables for `positions` memory in `store`, and writes them.
    pub fn allocate_rope(&self, store: &mut Store, prefix: &str, positions: usize) -> Result<()> {
        for (name, rope) in self.rope_tables(prefix).zip(&self.config.ropes) {
            store.add(&name, [positions, rope.dims], DType::F32)?;
            store.write(&name, &rope.table(positions))?;
        }
        Ok(())
    }

    /// Bytes of the rotary tables for `positions`.
    pub fn rope_bytes(&self, positions: usize) -> u64 {
        4 * self.config.ropes.iter().map(|rope| (positions * rope.dims) as u64).sum::<u64>()
    }

    /// A parameter's shape in checkpoints, which hold some families' matrices transposed.
    pub fn stored_shape(&self, spec: &ParamSpec) -> Shape {
        if self.transposed(spec) { [spec.shape[1], spec.shape[0]].into() } else { spec.shape }
    }

    /// A parameter's values as checkpoints hold them, from those in memory.
    pub fn stored_values(&self, spec: &ParamSpec, values: Vec<f32>) -> Vec<f32> {
        if self.transposed(spec) { transpose(&values, spec.shape[1]) } else { values }
    }

    /// A parameter's values in memory, from those that checkpoints hold.
    pub fn values_in_memory(&self, spec: &ParamSpec, stored: Vec<f32>) -> Vec<f32> {
        if self.transposed(spec) { transpose(&stored, spec.shape[0]) } else { stored }
    }

    /// Whether checkpoints hold a parameter transposed.
    pub fn transposed(&self, spec: &ParamSpec) -> bool {
        self.config.conv1d && spec.shape.len() == 2 && spec.name.starts_with(self.config.names.layers)
    }

    /// The name under which a checkpoint holds `name`: without the base model's prefix where the file was saved from
    /// there, as GPT-2's was.
    fn name_in(&self, tensors: &Tensors, name: String) -> String {
        let base =
            self.config.names.layers.split_once('.').and_then(|(base, _)| name.strip_prefix(base)?.strip_prefix('.'));
        match base.filter(|base| !tensors.contains(&name) && tensors.contains(base)) {
            Some(base) => base.to_owned(),
            None => name,
        }
    }

    /// The same model, which is not to be trained, with its matrices in memory as `weights` says: as `tensors` stores
    /// them, wherever their type and shape allow ([`Dtype::packs`](crate::formats::Dtype::packs)). Its parameters in
    /// graphs are then those of [`Decoder::frozen`].
    pub fn with_frozen(mut self, weights: FrozenWeights, tensors: &Tensors) -> Result<Decoder> {
        let specs = if weights == FrozenWeights::Stored { self.parameters() } else { Vec::new() };
        for spec in specs {
            if spec.shape.len() != 2 || self.transposed(&spec) {
                continue;
            }
            let stored = tensors.dtype(&self.name_in(tensors, spec.name.clone()))?;
            if stored.packs(spec.shape.cols()) {
                self.packed.insert(spec.name, stored);
            }
        }
        Ok(self)
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
    let source_name = |name: &str| {
        let name = layers.map_or(name.to_owned(), |map| map.source_name(decoder.config.names.layers, name));
        decoder.name_in(tensors, name)
    };
    let specs = decoder.parameters();
    for spec in &specs {
        tensors.expect_shape(&source_name(&spec.name), &decoder.stored_shape(spec))?;
    }
    for spec in &specs {
        load_parameter(decoder, store, &format!("{prefix}{}", spec.name), tensors, &source_name(&spec.name), spec)?;
        // Of the file nothing is needed twice.
        tensors.release();
    }
    Ok(())
}

/// Words of a packed matrix that are read and written at a time: 4 MiB.
const PIECE: usize = 1 << 20;

/// Reads one of a decoder's parameters, `name` of a checkpoint, into `place`. Its shape has been checked.
pub fn load_parameter(
    decoder: &Decoder,
    store: &Store,
    place: &str,
    tensors: &Tensors,
    name: &str,
    spec: &ParamSpec,
) -> Result<()> {
    let check = |values: &[f32], first: usize| match not_finite(values) {
        None => Ok(()),
        Some((at, found)) => {
            let complaint = Error::file(tensors.file(name)?).field(format!("tensor `{name}`"));
            let complaint = complaint.expected("finite numbers").found(format!("{found} at value {}", first + at));
            complaint.help("the weights are damaged: fetch or train them again").err()
        }
    };
    let Some(stored) = decoder.packed.get(&spec.name) else {
        let values = tensors.read_f32(name)?;
        check(&values, 0)?;
        return store.write(place, &decoder.values_in_memory(spec, values));
    };
    let (rows, cols) = (spec.shape.rows(), spec.shape.cols());
    let row_words = stored.packed_words(cols);
    let most = (PIECE / row_words).clamp(1, rows);
    let (mut words, mut values) = (vec![0; most * row_words], vec![0.0; cols]);
    for first in (0..rows).step_by(most) {
        let count = most.min(rows - first);
        let words = &mut words[..count * row_words];
        tensors.read_packed(name, first..first + count, words)?;
        for (row, words) in (first..).zip(words.chunks_exact(row_words)) {
            stored.unpack(words, &mut values);
            check(&values, row * cols)?;
        }
        store.write_words(place, first * row_words, words)?;
    }
    Ok(())
}

/// The transpose of a matrix of `cols` columns.
fn transpose(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols.max(1);
    (0..values.len()).map(|i| values[i % rows * cols + i / rows]).collect()
}

/// The first value that is not finite, and where.
fn not_finite(values: &[f32]) -> Option<(usize, f32)> {
    values.iter().position(|x| !x.is_finite()).map(|at| (at, values[at]))
}

/// Random parameters as transformers initialises them: matrices normal with `initializer_range` (0.02 if the
/// config has none; GPT-2's on the residual stream smaller, by the square root of their number), norms as they leave
/// their input, biases zero. The same seed gives the same weights on every machine.
pub fn random_parameters(decoder: &Decoder, store: &Store, prefix: &str, seed: u64) -> Result<()> {
    let c = &decoder.config;
    let range = c.source.get("initializer_range").and_then(Value::as_f64).unwrap_or(0.02);
    let residual = [c.names.out, c.names.down].map(|name| format!(".{name}.weight"));
    let shrunk = |name: &str| c.conv1d && residual.iter().any(|end| name.ends_with(end));
    let neutral = if let Norm::RmsPlusOne(_) = c.norm { 0.0 } else { 1.0 };
    let mut random = SplitMix64::new(seed);
    for spec in decoder.parameters() {
        let values: Vec<f32> = match spec.shape.len() {
            1 if spec.name.ends_with(".bias") => vec![0.0; spec.shape.numel()],
            1 => vec![neutral; spec.shape.numel()],
            _ => {
                let parts = if shrunk(&spec.name) { 2.0 * c.num_hidden_layers as f64 } else { 1.0 };
                let range = range / parts.sqrt();
                (0..spec.shape.numel()).map(|_| (random.normal() * range) as f32).collect()
            }
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
        let name = |name: &str| map.source_name("model.layers", name);
        assert_eq!(name("model.layers.1.mlp.up_proj.weight"), "model.layers.5.mlp.up_proj.weight");
        assert_eq!(name("model.norm.weight"), "model.norm.weight");
        assert_eq!(map.source_name("transformer.h", "transformer.h.2.ln_1.bias"), "transformer.h.29.ln_1.bias");
        assert_eq!(map.config(&json!({"num_hidden_layers": 30})), json!({"num_hidden_layers": 3}));
        assert_eq!(map.config(&json!({"n_layer": 30})), json!({"n_layer": 3}));
        assert!(LayerMap::new(&[0, 30], 30).is_err() && LayerMap::new(&[3, 3], 30).is_err());
    }
}
