//! Compiled kernels kept from one run to the next, where the backend can hand them over (Vulkan).

use crate::digest::sha256;
use crate::platform::cache;
use std::path::{Path, PathBuf};

/// Length of the digest before the data.
const DIGEST: usize = 64;

/// A backend's cache of pipelines and the file it comes from and goes to.
pub struct Kept {
    pub cache: wgpu::PipelineCache,
    file: PathBuf,
    /// What the file holds.
    saved: usize,
}

impl Kept {
    /// The cache of an adapter, filled with what an earlier run left. `None` where there is no such thing, and with
    /// POTSTILL_CACHE set to nothing.
    pub fn open(device: &wgpu::Device, info: &wgpu::AdapterInfo) -> Option<Kept> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let file = cache::folder()?.join(wgpu::util::pipeline_cache_key(info)?);
        let data = read(&file);
        let descriptor =
            wgpu::PipelineCacheDescriptor { label: Some("potstill"), data: data.as_deref(), fallback: true };
        // SAFETY: the data is what `save` wrote: its digest says so. wgpu and the driver refuse another version's.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Kept { cache, file, saved: data.map_or(0, |data| data.len()) })
    }

    /// Writes the file anew if the cache has grown. A cache that cannot be written is no error: it only saves time.
    pub fn save(&mut self) {
        let Some(data) = self.cache.get_data().filter(|data| data.len() > self.saved) else { return };
        let written = write(&self.file, &data);
        if let Err(error) = written {
            log::debug!("pipelines are not kept in {}: {error}", self.file.display());
        }
        self.saved = data.len();
    }
}

fn read(file: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(file).ok()?;
    let data = bytes.split_off(DIGEST.min(bytes.len()));
    (sha256(&data).as_bytes() == bytes).then_some(data)
}

fn write(file: &Path, data: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // Of this process alone: another may write at the same time.
    let beside = file.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&beside, [sha256(data).as_bytes(), data].concat())?;
    std::fs::rename(&beside, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_whole_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deeper/pipelines");
        assert_eq!(read(&file), None);
        write(&file, b"compiled").unwrap();
        assert_eq!(read(&file).as_deref(), Some(&b"compiled"[..]));
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[70] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(read(&file), None);
        std::fs::write(&file, &bytes[..30]).unwrap();
        assert_eq!(read(&file), None);
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }
}
