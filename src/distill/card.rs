//! The model card, `README.md` of the student's folder: where it comes from, how it was made, how good it is, how to
//! load it.

use std::fmt::Write;

use crate::distill::metrics::Evaluation;
use crate::distill::recipe::{Length, Recipe, SchedulerType};

/// Everything on the card.
#[derive(Clone, Debug)]
pub struct CardData<'a> {
    /// The student's name, the card's heading.
    pub name: String,
    /// The licence's identifier, from the teacher's card or metadata ([`license_in`]); left out if unknown.
    pub license: Option<String>,
    /// Hub ids of the models it derives from: the student's origin and the teacher, where they have one.
    pub base_models: Vec<String>,
    /// Where the student's first weights come from, in words.
    pub student: Origin,
    /// The teachers.
    pub teachers: Vec<Origin>,
    /// Those of their distributions that were recorded.
    pub shards: Vec<Origin>,
    /// The texts.
    pub data: Vec<Corpus>,
    /// Models measured on held-out text, in the order of the table.
    pub evaluations: Vec<(String, Evaluation)>,
    /// How it was made.
    pub recipe: &'a Recipe,
    /// Optimiser steps taken.
    pub steps: u64,
    /// Tokens learned from, counting each pass.
    pub tokens: u64,
    /// What it was trained on.
    pub device: String,
}

/// A thing the student was made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    /// Its name, in words.
    pub name: String,
    /// SHA-256 of its contents.
    pub digest: Option<String>,
}

/// A text the student was trained or measured on.
#[derive(Clone, Debug, PartialEq)]
pub struct Corpus {
    /// Its name.
    pub name: String,
    /// What it was for: `training`, `held out`.
    pub role: String,
    /// Its tokens.
    pub tokens: u64,
    /// SHA-256 of them.
    pub digest: String,
}

/// The card as Markdown.
pub fn markdown(card: &CardData) -> String {
    let mut text = front_matter(card);
    line(&mut text, format_args!("# {}\n", one_line(&card.name)));
    let how = if !card.teachers.is_empty() { "distilled" } else { "trained" };
    line(&mut text, format_args!("A causal language model {how} with potstill {}.\n", env!("CARGO_PKG_VERSION")));
    lineage(&mut text, card);
    training(&mut text, card);
    evaluation(&mut text, card);
    text.push_str(
        "## Use\n\nLoad it from the folder that holds this file.\n\n```python\n\
         from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
         folder = \".\"\n\
         tokenizer = AutoTokenizer.from_pretrained(folder)\n\
         model = AutoModelForCausalLM.from_pretrained(folder)\n\n\
         inputs = tokenizer(\"Once upon a time\", return_tensors=\"pt\")\n\
         output = model.generate(**inputs, max_new_tokens=50)\n\
         print(tokenizer.decode(output[0], skip_special_tokens=True))\n```\n",
    );
    text
}

fn front_matter(card: &CardData) -> String {
    let mut text = String::from("---\nlibrary_name: transformers\npipeline_tag: text-generation\n");
    if let Some(license) = &card.license {
        line(&mut text, format_args!("license: {}", scalar(license)));
    }
    if !card.base_models.is_empty() {
        line(&mut text, format_args!("base_model:"));
        card.base_models.iter().for_each(|model| line(&mut text, format_args!("- {}", scalar(model))));
    }
    text.push_str("tags:\n- potstill\n");
    if !card.teachers.is_empty() {
        text.push_str("- knowledge-distillation\n");
    }
    text.push_str("---\n\n");
    text
}

fn lineage(text: &mut String, card: &CardData) {
    text.push_str("## Lineage\n\n| | | SHA-256 |\n|---|---|---|\n");
    let mut row = |what: &str, name: &str, digest: &str| {
        let digest = if digest.is_empty() { String::new() } else { format!("`{digest}`") };
        line(text, format_args!("| {what} | {} | {digest} |", cell(name)));
    };
    let mut origin =
        |what: &str, origin: &Origin| row(what, &origin.name, origin.digest.as_deref().unwrap_or_default());
    origin("Student began as", &card.student);
    card.teachers.iter().for_each(|teacher| origin("Teacher", teacher));
    card.shards.iter().for_each(|shards| origin("Teacher's records", shards));
    for corpus in &card.data {
        let name = format!("{}, {} tokens", corpus.name, thousands(corpus.tokens));
        row(&format!("Text, {}", corpus.role), &name, &corpus.digest);
    }
    text.push('\n');
}

