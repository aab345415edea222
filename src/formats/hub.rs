//! What a user calls a model: a path, or an id on the model hub.
//!
//! `owner/name` is the main branch of a model, `owner/name@revision` another branch, tag or commit, and
//! `owner/name/file.gguf` one GGUF file of it. The Hugging Face cache (layout: `docs/hub/local-cache` of the hub's
//! documentation) is looked at first, so that what is there once needs no network; what is not is fetched into it with
//! the feature `hub`.

use super::files::read_json;
use crate::{Error, Result, platform};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// A model on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HubId {
    /// `owner/name`.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// One GGUF file of the repository, else all that a model folder needs.
    pub gguf: Option<String>,
}

/// A file on its way from the hub.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetching {
    /// Its name in the repository.
    pub file: String,
    /// Bytes that are here.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// The path of the model that a user calls `model`; see the head of this file. What has to be fetched is fetched.
pub fn resolve(model: &str) -> Result<PathBuf> {
    resolve_with(model, &mut |_| Ok(()))
}

/// [`resolve`], telling `progress` of each file as it comes. Its error ends the fetching and is returned; what had
/// come stays, and the next call continues there.
pub fn resolve_with(model: &str, progress: &mut dyn FnMut(&Fetching) -> Result<()>) -> Result<PathBuf> {
    if platform::fs::exists(Path::new(model)) {
        return Ok(PathBuf::from(model));
    }
    let id = parse(model)?;
    let cache = cache_folder()?;
    match find(&cache, &id) {
        Some(path) => Ok(path),
        None => fetch(&cache, &id, progress),
    }
}

#[cfg(feature = "hub")]
use super::hub_fetch::fetch;

#[cfg(not(feature = "hub"))]
fn fetch(_: &Path, id: &HubId, _: &mut dyn FnMut(&Fetching) -> Result<()>) -> Result<PathBuf> {
    Error::at(format!("`{id}`"))
        .expected("a path, or a model in the Hugging Face cache")
        .found("neither, and this build cannot download (its feature `hub` is off)")
        .help("download the model with another tool and give the path of its folder")
        .err()
}

impl std::fmt::Display for HubId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.gguf.iter().try_for_each(|file| write!(f, "/{file}"))
    }
}

/// Takes a name apart. A part of it may hold letters, digits and `-_.`, so that nothing of it can lead out of the
/// cache.
pub(super) fn parse(model: &str) -> Result<HubId> {
    let wrong = || {
        Error::at(format!("`{model}`"))
            .expected("a model folder, a .gguf file, or a hub id `owner/name`")
            .found("no file of this name and no hub id")
            .help("check the path")
            .error()
    };
    let (plain, mut revision) = match model.split_once('@') {
        Some((plain, revision)) => (plain.to_string(), revision.to_string()),
        None => (model.to_string(), "main".to_string()),
    };
    let mut parts: Vec<&str> = plain.split('/').collect();
    // `owner/name@revision/file.gguf`
    let after = revision.split_once('/').map(|(r, rest)| (r.to_string(), rest.to_string()));
    if let Some((r, file)) = after.filter(|(_, rest)| is_gguf(rest)) {
        revision = r;
        return parts_to_id(&parts, revision, Some(file)).ok_or_else(wrong);
    }
    let file = (parts.len() > 2 && is_gguf(model)).then(|| parts.split_off(2).join("/"));
    parts_to_id(&parts, revision, file).ok_or_else(wrong)
}

fn is_gguf(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".gguf")
}

fn parts_to_id(parts: &[&str], revision: String, gguf: Option<String>) -> Option<HubId> {
    let [owner, name] = parts else { return None };
    let sound = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && !part.starts_with('.') && !part.contains("..") && part.chars().all(allowed)
    };
    let all = [*owner, *name].into_iter().chain(revision.split('/')).chain(gguf.iter().flat_map(|f| f.split('/')));
    let repo = format!("{owner}/{name}");
    let id = HubId { repo, revision: revision.clone(), gguf: gguf.clone() };
    all.into_iter().all(sound).then_some(id)
}

