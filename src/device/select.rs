//! Which device to use: a rule on plain descriptions of adapters.

use super::{Device, Gpu};
use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The backend of the one adapter that a browser offers.
const BROWSER: &str = "BrowserWebGpu";

/// What a user may ask for with `--device`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Choice {
    /// A discrete GPU, else an integrated one, else the CPU. Never a software rasteriser. A browser does not tell
    /// which of the two its GPU is.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The best adapter whose name, driver or backend contains this text (any case); empty means any,
    /// software rasterisers included.
    Gpu(String),
}

/// What kind of hardware an adapter is, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A card of its own.
    Discrete,
    /// Shares memory with the CPU.
    Integrated,
    /// Virtual or unknown.
    Other,
    /// A software rasteriser: for tests.
    Software,
}

/// An adapter in words.
#[derive(Debug, Clone)]
pub struct AdapterSummary {
    /// Position in the system's list, stable within a run.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Driver name and version.
    pub driver: String,
    /// Vulkan, Metal, Dx12 or BrowserWebGpu.
    pub backend: String,
    /// What it is.
    pub kind: Kind,
}

impl fmt::Display for AdapterSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let driver = if self.driver.is_empty() { String::new() } else { format!(", {}", self.driver) };
        write!(f, "{} ({:?}, {}{driver})", self.name, self.kind, self.backend)
    }
}

/// The adapters this system has, best kind first.
pub async fn adapters() -> Vec<AdapterSummary> {
    let mut found = Gpu::adapters().await;
    found.sort_by_key(|a| a.kind);
    found
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Auto => write!(f, "auto"),
            Choice::Cpu => write!(f, "cpu"),
            Choice::Gpu(filter) if filter.is_empty() => write!(f, "gpu"),
            Choice::Gpu(filter) => write!(f, "gpu:{filter}"),
        }
    }
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Choice> {
        match text {
            "auto" => Ok(Choice::Auto),
            "cpu" => Ok(Choice::Cpu),
            "gpu" => Ok(Choice::Gpu(String::new())),
            _ => match text.strip_prefix("gpu:") {
                Some(filter) if !filter.is_empty() => Ok(Choice::Gpu(filter.to_lowercase())),
                _ => Error::at("device")
                    .expected("`auto`, `cpu`, `gpu` or `gpu:PART-OF-ITS-NAME`")
                    .found(format!("`{text}`"))
                    .help("`potstill doctor` lists the adapters")
                    .err(),
            },
        }
    }
}

impl Choice {
    /// Opens the device. Errors when a GPU was asked for by name and none matches.
    // In a browser a GPU belongs to the thread that opened it.
    #[cfg_attr(target_family = "wasm", expect(clippy::arc_with_non_send_sync))]
    pub async fn open(&self) -> Result<Device> {
        let found = if *self == Choice::Cpu { Vec::new() } else { adapters().await };
        match self.pick(&found)? {
            Some(adapter) => Ok(Device::Gpu(Arc::new(Gpu::open(adapter.index).await?))),
            None => Ok(Device::cpu()),
        }
    }

    /// The adapter to use among those found (best first), `None` for the CPU.
    pub(crate) fn pick<'a>(&self, found: &'a [AdapterSummary]) -> Result<Option<&'a AdapterSummary>> {
        let matches = |a: &&AdapterSummary, filter: &str| {
            [&a.name, &a.driver, &a.backend].iter().any(|text| text.to_lowercase().contains(filter))
        };
        match self {
            Choice::Cpu => Ok(None),
            Choice::Auto => Ok(found.iter().find(|a| match a.kind {
                Kind::Discrete | Kind::Integrated => true,
                Kind::Other => a.backend == BROWSER,
                Kind::Software => false,
            })),
            Choice::Gpu(filter) => {
                let adapter = found.iter().find(|a| matches(a, filter));
                adapter.map(Some).ok_or_else(|| {
                    let names: Vec<_> = found.iter().map(|a| a.to_string()).collect();
                    let help = if names.is_empty() {
                        "install a Vulkan driver (Linux: the mesa-vulkan-drivers package), or compute on `cpu`"
                    } else {
                        "name a part of one of these, or compute on `cpu`"
                    };
                    let found = if names.is_empty() { "no adapter at all".to_owned() } else { names.join(", ") };
                    Error::at("device")
                        .expected(if filter.is_empty() { "a GPU".into() } else { format!("a GPU matching `{filter}`") })
                        .found(found)
                        .help(help)
                        .error()
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(name: &str, kind: Kind) -> AdapterSummary {
        AdapterSummary { index: 0, name: name.into(), driver: "d".into(), backend: "Vulkan".into(), kind }
    }

    #[test]
    fn auto_takes_hardware_and_never_a_software_rasteriser() {
        let both = [adapter("card", Kind::Discrete), adapter("llvmpipe", Kind::Software)];
        assert_eq!(Choice::Auto.pick(&both).unwrap().unwrap().name, "card");
        assert!(Choice::Auto.pick(&both[1..]).unwrap().is_none());
        let virtual_gpu = adapter("virtual", Kind::Other);
        let in_a_browser = AdapterSummary { backend: BROWSER.into(), ..virtual_gpu.clone() };
        assert!(Choice::Auto.pick(&[virtual_gpu]).unwrap().is_none());
        assert!(Choice::Auto.pick(std::slice::from_ref(&in_a_browser)).unwrap().is_some());
        let swiftshader = AdapterSummary { kind: Kind::Software, ..in_a_browser };
        assert!(Choice::Auto.pick(&[swiftshader]).unwrap().is_none());
        assert_eq!("gpu:LLVM".parse::<Choice>().unwrap().pick(&both).unwrap().unwrap().name, "llvmpipe");
        let error = "gpu:metal".parse::<Choice>().unwrap().pick(&both).unwrap_err().to_string();
        assert!(error.contains("metal") && error.contains("llvmpipe"), "{error}");
        assert!("gpux".parse::<Choice>().is_err());
    }
}
