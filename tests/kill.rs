//! `potstill capture` and `potstill distill`, killed at ten random moments each: what they leave in the end is, bit for
//! bit, what they leave when nobody kills them.
#![cfg(feature = "cli")]

use crate::common::{novel, small_config, small_model};
use potstill::distill::metrics::{self, Record};
use potstill::random::SplitMix64;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const KILLS: usize = 10;

fn start(arguments: &[String]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_potstill"));
    command.args(arguments).args(["--device", "cpu"]).env("HF_HUB_OFFLINE", "1");
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs the command to its end, which must be a good one.
fn finish(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Kills the command at [`KILLS`] moments and calls `finished` each time it got to its end all the same. Moments lie
/// within a quarter of an unbroken run, so that work lost and work kept both occur.
fn kill_often(arguments: &[String], unbroken: Duration, seed: u64, mut finished: impl FnMut()) {
    let mut random = SplitMix64::new(seed);
    let mut kills = 0;
    while kills < KILLS {
        let mut child = start(arguments);
        std::thread::sleep(unbroken.mul_f64(random.uniform() / 4.0));
        if child.try_wait().unwrap().is_some() {
            finish(child);
            finished();
            continue;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    finish(start(arguments));
    finished();
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Every file by name.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

#[test]
fn a_capture_killed_ten_times_leaves_the_shards_of_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    small_model(&dir.join("teacher"), 64, 3, 4);
    let text = novel(dir, "text.txt", 30_000..230_000);
    let command = |out: &str| {
        let (teacher, text, out) = (dir.join("teacher"), text.display(), dir.join(out));
        words(&format!(
            "capture {} {text} -o {} --kind sampled --sequence-length 128 --batch-size 8",
            teacher.display(),
            out.display()
        ))
    };
    let begun = Instant::now();
    finish(start(&command("whole")));
    let unbroken = begun.elapsed();
    let whole = contents(&dir.join("whole"));
    assert!(whole.len() > 8, "too few shards to be killed between: {:?}", whole.keys());
    kill_often(&command("broken"), unbroken, 1, || {
        assert!(contents(&dir.join("broken")) == whole, "the killed capture's files differ");
        std::fs::remove_dir_all(dir.join("broken")).unwrap();
    });
}

/// What a run leaves, apart from times and paths.
fn student(folder: &Path) -> (Vec<Vec<u8>>, Vec<Record>, Vec<String>) {
    let names = ["model.safetensors", "config.json", "tokenizer.json", "samples-before.json", "samples-after.json"];
    let files = names.iter().map(|name| std::fs::read(folder.join(name)).unwrap()).collect();
    let lines = metrics::read(&folder.join("metrics.jsonl")).unwrap().iter().map(Record::without_timing).collect();
    let mut all: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    (files, lines, all)
}

#[test]
fn a_training_killed_ten_times_leaves_the_student_of_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    small_model(&dir.join("teacher"), 64, 2, 4);
    let text = novel(dir, "text.txt", 30_000..60_000);
    let (teacher, shards) = (dir.join("teacher"), dir.join("shards"));
    finish(start(&words(&format!(
        "capture {} {} -o {} --top-k 16 --sequence-length 64",
        teacher.display(),
        text.display(),
        shards.display()
    ))));
    let command = |name: &str| {
        let recipe = dir.join(format!("{name}.yaml"));
        let text = format!(
            "output_path: {}\nsequence_length: 64\nmodel: {{ config: {}, tokenizer: {} }}\n\
             teacher: {{ kind: shards, path: {} }}\ndataset: {{ train: {}, holdout: {{ fraction: 0.1 }} }}\n\
             training_args: {{ max_steps: 200, learning_rate: 1e-3, per_device_train_batch_size: 4, eval_steps: 20, \
             logging_steps: 5, save_steps: 10 }}\n",
            dir.join(name).display(),
            small_config(64, 2),
            teacher.display(),
            shards.display(),
            text.display(),
        );
        std::fs::write(&recipe, text).unwrap();
        words(&format!("distill {}", recipe.display()))
    };
    let begun = Instant::now();
    finish(start(&command("whole")));
    let unbroken = begun.elapsed();
    let whole = student(&dir.join("whole"));
    kill_often(&command("broken"), unbroken, 2, || {
        let broken = student(&dir.join("broken"));
        assert_eq!(broken.1, whole.1);
        assert_eq!(broken.2, whole.2);
        assert!(broken.0 == whole.0, "the killed run's files differ");
        std::fs::remove_dir_all(dir.join("broken")).unwrap();
    });
}
