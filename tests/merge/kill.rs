//! `potstill merge`, killed at random moments, or out of room: it never leaves a model that loads in part, and in the end
//! the bytes of an unbroken run.

use crate::common::{novel, small_model};
use potstill::formats::ModelFolder;
use potstill::random::SplitMix64;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

fn start(config: &Path, out: &Path) -> Child {
    started(config, out, &["--shard-size", "1MB"])
}

fn started(config: &Path, out: &Path, options: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_potstill"));
    command.arg("merge").args([config, out]).args(options).env("HF_HUB_OFFLINE", "1");
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Every file by name; cards name their folder.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let files = entries
        .filter(|entry| entry.path().is_file())
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()));
    files.filter(|(name, _)| name != "README.md").collect()
}

/// Small models, and what they are called in a configuration.
fn models<const N: usize>(dir: &Path, names: [&str; N]) -> [String; N] {
    let seeds: BTreeMap<&str, u64> = names.into_iter().zip(0..).collect();
    names.map(|name| {
        small_model(&dir.join(name), 192, 4, seeds[name]);
        dir.join(name).display().to_string()
    })
}

/// Kills the merge of `text` at random moments, `times` times, and lets it finish.
fn kill_and_finish(dir: &Path, text: &str, times: usize) {
    let config = dir.join("merge.yaml");
    std::fs::write(&config, text).unwrap();
    let (whole, broken) = (dir.join("whole"), dir.join("broken"));
    let begun = Instant::now();
    finish(start(&config, &whole));
    let unbroken = begun.elapsed();
    let expected = contents(&whole);
    assert!(expected.len() > 8, "too few files to be killed between: {:?}", expected.keys());
    let mut random = SplitMix64::new(3);
    let (mut kills, mut parts) = (0, 0);
    while kills < times {
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

fn list(models: &[&str], parameters: &str) -> String {
    models.iter().map(|model| format!("- model: {model}\n  parameters: {{ {parameters} }}\n")).collect()
}

#[test]
fn a_merge_killed_ten_times_leaves_the_model_of_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let [base, a, b] = models(dir.path(), ["base", "a", "b"]);
    let models = list(&[&a, &b], "weight: 0.5, density: 0.5");
    let text = format!("merge_method: della\nbase_model: {base}\nparameters: {{ epsilon: 0.2 }}\nmodels:\n{models}");
    kill_and_finish(dir.path(), &text, 10);
}

#[test]
fn documents_killed_in_any_of_them_leave_the_model_of_an_unbroken_merge() {
    let dir = tempfile::tempdir().unwrap();
    let [base, a, b] = models(dir.path(), ["base", "a", "b"]);
    let ties = format!("merge_method: ties\nbase_model: {base}\nmodels:\n");
    let text = format!(
        "name: first\n{ties}{}---\nname: second\n{ties}{}---\nmerge_method: linear\nmodels:\n{}",
        list(&[&a, &b], "weight: 1, density: 0.3"),
        list(&[&a, "first"], "weight: 1, density: 0.6"),
        list(&["first", "second"], "weight: 0.5"),
    );
    kill_and_finish(dir.path(), &text, 10);
}

#[test]
fn learning_killed_at_any_time_leaves_the_model_of_an_unbroken_merge() {
    let dir = tempfile::tempdir().unwrap();
    let models = models(dir.path(), ["a", "b"]);
    novel(dir.path(), "text.txt", 30_000..34_000);
    let text = dir.path().join("text.txt").display().to_string();
    let sources = list(&models.each_ref().map(String::as_str), &format!("data: {text}"));
    let keys = "max_steps: 10, save_steps: 1, sequence_length: 16";
    let text = format!("merge_method: dam\nparameters: {{ {keys} }}\nmodels:\n{sources}");
    kill_and_finish(dir.path(), &text, 10);
}

/// A file that may not grow stands for a disk that is full: the system refuses the write all the same.
#[cfg(unix)]
#[test]
fn a_disk_that_is_full_is_an_error_and_leaves_nothing_that_loads() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = models(dir.path(), ["a", "b"]);
    let (config, out) = (dir.path().join("merge.yaml"), dir.path().join("out"));
    std::fs::write(&config, format!("merge_method: linear\nmodels:\n{}", list(&[&a, &b], "weight: 0.5"))).unwrap();
    let script = "trap '' XFSZ; ulimit -f 2000; exec \"$0\" merge \"$1\" \"$2\"";
    let mut command = Command::new("bash");
    command.args(["-c", script, env!("CARGO_BIN_EXE_potstill")]).args([&config, &out]);
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("write") && error.contains("model.safetensors"), "{error}");
    let left: Vec<String> = contents(&out).into_keys().collect();
    assert_eq!(left, ["merge-unfinished.json"]);
    // With room again the same command finishes.
    finish(started(&config, &out, &[]));
    let merged = ModelFolder::open(&out).unwrap();
    assert_eq!(merged.tensors.names().count(), ModelFolder::open(&a).unwrap().tensors.names().count());
}
