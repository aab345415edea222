//! `mergeModels`: several models become one, by a configuration of mergekit's keys.

use super::archive::{self, Format};
use super::failure::{Failure, Kind, Outcome};
use super::options::{Context, MergeOptions, number, text, to_json};
use super::{device, files, sources};
use crate::Error;
use crate::device::Choice;
use crate::merge::{self, MergeConfig, merge_on};
use crate::platform::fs;
use js_sys::{Object, Reflect};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};
use web_sys::Blob;

/// Merges models. `config` has mergekit's keys; a list of them is several documents that name each other. `models` says
/// what the names of models and adapters in it stand for: an address of a folder or GGUF file, a folder that `putFiles`
/// filled, or the files of a folder by their paths; a name that is not there is an address itself. The value is the merged
/// model: the whole Hugging Face folder (`zip`, the default), or its weights.
#[wasm_bindgen(js_name = mergeModels)]
pub async fn merge_models(
    #[wasm_bindgen(unchecked_param_type = "MergeConfig | MergeConfig[] | string")] config: JsValue,
    #[wasm_bindgen(unchecked_param_type = "{ [name: string]: string | { [path: string]: Blob } }")] models: Option<
        Object,
    >,
    options: Option<MergeOptions>,
) -> Outcome<Blob> {
    let options = options.as_ref().map(AsRef::as_ref);
    let format = Format::parse(text(options, "format").as_deref())?;
    let documents = read(&config)?;
    let kept = text(options, "folder").map(PathBuf::from);
    if let Some(folder) = kept.as_ref().filter(|folder| fs::exists(folder)) {
        let complaint = Error::at("`folder`").expected("the name of a new folder").found(folder.display());
        return Err(Failure::new(Kind::Input, complaint.help("take the old one away with `removeFiles`")));
    }
    // What it is called is in the model card.
    let name = kept.as_ref().and_then(|folder| folder.file_name()).unwrap_or("merged".as_ref());
    let place = PathBuf::from(format!("merged/{}", files::number()));
    let (out, own) = (place.join(name), place.join("models"));
    let merged = merge_into(&out, &own, &documents, models, options).await;
    // Before the result is copied: memory is short.
    fs::remove(&own);
    let saved = merged.and_then(|()| archive::folder(&out, format));
    if let (Ok(_), Some(folder)) = (&saved, kept) {
        fs::rename(&out, &folder).map_err(Error::io("rename", &out))?;
    }
    fs::remove(&place);
    saved
}

/// One document, or a list of them.
fn read(config: &JsValue) -> Outcome<Vec<MergeConfig>> {
    let place = Path::new("the configuration");
    let given = config.as_string().map_or_else(|| to_json(config), Ok)?;
    let value: Value = serde_json::from_str(&given).map_err(|error| {
        let complaint = Error::file(place).expected("an object with mergekit's keys, or JSON").found(error);
        Failure::new(Kind::Input, complaint.help("hand YAML over as the object that a YAML library makes of it"))
    })?;
    Ok(MergeConfig::parse(&format!("{value:#}"), place)?)
}

/// Merges into the folder `out`; files that were handed over are put into `own`.
async fn merge_into(
    out: &Path,
    own: &Path,
    documents: &[MergeConfig],
    models: Option<Object>,
    options: Option<&JsValue>,
) -> Outcome<()> {
    let context = Context::of(options);
    let base = text(options, "baseUrl").unwrap_or_else(sources::here);
    let base = sources::absolute(&base, &sources::here())?;
    let places = bring(documents, models.unwrap_or_default(), own, &base, &context).await?;
    let choice: Choice = text(options, "device").as_deref().unwrap_or("cpu").parse()?;
    let device = device::open(&choice).await?;
    let seed = number(options, "seed").map_or(merge::MergeOptions::default().seed, |seed| seed as u64);
    let options = merge::MergeOptions { seed, ..merge::MergeOptions::default() };
    let mut told = 0;
    let mut progress = |now: merge::Progress| {
        // A hundred times in all.
        if now.done == 0 || now.done == now.total || now.done - told >= now.total / 100 {
            told = now.done;
            context.progress("weights", now.done, Some(now.total));
        }
        if context.check().is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    merge_on(documents, out, places, (&device, &options), &mut progress).await?;
    Ok(())
}

/// Brings what the documents name into the tree; the value says where it is, as `Plan::new` wants it.
async fn bring(
    documents: &[MergeConfig],
    given: Object,
    own: &Path,
    base: &str,
    context: &Context,
) -> Outcome<BTreeMap<String, PathBuf>> {
    let mut named = BTreeSet::new();
    for reference in documents.iter().flat_map(MergeConfig::references) {
        named.insert((reference.model.clone(), false));
        named.extend(reference.lora.iter().map(|lora| (lora.clone(), true)));
    }
    let made: Vec<&str> = documents.iter().filter_map(|document| document.name.as_deref()).collect();
    named.retain(|(name, adapter)| *adapter || !made.contains(&name.as_str()));
    let known: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
    for name in Object::keys(&given).iter().filter_map(|name| name.as_string()) {
        if !known.contains(&name.as_str()) {
            let complaint = Error::at(format!("`models.{name}`")).expected(format!("one of {}", known.join(", ")));
            let complaint = complaint.found("a name that the configuration does not have");
            return Err(Failure::new(Kind::Input, complaint.help("remove it, or correct the name")));
        }
    }
    let mut places = BTreeMap::new();
    for (i, (name, adapter)) in named.into_iter().enumerate() {
        let source = Reflect::get(&given, &name.as_str().into()).unwrap_or(JsValue::UNDEFINED);
        let place = if source.is_object() {
            let folder = own.join(i.to_string()).to_string_lossy().into_owned();
            files::put_files(&folder, source.unchecked_into()).await?;
            folder
        } else {
            sources::place(&source.as_string().unwrap_or(name.clone()), base)?
        };
        match adapter {
            true => sources::adapter(Path::new(&place), context).await?,
            false => sources::model(&place, context).await?,
        }
        places.insert(if adapter { format!("+{name}") } else { name }, place.into());
    }
    Ok(places)
}
