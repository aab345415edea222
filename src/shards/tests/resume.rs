//! A capture killed at any file step, any number of times, ends in the same bytes.

use super::super::disk::kill_after;
use super::*;

#[test]
fn killed_at_every_step_and_resumed_the_set_is_bit_identical() {
    for record in [top_k(4, LogProbType::DEFAULT), sampled(9, 4), hidden(StateType::F16)] {
        let spec = if record.kind() == 2 { spec(record, &[], 40) } else { spec(record, &[1.0], 40) };
        let whole = tempfile::tempdir().unwrap();
        capture(whole.path(), &spec, 40).unwrap();
        let expected = contents(whole.path());
        let (mut steps, mut finished) = (0, false);
        while !finished {
            let dir = tempfile::tempdir().unwrap();
            kill_after(Some(steps));
            finished = capture(dir.path(), &spec, 7).is_ok();
            // Killed once more a little later, then left in peace.
            kill_after(Some(steps / 3 + 1));
            let _ = capture(dir.path(), &spec, 11);
            kill_after(None);
            capture(dir.path(), &spec, 3).unwrap();
            assert_eq!(contents(dir.path()), expected, "killed at step {steps}");
            Reader::open(dir.path()).unwrap().verify().unwrap();
            steps += 1;
        }
        // 3 shards of 10 or more steps each, journal and manifest.
        assert!(steps > 40, "only {steps} steps could be killed at");
    }
}

#[test]
fn dropped_at_any_row_a_writer_resumes_at_the_last_shard() {
    let spec = spec(top_k(4, LogProbType::DEFAULT), &[1.0], 40);
    let whole = tempfile::tempdir().unwrap();
    capture(whole.path(), &spec, 1).unwrap();
    for rows in 0..=40 {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _) = Writer::resume_or_create(dir.path(), spec.clone()).unwrap();
        writer.push_rows(&batch(&spec, 0, rows)).unwrap();
        assert_eq!(writer.next_row(), rows);
        drop(writer);
        let (writer, next) = Writer::resume_or_create(dir.path(), spec.clone()).unwrap();
        assert_eq!(next, if rows == 40 { 40 } else { rows / 16 * 16 });
        drop(writer);
        capture(dir.path(), &spec, 40).unwrap();
        assert_eq!(contents(dir.path()), contents(whole.path()));
    }
}

#[test]
fn a_finished_set_is_left_as_it_is() {
    let spec = spec(sampled(9, 4), &[1.0], 20);
    let dir = tempfile::tempdir().unwrap();
    let first = capture(dir.path(), &spec, 20).unwrap();
    let before = contents(dir.path());
    let (mut writer, next) = Writer::resume_or_create(dir.path(), spec.clone()).unwrap();
    assert_eq!(next, 20);
    assert!(writer.push_rows(&batch(&spec, 19, 1)).unwrap_err().to_string().contains("0 more"));
    assert_eq!(writer.finish().unwrap(), first);
    assert_eq!(contents(dir.path()), before);
}

#[test]
fn two_captures_do_not_share_a_folder() {
    let spec = spec(sampled(9, 4), &[1.0], 20);
    let dir = tempfile::tempdir().unwrap();
    let first = Writer::resume_or_create(dir.path(), spec.clone()).unwrap();
    let error = Writer::resume_or_create(dir.path(), spec.clone()).unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
    drop(first);
    Writer::resume_or_create(dir.path(), spec).unwrap();
}
