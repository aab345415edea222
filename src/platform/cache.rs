//! Where the system keeps what can be made again.

use std::path::PathBuf;

/// This crate's folder for it, there or not: POTSTILL_CACHE if that is set (empty: none), else `potstill` in the user's cache folder
/// (XDG_CACHE_HOME or `~/.cache`, `~/Library/Caches`, `%LOCALAPPDATA%`).
pub fn folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if std::env::var_os("POTSTILL_CACHE").is_some() {
        return variable("POTSTILL_CACHE");
    }
    let of_user = if cfg!(windows) {
        variable("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        variable("HOME").map(|home| home.join("Library/Caches"))
    } else {
        variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))
    };
    Some(of_user?.join("potstill"))
}
