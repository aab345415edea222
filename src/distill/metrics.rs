//! What a run measured, as `metrics.jsonl`: one JSON object a line, appended while the run goes on.
//!
//! A line is `{"kind": "train", ...}` ([`Train`]) or `{"kind": "eval", ...}` ([`Eval`]); steps never descend. All
//! lines of a step are written, and synced by [`Writer::sync`], before a checkpoint of that step: so a resumed run
//! finds every line up to its checkpoint, cuts off what a killed run wrote beyond it, and ends with the file of an
//! unbroken run, apart from the timing fields `seconds` and `tokens_per_second`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How well a model predicts held-out text; averages over its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Negative log-likelihood of the next token, in nats.
    pub nll: f64,
    /// The same per byte of text, in bits, where the text's bytes are known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bits_per_byte: Option<f64>,
    /// KL(teacher || model), in nats, where there is a teacher.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kld: Option<f64>,
    /// The share of tokens where the model's likeliest next token is the teacher's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub top1_agreement: Option<f64>,
    /// How many tokens were predicted.
    pub tokens: u64,
}

/// One line of training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Train {
    /// Optimiser steps taken.
    pub step: u64,
    /// Passes over the text, a fraction within one.
    pub epoch: f64,
    /// The weighted sum of `losses`, averaged over the steps since the line before.
    pub loss: f64,
    /// Each loss function unweighted, by its name in the recipe (from the second of a name on `NAME_2`), averaged
    /// likewise.
    pub losses: BTreeMap<String, f64>,
    /// What of the losses changes over the run, by loss and key like `kl.weight`, at this step.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub scheduled: BTreeMap<String, f64>,
    /// Of this step.
    pub learning_rate: f64,
    /// The global gradient norm of this step before clipping.
    pub grad_norm: f64,
    /// Tokens with a label so far.
    pub tokens: u64,
    /// Training time so far (timing).
    pub seconds: f64,
    /// Rows of the batches per second since the line before (timing).
    pub tokens_per_second: f64,
}

/// One line of measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Eval {
    /// Optimiser steps taken; 0 is the untrained student.
    pub step: u64,
    /// The numbers.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// Training time so far (timing).
    pub seconds: f64,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// Of training.
    Train(Train),
    /// Of measurement.
    Eval(Eval),
}

impl Record {
    /// Optimiser steps taken.
    pub fn step(&self) -> u64 {
        match self {
            Record::Train(train) => train.step,
            Record::Eval(eval) => eval.step,
        }
    }

    /// The record with its timing fields 0: what is the same in every run of a recipe on a device.
    pub fn without_timing(&self) -> Record {
        match self {
            Record::Train(train) => Record::Train(Train { seconds: 0.0, tokens_per_second: 0.0, ..train.clone() }),
            Record::Eval(eval) => Record::Eval(Eval { seconds: 0.0, ..eval.clone() }),
        }
    }

    /// The name of a number that is not finite: JSON has none for it, and training has failed.
    fn not_finite(&self) -> Option<&str> {
        let mut numbers: Vec<(&str, f64)> = match self {
            Record::Train(t) => {
                vec![("loss", t.loss), ("grad_norm", t.grad_norm), ("learning_rate", t.learning_rate)]
            }
            Record::Eval(eval) => {
                let e = &eval.evaluation;
                let of = |number: Option<f64>| number.unwrap_or(0.0);
                vec![
                    ("nll", e.nll),
                    ("bits_per_byte", of(e.bits_per_byte)),
                    ("kld", of(e.kld)),
                    ("top1_agreement", of(e.top1_agreement)),
                ]
            }
        };
        if let Record::Train(train) = self {
            numbers.extend(train.losses.iter().map(|(name, value)| (name.as_str(), *value)));
        }
        numbers.into_iter().find(|(_, value)| !value.is_finite()).map(|(name, _)| name)
    }
}

/// Appends records to a file, a line each, in one write.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
}

impl Writer {
    /// Starts a new file at `path`; an old one is replaced.
    pub fn create(path: &Path) -> Result<Writer> {
        let file = File::create(path).map_err(Error::io("create", path))?;
        Ok(Writer { path: path.to_path_buf(), file })
    }

