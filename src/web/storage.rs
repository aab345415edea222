//! The browser's private storage (OPFS): folders and files there, how much room is left, and what to do where a browser
//! has none.

use super::failure::{Failure, Kind, Outcome, text};
use crate::Error;
use crate::platform::stored::Stored;
use js_sys::{AsyncIterator, Reflect, Uint8Array};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{
    File, FileSystemDirectoryHandle, FileSystemFileHandle, FileSystemGetDirectoryOptions, FileSystemGetFileOptions,
    FileSystemRemoveOptions, FileSystemSyncAccessHandle, StorageManager,
};

/// The folder that holds everything of this crate.
const ROOT: &str = "potstill";

/// A folder of private storage.
#[derive(Clone)]
pub struct Folder(FileSystemDirectoryHandle);

/// `navigator.storage`, which only pages from `https` or `localhost` have.
pub fn manager() -> Option<StorageManager> {
    let navigator = Reflect::get(&js_sys::global(), &"navigator".into()).ok()?;
    Reflect::get(&navigator, &"storage".into()).ok()?.dyn_into().ok()
}

/// Bytes used and bytes given, by the browser's estimate.
pub async fn estimate() -> Option<(u64, u64)> {
    let estimate = JsFuture::from(manager()?.estimate().ok()?).await.ok()?;
    let number = |name: &str| Some(Reflect::get(&estimate, &name.into()).ok()?.as_f64()? as u64);
    Some((number("usage")?, number("quota")?))
}

fn denied(what: &str) -> impl FnOnce(JsValue) -> Failure + '_ {
    move |thrown| {
        let name = thrown.dyn_ref::<js_sys::Error>().map(|error| String::from(error.name()));
        let full = name.as_deref() == Some("QuotaExceededError");
        let complaint = Error::at(format!("the browser's storage, {what}"));
        let complaint = complaint.expected("room, and leave to use it").found(text(&thrown));
        Failure::new(if full { Kind::Quota } else { Kind::Internal }, complaint.help(FREE_SOME))
    }
}

/// What to do where there is no room.
pub const FREE_SOME: &str = "clear what this page stores, or free space on the disk";

impl Folder {
    /// The folder of this crate, if the browser has private storage for this page.
    pub async fn root() -> Option<Folder> {
        let root: FileSystemDirectoryHandle = JsFuture::from(manager()?.get_directory()).await.ok()?.dyn_into().ok()?;
        Folder(root).folder(ROOT).await.ok()
    }

    /// A folder in this one, made if it is missing.
    pub async fn folder(&self, name: &str) -> Outcome<Folder> {
        let options = FileSystemGetDirectoryOptions::new();
        options.set_create(true);
        let handle = JsFuture::from(self.0.get_directory_handle_with_options(name, &options)).await;
        Ok(Folder(handle.map_err(denied(name))?.unchecked_into()))
    }

    /// What lies in it.
    pub async fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let keys: AsyncIterator = self.0.keys();
        while let Ok(next) = keys.next() {
            let Ok(step) = JsFuture::from(next).await else { break };
            let value = Reflect::get(&step, &"value".into()).ok().and_then(|value| value.as_string());
            let Some(name) = value else { break };
            names.push(name);
        }
        names.sort();
        names
    }

    /// Takes a file, or a folder with all in it, away. Whether it is gone.
    pub async fn remove(&self, name: &str) -> bool {
        let options = FileSystemRemoveOptions::new();
        options.set_recursive(true);
        JsFuture::from(self.0.remove_entry_with_options(name, &options)).await.is_ok()
    }

    /// Opens a file, made if it is missing. Errors where another tab has it open.
    pub async fn open(&self, name: &str) -> Outcome<Stored> {
        let options = FileSystemGetFileOptions::new();
        options.set_create(true);
        let handle = JsFuture::from(self.0.get_file_handle_with_options(name, &options)).await;
        let handle: FileSystemFileHandle = handle.map_err(denied(name))?.unchecked_into();
        if !Reflect::has(&handle, &"createSyncAccessHandle".into()).unwrap_or(false) {
            return Err(denied(name)("files are opened in dedicated workers only".into()));
        }
        let access = JsFuture::from(handle.create_sync_access_handle()).await.map_err(denied(name))?;
        Ok(Stored::new(access.unchecked_into::<FileSystemSyncAccessHandle>()))
    }

    /// The bytes of a file, if it is there.
    pub async fn read(&self, name: &str) -> Option<Vec<u8>> {
        let handle: FileSystemFileHandle = JsFuture::from(self.0.get_file_handle(name)).await.ok()?.unchecked_into();
        let file: File = JsFuture::from(handle.get_file()).await.ok()?.unchecked_into();
        let buffer = JsFuture::from(file.array_buffer()).await.ok()?;
        Some(Uint8Array::new(&buffer).to_vec())
    }

    /// Writes a file whole, and waits until it lasts.
    pub async fn write(&self, name: &str, bytes: &[u8]) -> Outcome<()> {
        let file = self.open(name).await?;
        let written = file.set_bytes(0).and_then(|()| file.write_at(0, bytes)).and_then(|()| file.sync());
        drop(file);
        if let Err(error) = written {
            self.remove(name).await;
            return Err(Error::io("write", name)(error).into());
        }
        Ok(())
    }
}