/// Where huggingface_hub keeps models: `HF_HUB_CACHE`, else `HF_HOME/hub`, else under the user's cache folder.
fn cache_folder() -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || set("HOME").or_else(|| set("USERPROFILE")).map(|home| home.join(".cache"));
    let hub = || set("HF_HOME").or_else(|| Some(set("XDG_CACHE_HOME").or_else(home)?.join("huggingface")));
    set("HF_HUB_CACHE").or_else(|| Some(hub()?.join("hub"))).ok_or_else(|| {
        Error::at("the Hugging Face cache")
            .expected("HF_HOME or HOME in the environment")
            .found("neither")
            .help("set HF_HOME to a folder for downloaded models")
            .error()
    })
}

/// The folder of one repository in the cache.
pub(super) fn repo_folder(cache: &Path, id: &HubId) -> PathBuf {
    cache.join(format!("models--{}", id.repo.replace('/', "--")))
}

/// The model in the cache, if all of it is there.
fn find(cache: &Path, id: &HubId) -> Option<PathBuf> {
    let repo = repo_folder(cache, id);
    let commit = fs::read_to_string(repo.join("refs").join(&id.revision));
    let commit = commit.map(|text| text.trim().to_string()).unwrap_or_else(|_| id.revision.clone());
    let snapshot = repo.join("snapshots").join(commit);
    match &id.gguf {
        Some(file) => Some(snapshot.join(file)).filter(|path| path.is_file()),
        None => is_complete(&snapshot).then_some(snapshot),
    }
}

/// Whether a folder holds a configuration, a tokenizer and every file of weights.
fn is_complete(snapshot: &Path) -> bool {
    let has = |name: &str| snapshot.join(name).is_file();
    has("config.json")
        && has("tokenizer.json")
        && (has("model.safetensors")
            || weight_files(&snapshot.join(INDEX)).is_ok_and(|files| files.iter().all(|file| has(file))))
}

/// The index of weights spread over several files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The files an index names.
pub(crate) fn weight_files(index: &Path) -> Result<Vec<String>> {
    let json = read_json(index)?;
    let map = json["weight_map"].as_object();
    let map = map.ok_or_else(|| Error::file(index).field("`weight_map`").expected("an object").error())?;
    let mut files: Vec<String> = map.values().filter_map(|file| file.as_str().map(str::to_string)).collect();
    files.sort();
    files.dedup();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_repository_a_revision_and_a_file() {
        let id = |repo: &str, revision: &str, gguf: Option<&str>| HubId {
            repo: repo.into(),
            revision: revision.into(),
            gguf: gguf.map(str::to_string),
        };
        assert_eq!(parse("a/b-1.5").unwrap(), id("a/b-1.5", "main", None));
        assert_eq!(parse("a/b@v1").unwrap(), id("a/b", "v1", None));
        assert_eq!(parse("a/b@refs/pr/1").unwrap(), id("a/b", "refs/pr/1", None));
        assert_eq!(parse("a/b/q4/x.gguf").unwrap(), id("a/b", "main", Some("q4/x.gguf")));
        assert_eq!(parse("a/b@v1/x.gguf").unwrap(), id("a/b", "v1", Some("x.gguf")));
        for wrong in ["", "a", "./a", "../b", "a/..", "a/b/c", "/a/b", "a/b@", "a//b", "a/b@../../c", "a/x y", "~/b"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_snapshot_counts_only_when_all_of_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let id = parse("own/model").unwrap();
        let snapshot = dir.path().join("models--own--model/snapshots/abc");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(dir.path().join("models--own--model/refs")).unwrap();
        fs::write(dir.path().join("models--own--model/refs/main"), "abc\n").unwrap();
        for (name, text) in [
            ("config.json", "{}"),
            ("tokenizer.json", "{}"),
            (INDEX, r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#),
            ("1.safetensors", ""),
        ] {
            fs::write(snapshot.join(name), text).unwrap();
            assert_eq!(find(dir.path(), &id), None, "{name}");
        }
        fs::write(snapshot.join("2.safetensors"), "").unwrap();
        assert_eq!(find(dir.path(), &id), Some(snapshot.clone()));
        assert_eq!(find(dir.path(), &parse("own/model@abc").unwrap()), Some(snapshot.clone()));
        assert_eq!(find(dir.path(), &parse("own/model/x.gguf").unwrap()), None);
        fs::write(snapshot.join("x.gguf"), "").unwrap();
        assert_eq!(find(dir.path(), &parse("own/model/x.gguf").unwrap()), Some(snapshot.join("x.gguf")));
    }
}
