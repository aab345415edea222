//! The study: how well each way to distil works, measured on real text, and written to docs/study.md with its plots.
//!
//!     cargo bench --bench study -- [CACHE]
//!
//! Run the quickstart first: its teacher and text (in CACHE, `.cache` unless said) are used. What is in CACHE/study from an
//! earlier run is reused; remove it to measure everything anew.

mod method;
mod oracle;
mod page;
mod pruned;
mod scratch;
mod text;

use potstill::Result;
use potstill::device::Choice;
use std::path::{Path, PathBuf};
use std::time::Instant;

fn main() -> Result<()> {
    let start = Instant::now();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let cache = PathBuf::from(arguments.first().map_or(".cache", String::as_str));
    let device_name = "auto";
    let device = pollster::block_on(device_name.parse::<Choice>()?.open())?;
    let folder = cache.join("study");
    let oracle = oracle::run(&device)?;
    let scratch = scratch::run(&device, device_name, &cache.join("text/sotu"), &folder.join("scratch"))?;
    let pruned = pruned::run(&device, device_name, &cache, &folder.join("pruned"))?;
    page::write(Path::new("docs"), &scratch, &oracle, &pruned, start.elapsed().as_secs_f64() / 60.0)?;
    for demand in scratch.bar()?.iter().chain(&oracle.bar()) {
        println!("{}: {} ({})", demand.name, if demand.met { "met" } else { "NOT MET" }, demand.found);
    }
    Ok(())
}
