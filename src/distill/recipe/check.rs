//! What a recipe's values have to be, and what is allowed but known to teach badly.

use std::path::Path;

use super::*;
use crate::data::rows::DOCUMENT_FIELDS;
use crate::device::Choice;
use crate::{Error, Result};

/// Above this mean tail mass, pure ghost KL taught worse than plain text in every run measured (a 43k-parameter
/// transformer from scratch with top-12 and top-50 records; a pruned SmolLM2 at .16 with top-64), and a tenth of cross
/// entropy repaired it.
const HEAVY_TAIL: f64 = 0.1;

/// Most tokens of a micro-batch: far above what any memory holds, and low enough that no count overflows.
const MAX_TOKENS: usize = 1 << 24;

impl Recipe {
    /// Checks every value that a type alone does not rule out. [`Recipe::load`] has done it; a recipe built in code
    /// needs it.
    ///
    /// Errors name `file` and the key.
    pub fn check(&self, file: &Path) -> Result<()> {
        let rule = |holds: bool, key: &str, expected: &str, found: &dyn std::fmt::Display| match holds {
            true => Ok(()),
            false => Error::file(file).field(format!("`{key}`")).expected(expected).found(found).err(),
        };
        rule(!self.output_path.as_os_str().is_empty(), "output_path", "a folder", &"nothing")?;
        let device = self.device.parse::<Choice>().is_ok();
        rule(device, "device", "auto, cpu, gpu or gpu:PART-OF-ITS-NAME", &self.device)?;
        let length = self.sequence_length;
        rule((1..=MAX_TOKENS).contains(&length), "sequence_length", "1 to 16777216", &length)?;
        let batch = self.training_args.per_device_train_batch_size;
        let tokens = length.checked_mul(batch).is_some_and(|tokens| tokens <= MAX_TOKENS);
        let expected = "at most 16777216 tokens (sequences times `sequence_length`) in a micro-batch";
        rule(tokens, "training_args.per_device_train_batch_size", expected, &batch)?;
        self.check_student(file)?;
        self.check_dataset(file)?;
        self.check_losses(file)?;
        self.check_trained(file)?;
        self.check_optimisation(&rule)?;
        self.training_args.check_optimiser(&rule)?;
        self.check_reporting(&rule)
    }

    fn check_student(&self, file: &Path) -> Result<()> {
        match &self.model {
            Student::Layers { layers, .. } if layers.is_empty() || !layers.is_sorted_by(|a, b| a < b) => {
                let complaint = Error::file(file).field("`model.layers`").expected("layer numbers, each larger");
                complaint.found(format!("{layers:?}")).help("list them in ascending order, none twice").err()
            }
            Student::Random { config: Config::Inline(_), .. } if self.tokenizer_source().is_none() => {
                let complaint = Error::file(file).field("`model.tokenizer`").expected("a model whose tokenizer to use");
                complaint.found("nothing").help("name the teacher's folder or hub id here").err()
            }
            _ => Ok(()),
        }
    }

