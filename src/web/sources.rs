//! From the addresses in a recipe to files in the tree: which files a model, a tokenizer or a shard set is made of, and
//! fetching them to where the rest of the crate, which knows of no network, will look for them. A path in the tree is the
//! file's address, so that messages name it.

use super::cache;
use super::failure::{Failure, Kind, Outcome};
use super::http::Wanted;
use super::options::Context;
use crate::Error;
use crate::distill::Recipe;
use crate::distill::recipe::{Config, Student, TeacherSource};
use crate::formats::hub::{INDEX, weight_files};
use crate::platform::fs;
use crate::shards::Reader;
use std::path::{Path, PathBuf};

/// Of a model folder, beside configuration, tokenizer and weights: fetched if they are there.
const OPTIONAL: [&str; 3] = ["tokenizer_config.json", "generation_config.json", "chat_template.jinja"];

/// The address that a text names: relative ones begin at `base`.
pub fn absolute(name: &str, base: &str) -> Outcome<String> {
    let url = web_sys::Url::new_with_base(name, base).map_err(|_| {
        let complaint = Error::at(format!("`{name}`")).expected(format!("an address, or a path from {base}"));
        Failure::new(Kind::Input, complaint.found("neither").help("check it"))
    })?;
    Ok(url.href().trim_end_matches('/').to_owned())
}

/// The page's address, or the worker's.
pub fn here() -> String {
    let location = js_sys::Reflect::get(&js_sys::global(), &"location".into());
    let href = location.and_then(|location| js_sys::Reflect::get(&location, &"href".into()));
    href.ok().and_then(|href| href.as_string()).unwrap_or_default()
}

/// Where something of this name is: in the tree, else at an address.
pub fn place(name: &str, base: &str) -> Outcome<String> {
    if fs::exists(Path::new(name)) { Ok(name.to_owned()) } else { absolute(name, base) }
}

/// Makes every path of a recipe that the tree does not have an address.
pub fn resolve(recipe: &mut Recipe, base: &str) -> Outcome<()> {
    let text = |name: &mut String| -> Outcome<()> {
        *name = place(name, base)?;
        Ok(())
    };
    let path = |path: &mut PathBuf| -> Outcome<()> {
        let mut name = path.to_string_lossy().into_owned();
        text(&mut name)?;
        *path = name.into();
        Ok(())
    };
    match &mut recipe.model {
        Student::Pretrained(name) | Student::Layers { layers_of: name, .. } => text(name)?,
        Student::Adapted { path: name, adapter } => {
            text(name)?;
            path(adapter)?;
        }
        Student::Random { config, tokenizer, .. } => {
            if let Config::Path(config) = config {
                path(config)?;
            }
            tokenizer.iter_mut().try_for_each(text)?;
        }
    }
    for teacher in &mut recipe.teachers {
        match &mut teacher.source {
            TeacherSource::Shards { path: set, head } => {
                path(set)?;
                head.iter_mut().try_for_each(text)?;
            }
            TeacherSource::Live { path, .. } => text(path)?,
        }
    }
    recipe.dataset.train.iter_mut().chain(&mut recipe.dataset.eval).try_for_each(path)
}

/// Fetches everything that a resolved recipe names, but for the shards themselves.
pub async fn fetch(recipe: &Recipe, context: &Context) -> Outcome<()> {
    match &recipe.model {
        Student::Pretrained(name) | Student::Layers { layers_of: name, .. } => model(name, context).await?,
        Student::Adapted { path, adapter } => {
            model(path, context).await?;
            self::adapter(adapter, context).await?;
        }
        Student::Random { config, tokenizer: source, .. } => {
            if let Config::Path(path) = config {
                let json = path.extension().is_some_and(|extension| extension == "json");
                file(&if json { path.clone() } else { path.join("config.json") }, context).await?;
            }
            if let Some(name) = source {
                tokenizer(name, context).await?;
            }
        }
    }
    for teacher in &recipe.teachers {
        match &teacher.source {
            TeacherSource::Shards { path, head } => {
                manifest(path, context).await?;
                if let Some(head) = head {
                    model(head, context).await?;
                }
            }
            TeacherSource::Live { path, .. } => model(path, context).await?,
        }
    }
    for path in recipe.dataset.train.iter().chain(&recipe.dataset.eval) {
        file(path, context).await?;
    }
    Ok(())
}

/// Fetches one file, unless the tree has it.
pub async fn file(path: &Path, context: &Context) -> Outcome<()> {
    if !fs::exists(path) {
        let wanted = Wanted { url: path.to_string_lossy().into_owned(), bytes: None, sha256: None };
        cache::bring(path, &wanted, context).await?;
    }
    Ok(())
}

/// The same; whether it is there.
async fn optional(path: &Path, context: &Context) -> Outcome<bool> {
    match file(path, context).await {
        Ok(()) => Ok(true),
        Err(failure) if failure.kind == Kind::Network => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// Fetches a model: a GGUF file, or a folder's configuration, tokenizer and weights.
pub async fn model(name: &str, context: &Context) -> Outcome<()> {
    let folder = Path::new(name);
    if name.to_ascii_lowercase().ends_with(".gguf") {
        return file(folder, context).await;
    }
    if fs::exists(folder) && !name.contains("://") {
        return Ok(());
    }
    file(&folder.join("config.json"), context).await?;
    tokenizer(name, context).await?;
    if optional(&folder.join(INDEX), context).await? {
        for weights in weight_files(&folder.join(INDEX))? {
            file(&folder.join(weights), context).await?;
        }
        return Ok(());
    }
    file(&folder.join("model.safetensors"), context).await
}

/// Fetches an adapter.
pub async fn adapter(folder: &Path, context: &Context) -> Outcome<()> {
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        file(&folder.join(name), context).await?;
    }
    Ok(())
}

/// Fetches what of a model folder belongs to its tokenizer.
pub async fn tokenizer(name: &str, context: &Context) -> Outcome<()> {
    let folder = Path::new(name);
    if name.to_ascii_lowercase().ends_with(".gguf") {
        return file(folder, context).await;
    }
    if fs::exists(folder) && !name.contains("://") {
        return Ok(());
    }
    file(&folder.join("tokenizer.json"), context).await?;
    for name in OPTIONAL {
        optional(&folder.join(name), context).await?;
    }
    Ok(())
}

/// Fetches and reads a shard set's manifest.
pub async fn manifest(set: &Path, context: &Context) -> Outcome<Reader> {
    file(&set.join("manifest.json"), context).await?;
    Ok(Reader::open(set)?)
}
