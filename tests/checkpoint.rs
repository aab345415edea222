//! Checkpoints: exact, whole or not there, refused when they belong to another run.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use potstill::Error;
use potstill::data::packing::Cursor;
use potstill::distill::checkpoint::{self, Checkpoint, FORMAT, State};
use potstill::formats::{Dtype, TensorSpec};

fn state(step: u64) -> State {
    let map = |key: &str, value: &str| BTreeMap::from([(key.to_string(), value.to_string())]);
    State {
        format: FORMAT,
        step,
        cursor: Cursor { epoch: 1, batch: step },
        tokens: 256 * step,
        seconds: 1.5,
        recipe: map("training_args.learning_rate", "0.0005"),
        digests: map("student", "abc"),
        // Seventeen significant digits: a reader that rounds would change it.
        best: BTreeMap::from([("nll".to_string(), f64::from_bits(0x3FE8_F5C2_8F5C_28F7) / 3.0)]),
    }
}

fn arrays() -> Vec<TensorSpec> {
    let array = |name: &str, shape: &[usize]| TensorSpec { name: name.into(), dtype: Dtype::F32, shape: shape.into() };
    vec![array("param.w", &[300, 400]), array("exp_avg.w", &[300, 400]), array("exp_avg_sq.w", &[300, 400])]
}

/// Every bit pattern may occur in an array: NaN with a payload, negative zero, subnormals.
fn values(name: &str, step: u64) -> Vec<f32> {
    let seed = step.wrapping_mul(0x9e37_79b9).wrapping_add(name.len() as u64);
    (0..300 * 400u64)
        .map(|i| f32::from_bits((i.wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32))
        .collect()
}

fn save(folder: &Path, step: u64, keep: usize) -> potstill::Result<std::path::PathBuf> {
    let arrays = arrays();
    let fill = async |array: &TensorSpec| Ok(Cow::Owned(values(&array.name, step)));
    pollster::block_on(checkpoint::save(folder, &state(step), &arrays, keep, fill))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn assert_whole(checkpoint: &Checkpoint) {
    let step = checkpoint.state().step;
    assert_eq!(checkpoint.state(), &state(step));
    for array in arrays() {
        checkpoint.expect_shape(&array.name, &array.shape).unwrap();
        assert_eq!(bits(&checkpoint.read(&array.name).unwrap()), bits(&values(&array.name, step)), "{}", array.name);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn what_is_saved_comes_back_bit_for_bit_and_the_newest_stay() {
    let dir = tempfile::tempdir().unwrap();
    assert!(checkpoint::latest(&dir.path().join("none")).unwrap().is_none());
    assert!(checkpoint::latest(dir.path()).unwrap().is_none());
    for step in [9, 10, 100] {
        save(dir.path(), step, 2).unwrap();
    }
    assert_eq!(names(dir.path()), ["checkpoint-10", "checkpoint-100"]);
    let checkpoint = checkpoint::latest(dir.path()).unwrap().unwrap();
    assert_eq!(checkpoint.state().step, 100);
    assert_whole(&checkpoint);
}

#[test]
fn a_failed_save_leaves_what_there_was() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 1, 1).unwrap();
    for step in [1, 2] {
        let arrays = arrays();
        let fill = async |array: &TensorSpec| match &*array.name {
            "param.w" => Err(Error::Cancelled),
            name => Ok(Cow::Owned(values(name, step))),
        };
        let failed = pollster::block_on(checkpoint::save(dir.path(), &state(step), &arrays, 1, fill));
        assert!(matches!(failed, Err(Error::Cancelled)));
        assert_eq!(names(dir.path()), ["checkpoint-1"]);
        assert_whole(&checkpoint::latest(dir.path()).unwrap().unwrap());
    }
}

#[test]
fn another_recipe_or_other_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), 1, 1).unwrap();
    let checkpoint = checkpoint::latest(dir.path()).unwrap().unwrap();
    let State { recipe, digests, .. } = state(1);
    checkpoint.check(&recipe, &digests).unwrap();
    let other = BTreeMap::from([("training_args.learning_rate".to_string(), "0.001".to_string())]);
    assert_eq!(
        checkpoint.check(&other, &digests).unwrap_err().to_string(),
        format!(
            "{}: recipe key `training_args.learning_rate`: expected 0.0005: found 0.001; restore the key to resume, or \
             write to another `output_path`",
            path.display()
        )
    );
    let mut more = digests.clone();
    more.insert("corpus".to_string(), "d".to_string());
    assert_eq!(
        checkpoint.check(&recipe, &more).unwrap_err().to_string(),
        format!(
            "{}: SHA-256 of the corpus: expected nothing: found d; bring back the corpus that the run began with, or \
             start anew",
            path.display()
        )
    );
}

#[test]
fn damage_is_an_error_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), 1, 1).unwrap();
    let file = path.join("arrays.safetensors");
    let whole = std::fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::write(&file, &flipped).unwrap();
    let checkpoint = checkpoint::latest(dir.path()).unwrap().unwrap();
    let damaged: Vec<_> = arrays().iter().filter_map(|a| checkpoint.read(&a.name).err()).collect();
    assert_eq!(damaged.len(), 1);
    assert!(damaged[0].to_string().contains("remove its folder to resume from the one before"), "{}", damaged[0]);
    drop(checkpoint);
    std::fs::write(&file, &whole[..whole.len() - 4]).unwrap();
    assert!(checkpoint::latest(dir.path()).is_err());
    std::fs::write(&file, &whole).unwrap();
    let json = std::fs::read_to_string(path.join("state.json")).unwrap();
    std::fs::write(path.join("state.json"), json.replace("\"format\": 1", "\"format\": 2")).unwrap();
    let error = checkpoint::latest(dir.path()).unwrap_err().to_string();
    assert!(error.contains("`format`: expected 1: found 2"), "{error}");
}

/// Not a test: the process that the next test kills. Saves each step twice, so that replacing is interrupted too.
#[test]
#[ignore = "saves until it is killed"]
fn saves_until_killed() {
    let Some(folder) = std::env::var_os("POTSTILL_TEST_FOLDER") else { return };
    let folder = Path::new(&folder);
    let next = checkpoint::latest(folder).unwrap().map_or(1, |last| last.state().step + 1);
    for step in next..next + 100_000 {
        save(folder, step, 2).unwrap();
        save(folder, step, 2).unwrap();
    }
}

#[test]
fn a_killed_process_leaves_a_whole_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 1, 2).unwrap();
    let mut last = 1;
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["checkpoint::saves_until_killed", "--exact", "--ignored"])
            .env("POTSTILL_TEST_FOLDER", dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Once it saves, at moments spread over a save or two.
        while checkpoint::latest(dir.path()).is_ok_and(|c| c.is_some_and(|c| c.state().step == last)) {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(1_700 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let checkpoint = checkpoint::latest(dir.path()).unwrap().expect("a checkpoint");
        assert!(checkpoint.state().step >= last, "{:?}", names(dir.path()));
        assert_whole(&checkpoint);
        last = checkpoint.state().step;
    }
    save(dir.path(), last + 1, 1).unwrap();
    assert_eq!(names(dir.path()), [format!("checkpoint-{}", last + 1)], "what killed processes left is gone");
}
