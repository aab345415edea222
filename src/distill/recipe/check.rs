//! What a recipe's values have to be, and what is allowed but known to teach badly.

use std::path::Path;

use super::*;
use crate::data::rows::DOCUMENT_FIELDS;
use crate::device::Choice;
use crate::error::Complaint;
use crate::{Error, Result};

/// Most tokens of a micro-batch: far above what any memory holds, and low enough that no count overflows.
const MAX_TOKENS: usize = 1 << 24;

/// Everything found wrong so far in one recipe.
pub(super) struct Problems<'a> {
    file: &'a Path,
    found: Vec<Error>,
}

impl Problems<'_> {
    /// Starts a complaint about a key.
    pub fn at(&self, key: &str) -> Complaint {
        Error::file(self.file).field(format!("`{key}`"))
    }

    pub fn add(&mut self, complaint: Complaint) {
        self.found.push(complaint.error());
    }

    /// Notes a rule that does not hold.
    pub fn rule(&mut self, holds: bool, key: &str, expected: &str, found: &dyn std::fmt::Display) {
        if !holds {
            self.add(self.at(key).expected(expected).found(found));
        }
    }
}

impl Recipe {
    /// Checks every value that a type alone does not rule out. [`Recipe::load`] has done it; a recipe built in code
    /// needs it.
    ///
    /// The error names `file` and the key of every problem there is.
    pub fn check(&self, file: &Path) -> Result<()> {
        let mut problems = Problems { file, found: Vec::new() };
        problems.rule(!self.output_path.as_os_str().is_empty(), "output_path", "a folder", &"nothing");
        let device = self.device.parse::<Choice>().is_ok();
        problems.rule(device, "device", "auto, cpu, gpu or gpu:PART-OF-ITS-NAME", &self.device);
        let (length, batch) = (self.sequence_length, self.training_args.per_device_train_batch_size);
        let fits = (1..=MAX_TOKENS).contains(&length);
        problems.rule(fits, "sequence_length", "1 to 16777216", &length);
        let tokens = length.checked_mul(batch).is_some_and(|tokens| tokens <= MAX_TOKENS);
        let expected = "at most 16777216 tokens (sequences times `sequence_length`) in a micro-batch";
        problems.rule(tokens || !fits, "training_args.per_device_train_batch_size", expected, &batch);
        self.check_student(&mut problems);
        self.check_dataset(&mut problems);
        self.check_teachers(&mut problems);
        self.check_losses(&mut problems);
        self.check_trained(&mut problems);
        self.check_optimisation(&mut problems);
        self.training_args.check_optimiser(&mut problems);
        self.check_reporting(&mut problems);
        Error::all(problems.found)
    }

    fn check_student(&self, problems: &mut Problems) {
        match &self.model {
            Student::Layers { layers, .. } if layers.is_empty() || !layers.is_sorted_by(|a, b| a < b) => {
                let complaint = problems.at("model.layers").expected("layer numbers, each larger");
                problems.add(complaint.found(format!("{layers:?}")).help("list them in ascending order, none twice"));
            }
            Student::Random { config: Config::Inline(_), .. } if self.tokenizer_source().is_none() => {
                let complaint = problems.at("model.tokenizer").expected("a model whose tokenizer to use");
                problems.add(complaint.found("nothing").help("name the teacher's folder or hub id here"));
            }
            _ => {}
        }
    }

    fn check_trained(&self, problems: &mut Problems) {
        let named_base = matches!(self.model, Student::Pretrained(_));
        problems.found.extend(students::problems(problems.file, &self.masks, self.lora.as_ref(), named_base));
    }

    fn check_dataset(&self, problems: &mut Problems) {
        let data = &self.dataset;
        problems.rule(!data.train.is_empty(), "dataset.train", "files or folders of text", &"none");
        if !data.eval.is_empty() && data.holdout != Holdout::Nothing {
            let complaint = problems.at("dataset.holdout").expected("this or `eval`").found("both");
            problems.add(complaint.help("measure on other files or on a part of `train`: remove one"));
        }
        if let Some(field) = data.route_field.as_deref().filter(|field| DOCUMENT_FIELDS.contains(field)) {
            let complaint = problems.at("dataset.route_field").expected("a field beside the document").found(field);
            problems.add(complaint.help("name the field that says which teacher a document is for"));
        }
        let share = |f: f64| f > 0.0 && f < 1.0;
        let (key, found) = match data.holdout {
            Holdout::LastSequences(0) => {
                return problems.rule(false, "dataset.holdout.sequences", "at least 1", &0);
            }
            Holdout::LastFraction(f) if !share(f) => ("dataset.holdout.fraction", f),
            Holdout::Documents { fraction: f, .. } if !share(f) => ("dataset.holdout.documents", f),
            _ => return,
        };
        let complaint = problems.at(key).expected("a number between 0 and 1").found(found);
        problems.add(complaint.help("0.05 is usual"));
    }

    fn check_optimisation(&self, problems: &mut Problems) {
        let args = &self.training_args;
        let mut rule = |holds: bool, key: &str, expected: &str, found: &dyn std::fmt::Display| {
            problems.rule(holds, &format!("training_args.{key}"), expected, found);
        };
        let batch = args.per_device_train_batch_size;
        rule(batch > 0, "per_device_train_batch_size", "at least 1", &batch);
        let accumulate = args.gradient_accumulation_steps;
        rule(accumulate > 0, "gradient_accumulation_steps", "at least 1", &accumulate);
        let rate = args.learning_rate;
        rule(rate > 0.0 && rate.is_finite(), "learning_rate", "a positive number", &rate);
        for (key, x) in [("weight_decay", args.weight_decay), ("max_grad_norm", args.max_grad_norm)] {
            rule(x >= 0.0 && x.is_finite(), key, "0 or more", &x);
        }
        let mut share = |key: &str, x: f64| rule((0.0..=1.0).contains(&x), key, "a number from 0 to 1", &x);
        share("min_lr_ratio", args.min_lr_ratio);
        if let Warmup::Ratio(ratio) = args.warmup {
            share("warmup_ratio", ratio);
        }
        let decays = args.lr_scheduler_type != SchedulerType::Constant || args.min_lr_ratio == 0.0;
        rule(decays, "min_lr_ratio", "no such key with a constant learning rate", &args.min_lr_ratio);
        match args.length {
            Length::Steps(steps) => rule(steps > 0, "max_steps", "at least 1", &steps),
            Length::Epochs(n) => rule(n > 0.0 && n.is_finite(), "num_train_epochs", "a positive number", &n),
        }
    }

    fn check_reporting(&self, problems: &mut Problems) {
        let args = &self.training_args;
        let counts = [
            ("logging_steps", args.logging_steps),
            ("save_steps", args.save_steps),
            ("save_total_limit", args.save_total_limit as u64),
            ("eval_steps", args.eval_steps.unwrap_or(1)),
            ("eval_samples", args.eval_samples.unwrap_or(1) as u64),
        ];
        for (key, n) in counts {
            problems.rule(n > 0, &format!("training_args.{key}"), "at least 1", &n);
        }
        let measured = self.measures();
        let expected = "`dataset.eval` or `dataset.holdout` to measure on";
        problems.rule(measured || args.eval_steps.is_none(), "training_args.eval_steps", expected, &"neither");
        problems.rule(measured || args.eval_samples.is_none(), "training_args.eval_samples", expected, &"neither");
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
        let mut warnings = self.loss_warnings(mean_tail_mass, stored_temperatures);
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