    /// Goes on with the file at `path` behind the lines of `step` and before: later ones, and a line that a killed
    /// process left unfinished, are cut off. A file that is not there is created.
    ///
    /// Errors name a line that is not a record.
    pub fn resume(path: &Path, step: u64) -> Result<Writer> {
        let mut keep = 0;
        if path.exists() {
            let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
            for (number, line) in whole_lines(&text) {
                if parse(path, number, line)?.step() > step {
                    break;
                }
                keep += line.len() as u64;
            }
        }
        let options = OpenOptions::new().append(true).create(true).open(path);
        let file = options.map_err(Error::io("open", path))?;
        file.set_len(keep).map_err(Error::io("shorten", path))?;
        file.sync_all().map_err(Error::io("sync", path))?;
        Ok(Writer { path: path.to_path_buf(), file })
    }

    /// Appends a line.
    ///
    /// Errors with [`Error::NotFinite`] if a number of it is not finite; nothing is written then.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        if let Some(name) = record.not_finite() {
            let help =
                "lower `learning_rate`, raise `warmup_steps` or clip with `max_grad_norm`, and start anew".to_string();
            return Err(Error::NotFinite { what: format!("`{name}`"), step: record.step(), help });
        }
        let mut line = serde_json::to_vec(record).map_err(|e| Error::internal(e.to_string()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(Error::io("write", &self.path))
    }

    /// Waits until all lines are on the disk. To be called before a checkpoint is saved.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("sync", &self.path))
    }
}

/// Reads all records. A last line without a line break is being written, or was when a process was killed: it is left
/// out.
///
/// Errors name a line that is not a record.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    whole_lines(&text).map(|(number, line)| parse(path, number, line)).collect()
}

/// Lines that end in a line break, which they keep, numbered from 1.
fn whole_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split_inclusive('\n').enumerate().map(|(i, line)| (i + 1, line)).filter(|(_, line)| line.ends_with('\n'))
}

fn parse(path: &Path, number: usize, line: &str) -> Result<Record> {
    serde_json::from_str(line).map_err(|error| {
        let complaint = Error::at(format!("{}:{number}", path.display())).expected("a record of metrics");
        complaint.found(error).help("the file was changed by hand: restore or remove it").error()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(step: u64) -> Record {
        let losses = BTreeMap::from([("kl".to_string(), 0.1), ("cross_entropy".to_string(), 2.0)]);
        Record::Train(Train { step, loss: 0.3, losses, tokens: 7, seconds: step as f64, ..Train::default() })
    }

    fn eval(step: u64) -> Record {
        let evaluation = Evaluation { nll: 2.5, kld: Some(0.25), tokens: 9, ..Evaluation::default() };
        Record::Eval(Eval { step, evaluation, seconds: 1.5 })
    }

    #[test]
    fn a_record_is_one_flat_json_object() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut writer = Writer::create(&path).unwrap();
        writer.write(&eval(0)).unwrap();
        writer.write(&train(1)).unwrap();
        let expected = concat!(
            r#"{"kind":"eval","step":0,"nll":2.5,"kld":0.25,"tokens":9,"seconds":1.5}"#,
            "\n",
            r#"{"kind":"train","step":1,"epoch":0.0,"loss":0.3,"losses":{"cross_entropy":2.0,"kl":0.1},"#,
            r#""learning_rate":0.0,"grad_norm":0.0,"tokens":7,"seconds":1.0,"tokens_per_second":0.0}"#,
            "\n"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(read(&path).unwrap(), [eval(0), train(1)]);
    }

    #[test]
    fn a_resumed_file_equals_the_unbroken_one() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
        let records = [eval(0), train(1), train(2), eval(2), train(3), train(4)];
        let mut writer = Writer::create(&whole).unwrap();
        records.iter().for_each(|record| writer.write(record).unwrap());
        let bytes = std::fs::read(&whole).unwrap();
        // Killed anywhere after the checkpoint of step 2.
        let kept = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).nth(3).unwrap();
        for cut in kept..=bytes.len() {
            std::fs::write(&broken, &bytes[..cut]).unwrap();
            let mut writer = Writer::resume(&broken, 2).unwrap();
            records[4..].iter().for_each(|record| writer.write(record).unwrap());
            assert_eq!(std::fs::read(&broken).unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_no_record_is_named_and_what_is_not_finite_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let mut writer = Writer::create(&path).unwrap();
        writer.write(&train(1)).unwrap();
        let Record::Train(mut nan) = train(2) else { unreachable!() };
        nan.losses.insert("kl".to_string(), f64::NAN);
        let error = writer.write(&Record::Train(nan)).unwrap_err().to_string();
        assert!(error.starts_with("`kl` is not finite at step 2"), "{error}");
        assert_eq!(read(&path).unwrap().len(), 1);
        std::fs::write(&path, "{}\n").unwrap();
        let error = Writer::resume(&path, 1).unwrap_err().to_string();
        assert!(error.contains("m:1: expected a record of metrics"), "{error}");
    }
}