fn training(text: &mut String, card: &CardData) {
    let (recipe, args) = (card.recipe, &card.recipe.training_args);
    text.push_str("## Training\n\n");
    line(
        text,
        format_args!(
            "{} optimiser steps, {} tokens with a label, on {}. The loss is the weighted sum of\n",
            thousands(card.steps),
            thousands(card.tokens),
            one_line(&card.device)
        ),
    );
    for loss in &recipe.loss_functions {
        line(text, format_args!("- {} x {}", loss.weight, loss.function.describe()));
    }
    let scheduler = match args.lr_scheduler_type {
        SchedulerType::Constant => "constant",
        SchedulerType::Linear => "linear",
        SchedulerType::Cosine => "cosine",
    };
    let length = match args.length {
        Length::Steps(steps) => format!("{steps} steps"),
        Length::Epochs(epochs) => format!("{epochs} epochs"),
    };
    let warmup = args.schedule(card.steps).warmup_steps;
    text.push_str("\n| Hyper-parameter | |\n|---|---|\n");
    let mut row = |name: &str, value: String| line(text, format_args!("| {name} | {value} |"));
    row("sequence length", recipe.sequence_length.to_string());
    row("sequences in a step", format!("{} x {}", args.per_device_train_batch_size, args.gradient_accumulation_steps));
    row("length", length);
    row("learning rate", format!("{} {scheduler}, {warmup} warm-up steps", args.learning_rate));
    row("optimiser", format!("{}, weight decay {}", args.optimiser().rule, args.weight_decay));
    if args.ema_decay > 0.0 {
        row("average of the weights", format!("exponential, decay {}: these are the weights here", args.ema_decay));
    }
    if args.layerwise_lr_decay != 1.0 {
        row("learning rate of each block below the last", format!("times {}", args.layerwise_lr_decay));
    }
    for (pattern, factor) in &args.lr_multipliers {
        row("learning rate", format!("times {factor} where a name matches {pattern}"));
    }
    if let Some(lora) = &recipe.lora {
        let kind = if lora.use_dora { "DoRA" } else { "LoRA" };
        row("adapters", format!("{kind}, rank {}, alpha {}, merged", lora.r, lora.lora_alpha));
    }
    if !recipe.masks.is_empty() {
        row("frozen", recipe.masks.to_string());
    }
    row("gradient clipping", args.max_grad_norm.to_string());
    row("seed", recipe.seed.to_string());
    text.push('\n');
}

fn evaluation(text: &mut String, card: &CardData) {
    let Some((_, first)) = card.evaluations.first() else { return };
    line(text, format_args!("## Evaluation\n\nOn {} held-out tokens:\n", thousands(first.tokens)));
    text.push_str("| | NLL (nats/token) | bits/byte | KLD to teacher (nats/token) | top-1 agreement |\n");
    text.push_str("|---|---:|---:|---:|---:|\n");
    let number = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.4}"));
    for (name, e) in &card.evaluations {
        let (bits, kld, top1) = (number(e.bits_per_byte), number(e.kld), number(e.top1_agreement));
        line(text, format_args!("| {} | {:.4} | {bits} | {kld} | {top1} |", cell(name), e.nll));
    }
    text.push('\n');
}

fn line(text: &mut String, line: std::fmt::Arguments) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Text in a table cell, where a bar would end it.
fn cell(text: &str) -> String {
    one_line(text).replace('|', "\\|")
}

/// A YAML scalar: as it is where that is safe, else quoted as JSON, which YAML reads too.
fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._/".contains(c))
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_string() } else { serde_json::Value::from(text).to_string() }
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).unwrap_or("")).collect();
    groups.join(",")
}

/// The licence that a model card names in its front matter.
pub fn license_in(readme: &str) -> Option<String> {
    let body = readme.trim_start_matches('\u{feff}').strip_prefix("---")?;
    let lines = body.lines().skip(1).take_while(|line| line.trim_end() != "---");
    let value = lines.into_iter().find_map(|line| line.strip_prefix("license:"))?.trim();
    let value = value.trim_matches(['"', '\'']);
    (!value.is_empty() && !value.starts_with('[')).then(|| value.to_string())
}
