//! Output folders in use, and disks that are full.

use super::place::{Place, error_line};
use std::fs;
use std::process::{Command, Output};

#[test]
fn output_folders_that_hold_something_else_are_left_alone() {
    let place = Place::new();
    fs::create_dir(place.path("thesis")).unwrap();
    place.write("thesis/chapter.txt", "mine");
    place
        .distill_fails("output_path: thesis", &["thesis: expected a new or empty directory", "chapter.txt", "another"]);
    let capture = |to: &str| format!("capture model text.txt -o {to} --top-k 4 --sequence-length 32 --device cpu");
    place.fails(&capture("thesis"), &["thesis: expected an empty folder", "chapter.txt", "another folder"]);
    place.fails(&capture("text.txt"), &["text.txt: expected a folder", "found a file", "another folder"]);
    place.distill_fails("output_path: text.txt", &["text.txt: expected a directory", "a file"]);
    assert_eq!(place.files("thesis"), ["chapter.txt"]);
    assert_eq!(fs::read(place.path("thesis/chapter.txt")).unwrap(), b"mine");

    // Another capture's set, and another recipe's run.
    place.succeeds(&capture("shards"));
    let before = fs::read(place.path("shards/manifest.json")).unwrap();
    let other = capture("shards").replace("--top-k 4", "--top-k 5");
    place.fails(&other, &["shards/manifest.json: `record.k`", "expected 5", "found 4", "another folder"]);
    assert_eq!(fs::read(place.path("shards/manifest.json")).unwrap(), before);
    place.recipe("");
    place.succeeds("distill recipe.yaml");
    let student = fs::read(place.path("out/model.safetensors")).unwrap();
    place.recipe("seed: 7");
    place.fails("distill recipe.yaml", &["recipe key `seed`", "expected 42", "found 7", "another `output_path`"]);
    // Asked to overwrite, a recipe that cannot begin costs nothing either.
    place.recipe("model: nowhere");
    place.fails("distill recipe.yaml --overwrite", &["`nowhere`"]);
    assert!(place.files("out").contains(&"checkpoint-4".into()));
    assert_eq!(fs::read(place.path("out/model.safetensors")).unwrap(), student);
    place.recipe("seed: 7");
    place.succeeds("distill recipe.yaml --overwrite");
    assert_ne!(fs::read(place.path("out/model.safetensors")).unwrap(), student);
}

/// Runs the command where no file may grow past `kib`: what a full disk does, without needing one.
#[cfg(target_os = "linux")]
fn limited(place: &Place, kib: usize, arguments: &str) -> Output {
    let script = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$0\" {arguments}");
    let mut shell = Command::new("bash");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_potstill")]).current_dir(place.dir.path());
    shell.output().expect("bash starts")
}

#[test]
#[cfg(target_os = "linux")]
fn a_write_that_fails_leaves_what_was_there_and_can_be_repeated() {
    let place = Place::new();
    // A checkpoint is three times the 263 KB of weights; the set is 941 rows of 64 bytes.
    place.recipe("");
    let parts = ["cannot write", "checkpoint-2", "File too large", "limit"];
    error_line(&limited(&place, 500, "distill recipe.yaml"), &parts);
    assert_eq!(place.files("out"), ["checkpoints", "metrics.jsonl", "samples-before.json"]);
    place.succeeds("distill recipe.yaml");
    let capture = "capture model text.txt -o shards --top-k 16 --sequence-length 32 --device cpu";
    error_line(&limited(&place, 16, capture), &["cannot write", "00000.shard", "File too large"]);
    assert_eq!(place.files("shards"), ["journal.jsonl"]);
    place.succeeds(capture);
    place.succeeds("inspect shards --verify");
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "needs the right to mount a file system; tests/run.sh runs it where that is given"]
fn a_full_disk_is_named_and_the_same_command_goes_on_later() {
    let place = Place::new();
    let disk = place.path("disk");
    fs::create_dir(&disk).unwrap();
    let mount = |arguments: &[&str]| {
        let status = Command::new("mount").args(arguments).arg(&disk).stderr(std::process::Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    assert!(mount(&["-t", "tmpfs", "-o", "size=1200k", "tmpfs"]), "mounting a small tmpfs is not permitted");
    place.recipe("output_path: disk/out");
    let first = place.run("distill recipe.yaml");
    let left = place.files("disk");
    let grown = mount(&["-o", "remount,size=64m"]);
    let second = place.run("distill recipe.yaml");
    let all = place.files("disk");
    let _ = Command::new("umount").arg(&disk).status();
    error_line(&first, &["cannot write", "checkpoint-4", "No space left", "free some space", "it resumes"]);
    assert!(left.contains(&"checkpoint-2".into()) && !left.iter().any(|name| name.contains(".tmp")), "{left:?}");
    assert!(grown && second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
    assert!(all.contains(&"model.safetensors".into()), "{all:?}");
}