    fn check_trained(&self, file: &Path) -> Result<()> {
        let named_base = matches!(self.model, Student::Pretrained(_));
        match students::problems(file, &self.masks, self.lora.as_ref(), named_base).into_iter().next() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn check_dataset(&self, file: &Path) -> Result<()> {
        let complaint = |key: &str| Error::file(file).field(format!("`dataset.{key}`"));
        let data = &self.dataset;
        if data.train.is_empty() {
            return complaint("train").expected("files or folders of text").found("none").err();
        }
        if !data.eval.is_empty() && data.holdout != Holdout::Nothing {
            let complaint = complaint("holdout").expected("this or `eval`").found("both");
            return complaint.help("measure on other files or on a part of `train`: remove one").err();
        }
        if let Some(field) = data.route_field.as_deref().filter(|field| DOCUMENT_FIELDS.contains(field)) {
            let complaint = complaint("route_field").expected("a field beside the document").found(field);
            return complaint.help("name the field that says which teacher a document is for").err();
        }
        match data.holdout {
            Holdout::LastSequences(0) => complaint("holdout.sequences").expected("at least 1").found(0).err(),
            Holdout::LastFraction(f) if !(f > 0.0 && f < 1.0) => {
                complaint("holdout.fraction").expected("a number between 0 and 1").found(f).help("0.05 is usual").err()
            }
            Holdout::Documents { fraction: f, .. } if !(f > 0.0 && f < 1.0) => {
                complaint("holdout.documents").expected("a number between 0 and 1").found(f).help("0.05 is usual").err()
            }
            _ => Ok(()),
        }
    }

    fn check_optimisation(&self, rule: &Rule) -> Result<()> {
        let args = &self.training_args;
        let rule = |holds: bool, key: &str, expected: &str, found: &dyn std::fmt::Display| {
            rule(holds, &format!("training_args.{key}"), expected, found)
        };
        let at_least_1 = |n: usize, key: &str| rule(n > 0, key, "at least 1", &n);
        at_least_1(args.per_device_train_batch_size, "per_device_train_batch_size")?;
        at_least_1(args.gradient_accumulation_steps, "gradient_accumulation_steps")?;
        let positive = |x: f64, key: &str| rule(x > 0.0 && x.is_finite(), key, "a positive number", &x);
        positive(args.learning_rate, "learning_rate")?;
        let not_negative = |x: f64, key: &str| rule(x >= 0.0 && x.is_finite(), key, "0 or more", &x);
        not_negative(args.weight_decay, "weight_decay")?;
        not_negative(args.max_grad_norm, "max_grad_norm")?;
        let share = |x: f64, key: &str| rule((0.0..=1.0).contains(&x), key, "a number from 0 to 1", &x);
        share(args.min_lr_ratio, "min_lr_ratio")?;
        if let Warmup::Ratio(ratio) = args.warmup {
            share(ratio, "warmup_ratio")?;
        }
        let decays = args.lr_scheduler_type != SchedulerType::Constant || args.min_lr_ratio == 0.0;
        rule(decays, "min_lr_ratio", "no such key with a constant learning rate", &args.min_lr_ratio)?;
        match args.length {
            Length::Steps(steps) => rule(steps > 0, "max_steps", "at least 1", &steps),
            Length::Epochs(epochs) => positive(epochs, "num_train_epochs"),
        }
    }

    fn check_reporting(&self, rule: &Rule) -> Result<()> {
        let args = &self.training_args;
        let at_least_1 = |n: u64, key: &str| rule(n > 0, &format!("training_args.{key}"), "at least 1", &n);
        at_least_1(args.logging_steps, "logging_steps")?;
        at_least_1(args.save_steps, "save_steps")?;
        at_least_1(args.save_total_limit as u64, "save_total_limit")?;
        at_least_1(args.eval_steps.unwrap_or(1), "eval_steps")?;
        at_least_1(args.eval_samples.unwrap_or(1) as u64, "eval_samples")?;
        let measured = self.measures();
        let expected = "`dataset.eval` or `dataset.holdout` to measure on";
        rule(measured || args.eval_steps.is_none(), "training_args.eval_steps", expected, &"neither")?;
        rule(measured || args.eval_samples.is_none(), "training_args.eval_samples", expected, &"neither")
    }

    /// Whether there is text to measure on.
    pub fn measures(&self) -> bool {
        !self.dataset.eval.is_empty() || self.dataset.holdout != Holdout::Nothing
    }

    /// What is allowed but known to teach worse than it could, a sentence each.
    ///
    /// `mean_tail_mass` is the mean probability that the teacher's records leave out, `None` where nothing is left out
    /// (a live teacher, sampled records); `stored_temperatures` are those whose log-partition the records hold.
    pub fn warnings(&self, mean_tail_mass: Option<f64>, stored_temperatures: &[f64]) -> Vec<String> {
        let mut warnings = Vec::new();
        if let (Some((_, temperature, missing)), Some(tail)) = (self.kl(), mean_tail_mass) {
            if missing == MissingProbability::Zero {
                warnings.push(
                    "`missing_probability_handling: zero` scales the recorded probabilities up to 1: the student \
                     becomes over-confident and usually worse than one trained on plain text; use symmetric_uniform"
                        .to_string(),
                );
            } else if tail > HEAVY_TAIL && self.cross_entropy_weight() == 0.0 {
                warnings.push(format!(
                    "the teacher's records leave out {:.0}% of the probability on average, and kl alone teaches \
                     nothing inside that tail: expect less than plain text would give; add cross_entropy with weight \
                     0.1, or capture more entries or samples",
                    100.0 * tail
                ));
            }
            // The ratio of two values written in decimal: equal if they were written equal.
            let stored = |t: &f64| (t / temperature - 1.0).abs() < 1e-6;
            if temperature != 1.0 && !stored_temperatures.iter().any(stored) {
                warnings.push(format!(
                    "the records hold no log-partition at temperature {temperature}: the target is renormalised over \
                     the recorded entries, which biases it; use temperature 1, or capture again with it"
                ));
            }
        }
        if self.teacher.is_some() && !self.loss_functions.iter().any(|loss| loss.function.needs_teacher()) {
            warnings.push("no loss uses the teacher: it only measures the student".to_string());
        }
        if !self.measures() {
            warnings.push("nothing is held out: the student will not be measured; add `dataset.holdout`".to_string());
        }
        if self.dataset.eval.iter().any(|path| self.dataset.train.contains(path)) {
            warnings.push("`dataset.eval` names a path that is trained on: its numbers will flatter".to_string());
        }
        if let (Length::Steps(steps), Warmup::Steps(warmup)) = (self.training_args.length, self.training_args.warmup)
            && warmup >= steps
        {
            warnings.push(format!("{warmup} warm-up steps of {steps}: the learning rate never reaches its peak"));
        }
        warnings
    }
}

pub(super) type Rule<'a> = dyn Fn(bool, &str, &str, &dyn std::fmt::Display) -> Result<()> + 'a;
