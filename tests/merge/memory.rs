//! What a merge takes is what it was allowed, whatever the models' sizes.
//!
//! Resident sizes are those of a process of its own: this file starts itself for them.

use super::{filled, run_with};
use crate::common::small_model;
use potstill::merge::MergeOptions;
use std::path::Path;
use std::process::Command;

/// The least that is allowed.
const MEMORY: u64 = 64 << 20;

/// The most that was resident of this process, mapped pages included.
fn peak() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    1024 * line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
}

/// Not a test: see below.
#[test]
#[ignore = "measures its own process"]
fn merges() {
    let Some(dir) = std::env::var_os("POTSTILL_TEST_FOLDER") else { return };
    let dir = Path::new(&dir);
    let yaml = std::fs::read_to_string(dir.join("merge.yaml")).unwrap();
    let before = peak();
    let options = MergeOptions { memory: MEMORY, ..MergeOptions::default() };
    let merged = run_with(&filled(&yaml), &dir.join("out"), &options).unwrap();
    println!("= {before} {} {}", peak(), merged.bytes);
}

#[test]
fn a_merge_keeps_within_its_memory() {
    let dir = tempfile::tempdir().unwrap();
    for (seed, name) in (0..).zip(["base", "one", "two"]) {
        small_model(&dir.path().join(name), 512, 6, seed);
    }
    let model = |name: &str| {
        let path = dir.path().join(name);
        format!("- {{ model: {}, parameters: {{ weight: 0.5, density: 0.5 }} }}\n", path.display())
    };
    let base = dir.path().join("base");
    let yaml = format!("merge_method: ties\nbase_model: {}\nmodels:\n{}{}", base.display(), model("one"), model("two"));
    std::fs::write(dir.path().join("merge.yaml"), yaml).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["merge::memory::merges", "--exact", "--ignored", "--nocapture"]);
    let output = command.env("POTSTILL_TEST_FOLDER", dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let line = text.lines().find_map(|line| line.strip_prefix("= ")).unwrap();
    println!("{line}");
    let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
    assert!(3 * numbers[2] > 3 * MEMORY, "too small to measure: {line}");
    assert!(numbers[1] <= MEMORY, "{} MB resident instead of {}", numbers[1] >> 20, MEMORY >> 20);
}
