//! The study: how well each way to distil works, measured on real text, and written to docs/study.md with its plots.
//!
//!     cargo bench --bench study -- [CACHE [PART]]
//!
//! Run the quickstart first: its teacher and text (in CACHE, `.cache` unless said) are used. What is in CACHE/study from an
//! earlier run is reused; remove it to measure everything anew. With a PART, `scratch` or `pruned`, only that is measured
//! and no page written: two processes of one thread each (RAYON_NUM_THREADS=1) are done sooner than one of two.

mod method;
mod oracle;
mod page;
mod pruned;
mod scratch;
mod text;

use potstill::device::Choice;
use potstill::{Error, Result};
use std::path::{Path, PathBuf};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let cache = PathBuf::from(arguments.first().map_or(".cache", String::as_str));
    let device_name = "auto";
    let device = pollster::block_on(device_name.parse::<Choice>()?.open())?;
    let folder = cache.join("study");
    let scratch = || scratch::run(&device, device_name, &cache.join("text/sotu"), &folder.join("scratch"));
    let pruned = || pruned::run(&device, device_name, &cache, &folder.join("pruned"));
    match arguments.get(1).map(String::as_str) {
        None => {}
        Some("scratch") => return scratch().map(drop),
        Some("pruned") => return pruned().map(drop),
        Some(other) => {
            return Error::at("the part of the study").expected("scratch or pruned").found(other).err();
        }
    }
    let (oracle, scratch, pruned) = (oracle::run(&device)?, scratch()?, pruned()?);
    page::write(Path::new("docs"), &scratch, &oracle, &pruned)?;
    for demand in scratch.bar()?.iter().chain(&oracle.bar()) {
        println!("{}: {} ({})", demand.name, if demand.met { "met" } else { "NOT MET" }, demand.found);
    }
    Ok(())
}
