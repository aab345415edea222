//! A model to merge: its tensors by the names that all checkpoints of its family share, its adapter applied.

use super::config::Reference;
use super::lora::{Lora, Patch};
use super::names::{canonical, is_buffer, is_head, is_token_table, layer};
use crate::formats::{ModelFolder, hub};
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// An opened model.
#[derive(Debug)]
pub(super) struct Model {
    pub reference: Reference,
    pub folder: ModelFolder,
    pub lora: Option<Lora>,
    /// Stored names by canonical ones.
    stored: BTreeMap<String, String>,
    /// The prefix that its names have and canonical ones lack.
    root: &'static str,
}

impl Model {
    /// Opens the model; `places` as of [`super::Plan::new`].
    pub fn open(reference: &Reference, places: &BTreeMap<String, PathBuf>) -> Result<Model> {
        let path = match places.get(&reference.model) {
            Some(path) => path.clone(),
            None => hub::resolve(&reference.model)?,
        };
        let folder = ModelFolder::open(&path)?;
        let (mut stored, mut root) = (BTreeMap::new(), "");
        for name in folder.tensors.names().filter(|name| !is_buffer(name)) {
            let (own, short) = canonical(name);
            // Two names that differ in the prefix alone are two tensors.
            let taken = stored.contains_key(short);
            stored.insert(if taken { name } else { short }.to_string(), name.to_string());
            if layer(short).is_some() {
                root = own;
            }
        }
        let lora = match &reference.lora {
            Some(lora) => {
                let place = places.get(&format!("+{lora}"));
                Some(Lora::open(place.map_or(Path::new(lora), PathBuf::as_path), &folder.tensors)?)
            }
            None => None,
        };
        Ok(Model { reference: reference.clone(), folder, lora, stored, root })
    }

    /// Canonical names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.stored.keys().map(String::as_str)
    }

    /// The stored name of the tensor called `name` here.
    pub fn stored(&self, name: &str) -> Option<&str> {
        self.stored.get(name).map(String::as_str)
    }

    /// The stored name of the tensor, or for a head that the model ties, of the table it is tied to.
    pub fn stored_or_tied(&self, name: &str) -> Option<&str> {
        self.stored(name).or_else(|| {
            let table = is_head(name).then(|| self.stored.keys().find(|name| is_token_table(name)))?;
            self.stored(table?)
        })
    }

    /// The name that a tensor has in a checkpoint written like this one.
    pub fn written(&self, name: &str) -> String {
        match self.stored(name) {
            Some(stored) => stored.to_string(),
            None if layer(name).is_some() => format!("{}{name}", self.root),
            None => name.to_string(),
        }
    }

    /// The stacks of layers, each with how many it has.
    pub fn stacks(&self) -> BTreeMap<&str, usize> {
        let mut layers: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
        for (stack, index, _) in self.names().filter_map(layer) {
            layers.entry(stack).or_default().insert(index);
        }
        layers.into_iter().map(|(stack, layers)| (stack, layers.last().map_or(0, |last| last + 1))).collect()
    }

    /// The shape of a tensor by its stored name.
    pub fn shape(&self, stored: &str) -> Result<&[usize]> {
        self.folder.tensors.shape(stored)
    }

    /// Reads tensors of this model; see [`Reader`].
    pub fn reader<'m>(&'m self, stored: &'m str) -> Result<Reader<'m>> {
        let patch = self.lora.as_ref().map(|lora| lora.patch(stored, &self.folder.tensors)).transpose()?.flatten();
        Ok(Reader { model: self, stored, patch })
    }
}

/// One tensor of a model.
pub(super) struct Reader<'m> {
    model: &'m Model,
    stored: &'m str,
    patch: Option<Patch<'m>>,
}

impl Reader<'_> {
    /// Values from `start` on, with the adapter's change.
    ///
    /// Errors name a value that is not finite.
    pub fn read(&self, start: usize, out: &mut [f32]) -> Result<()> {
        match &self.patch {
            Some(Patch::Whole { tensors, name }) => tensors.read_f32_range(name, start, out)?,
            Some(Patch::Low(low)) => {
                self.model.folder.tensors.read_f32_range(self.stored, start, out)?;
                low.add(start, out);
            }
            None => self.model.folder.tensors.read_f32_range(self.stored, start, out)?,
        }
        // The exponent of all ones: one pass that compilers turn into vector code.
        let most = out.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
        if most < 0x7f80_0000 {
            return Ok(());
        }
        let at = out.iter().position(|x| !x.is_finite()).unwrap_or(0);
        Error::file(self.model.folder.tensors.file(self.stored)?)
            .field(format!("tensor `{}`, value {}", self.stored, start + at))
            .expected("a number")
            .found(out[at])
            .help("the model is damaged or its training diverged: leave it out, or take another copy")
            .err()
    }
}
