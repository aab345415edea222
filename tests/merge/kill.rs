//! `potstill merge`, killed at ten random moments: it never leaves a model that loads in part, and in the end the bytes
//! of an unbroken run.

use crate::common::small_model;
use potstill::formats::ModelFolder;
use potstill::random::SplitMix64;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

fn start(config: &Path, out: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_potstill"));
    command.arg("merge").args([config, out]).args(["--shard-size", "1MB"]).env("HF_HUB_OFFLINE", "1");
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Every file by name; cards name their folder.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let files = entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()));
    files.filter(|(name, _)| name != "README.md").collect()
}

#[test]
fn a_merge_killed_ten_times_leaves_the_model_of_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (seed, name) in ["base", "a", "b"].into_iter().enumerate() {
        small_model(&dir.join(name), 192, 4, seed as u64);
    }
    let config = dir.join("merge.yaml");
    let model =
        |name: &str| format!("- model: {}\n  parameters: {{ weight: 0.5, density: 0.5 }}\n", dir.join(name).display());
    let text = format!(
        "merge_method: della\nbase_model: {}\nparameters: {{ epsilon: 0.2 }}\nmodels:\n{}{}",
        dir.join("base").display(),
        model("a"),
        model("b")
    );
    std::fs::write(&config, text).unwrap();
    let (whole, broken) = (dir.join("whole"), dir.join("broken"));
    let begun = Instant::now();
    finish(start(&config, &whole));
    let unbroken = begun.elapsed();
    let expected = contents(&whole);
    assert!(expected.len() > 8, "too few files to be killed between: {:?}", expected.keys());
    let mut random = SplitMix64::new(3);
    let (mut kills, mut parts) = (0, 0);
    while kills < 10 {
        let mut child = start(&config, &broken);
        std::thread::sleep(unbroken.mul_f64(random.uniform()));
        if child.try_wait().unwrap().is_some() {
            finish(child);
            assert!(contents(&broken) == expected, "the killed merge's files differ");
            std::fs::remove_dir_all(&broken).unwrap();
            continue;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        match ModelFolder::open(&broken) {
            Ok(model) => {
                assert_eq!(model.digest(), ModelFolder::open(&whole).unwrap().digest(), "half a model loads");
                if !broken.join("merge-unfinished.json").exists() {
                    std::fs::remove_dir_all(&broken).unwrap();
                }
            }
            Err(_) => parts += 1,
        }
    }
    assert!(parts > 0);
    finish(start(&config, &broken));
    assert!(contents(&broken) == expected, "the killed merge's files differ");
}
