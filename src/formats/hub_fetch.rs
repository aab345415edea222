//! Downloading a model into the Hugging Face cache. A file cut short is continued by the next call (the `hf-hub` crate
//! keeps it as `.part`); the name of the revision is written last, so that a model is found only once it is whole.

use super::hub::{Fetching, HubId, INDEX, repo_folder, weight_files};
use crate::{Error, Result};
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use std::env;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread;

/// Besides the weights: what a model folder needs, and what it may have.
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
const WELCOME: [&str; 4] =
    ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];
/// Retries of a broken connection.
const RETRIES: usize = 3;

/// Downloads what is missing of a model; its folder or GGUF file.
pub(super) fn fetch(cache: &Path, id: &HubId, progress: &mut dyn FnMut(&Fetching) -> Result<()>) -> Result<PathBuf> {
    if env::var("HF_HUB_OFFLINE").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false" | "FALSE")) {
        return Error::at(format!("`{id}`"))
            .expected("the whole model in the Hugging Face cache")
            .found(format!("not all of it in {}, and HF_HUB_OFFLINE forbids to download", cache.display()))
            .help("unset HF_HUB_OFFLINE, or give the path of a model folder")
            .err();
    }
    let failed = |error: ApiError| explain(id, error);
    let mut builder = ApiBuilder::from_env().with_cache_dir(cache.to_path_buf()).with_retries(RETRIES);
    if let Ok(token) = env::var("HF_TOKEN") {
        builder = builder.with_token(Some(token));
    }
    let api = builder.build().map_err(failed)?;
    let repo = |revision: &str| Repo::with_revision(id.repo.clone(), RepoType::Model, revision.to_string());
    let info = api.repo(repo(&id.revision)).info().map_err(failed)?;
    let names: Vec<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
    let snapshot = repo_folder(cache, id).join("snapshots").join(&info.sha);
    // All files of one commit, whatever happens to the branch meanwhile.
    let mut get = |name: &str| match snapshot.join(name).exists() {
        true => Ok(()),
        false => download(&api, repo(&info.sha), name, progress).map_err(|stop| stop.into_error(id)),
    };
    let result = match &id.gguf {
        Some(file) => {
            if !names.contains(&file.as_str()) {
                return absent(id, file, &names);
            }
            get(file)?;
            snapshot.join(file)
        }
        None => {
            fetch_folder(id, &snapshot, &names, &mut get)?;
            snapshot
        }
    };
    let reference = Cache::new(cache.to_path_buf()).repo(repo(&id.revision)).create_ref(&info.sha);
    reference.map_err(Error::io("write", repo_folder(cache, id).join("refs")))?;
    Ok(result)
}

fn fetch_folder(id: &HubId, snapshot: &Path, names: &[&str], get: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let weights = ["model.safetensors", INDEX].into_iter().find(|name| names.contains(name));
    let absent_one = NEEDED.into_iter().find(|name| !names.contains(name));
    let (None, Some(weights)) = (absent_one, weights) else {
        return absent(id, absent_one.unwrap_or("model.safetensors"), names);
    };
    for name in NEEDED.into_iter().chain(WELCOME.into_iter().filter(|name| names.contains(name))) {
        get(name)?;
    }
    get(weights)?;
    if weights == INDEX {
        for file in weight_files(&snapshot.join(INDEX))? {
            match names.contains(&file.as_str()) {
                true => get(&file)?,
                false => return absent(id, &file, names),
            }
        }
    }
    Ok(())
}

fn absent<T>(id: &HubId, wanted: &str, names: &[&str]) -> Result<T> {
    let ggufs: Vec<&str> = names.iter().copied().filter(|name| name.ends_with(".gguf")).collect();
    let complaint = Error::at(format!("`{id}` on the model hub")).expected(format!("a file `{wanted}`"));
    match (&ggufs[..], id.gguf.is_some()) {
        ([], _) => complaint.found(format!("none among its {} files", names.len())).err(),
        (_, true) => complaint.found(ggufs.join(", ")).help("name one of these").err(),
        ([first, ..], false) => {
            complaint.found(ggufs.join(", ")).help(format!("name one file, as in `{}/{first}`", id.repo)).err()
        }
    }
}

/// Why a download ended early.
enum Stop {
    Asked(Error),
    Failed(ApiError),
    Vanished,
}

impl Stop {
    fn into_error(self, id: &HubId) -> Error {
        match self {
            Stop::Asked(error) => error,
            Stop::Failed(error) => explain(id, error),
            Stop::Vanished => Error::internal(format!("the download of `{id}` broke off")),
        }
    }
}

enum Message {
    Begin(u64),
    More(u64),
    End(Result<(), ApiError>),
}

/// Hands on what the downloading thread reports.
struct Reporter(Sender<Message>);

impl Progress for Reporter {
    fn init(&mut self, size: usize, _: &str) {
        // Nobody listens any more after a cancelled download.
        let _ = self.0.send(Message::Begin(size as u64));
    }
    fn update(&mut self, size: usize) {
        let _ = self.0.send(Message::More(size as u64));
    }
    fn finish(&mut self) {}
}

/// Downloads one file on a thread of its own, because `hf-hub` has no way to stop: a caller who wants to is answered at
/// once, and what the thread still brings is kept for the next call.
fn download(api: &Api, repo: Repo, name: &str, progress: &mut dyn FnMut(&Fetching) -> Result<()>) -> Result<(), Stop> {
    let (sender, messages) = channel();
    let (repo, file): (ApiRepo, String) = (api.repo(repo), name.to_string());
    thread::spawn(move || {
        let result = repo.download_with_progress(&file, Reporter(sender.clone()));
        let _ = sender.send(Message::End(result.map(drop)));
    });
    let mut state = Fetching { file: name.to_string(), ..Fetching::default() };
    for message in messages {
        match message {
            Message::Begin(total) => (state.done, state.total) = (0, total),
            Message::More(bytes) => state.done = state.done.saturating_add(bytes),
            Message::End(result) => return result.map_err(Stop::Failed),
        }
        progress(&state).map_err(Stop::Asked)?;
    }
    Err(Stop::Vanished)
}

/// What an error of the hub means for the user.
fn explain(id: &HubId, error: ApiError) -> Error {
    let mut cause = &error;
    while let ApiError::TooManyRetries(inner) = cause {
        cause = inner;
    }
    // hf-hub keeps ureq to itself; a status is all that is to be told apart.
    let text = cause.to_string();
    let place = Error::at(format!("`{id}` on the model hub"));
    match text.rsplit_once("http status: ").map(|(_, code)| code.trim()) {
        Some("401" | "403") => place
            .expected("a model that may be read")
            .found(text)
            .help("check the name; for a gated model accept its terms on its page and set HF_TOKEN")
            .error(),
        Some("404") => place.expected("a model of this name and revision").found(text).help("check both").error(),
        _ => place
            .expected("an answer")
            .found(text)
            .help("check the network (HF_ENDPOINT names a mirror), or give the path of a model folder or .gguf file")
            .error(),
    }
}
