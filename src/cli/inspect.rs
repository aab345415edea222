//! `potstill inspect`: a report in words.

use super::args::InspectArgs;
use super::human::{bytes, count, short};
use super::output::{print, print_json};
use super::table::{Align, Table};
use crate::Result;
use crate::formats::hub;
use crate::inspect::{Depth, Group, ModelReport, Report, ShardsReport, TokenizerReport, inspect};
use crate::shards::{Record, Source, TailMass};
use serde_json::Value;
use std::fmt::Write;

/// Longer metadata texts, such as chat templates, are cut in the overview.
const TEXT_SHOWN: usize = 72;

pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let depth = Depth { verify: args.verify, digest: args.digest };
    // Only what is no path can be a hub id, and only a text can.
    let path = match args.path.to_str() {
        Some(name) if !args.path.exists() => hub::resolve_with(name, &mut super::fetching())?,
        _ => args.path.clone(),
    };
    let report = inspect(&path, depth)?;
    match (&report, args.json) {
        (_, true) => print_json(&report),
        (Report::Model(model), _) => print(&model_text(model, args.tensors)),
        (Report::Shards(set), _) => print(&shards_text(set)),
    }
}

fn model_text(model: &ModelReport, tensors: bool) -> String {
    let mut text = format!("{}: {}\n\n", model.path.display(), title(model));
    let mut facts = Table::plain(2);
    if let Some(problem) = &model.problem {
        facts.row(["cannot be used", problem]);
    }
    let size = format!("{} ({}), {} stored", count(model.parameters), short(model.parameters), bytes(model.bytes));
    facts.row(["parameters", &size]);
    if let Some(config) = &model.config {
        config_rows(config, &mut facts);
    }
    tokenizer_rows(model.tokenizer.as_ref(), &mut facts);
    if let Some(digest) = &model.digest {
        facts.row(["weight digest", digest]);
    }
    let _ = write!(text, "{facts}");
    if !model.tensors.is_empty() {
        let _ = write!(text, "\n{}\n{}", groups("part", &model.groups), groups("stored as", &model.dtypes));
    }
    if !model.metadata.is_empty() {
        let mut table = Table::plain(2);
        model.metadata.iter().for_each(|(key, value)| table.row([key.clone(), shown(value)]));
        let _ = write!(text, "\nMetadata\n{table}");
    }
    if tensors {
        let mut table = Table::new(&[("tensor", Align::Left), ("type", Align::Left), ("shape", Align::Left)]);
        model.tensors.iter().for_each(|t| table.row([t.name.clone(), t.dtype.clone(), format!("{:?}", t.shape)]));
        let _ = write!(text, "\n{table}");
    }
    text
}

fn title(model: &ModelReport) -> String {
    let of = |key: &str| model.config.as_ref().and_then(|c| c[key].as_str()).map(str::to_string);
    let architecture = model.config.as_ref().and_then(|c| c["architectures"][0].as_str()).map(str::to_string);
    let architecture = architecture.or_else(|| of("model_type"));
    let named = model.metadata.get("general.architecture").and_then(Value::as_str).map(str::to_string);
    let kind = match model.format {
        "gguf" => "GGUF file",
        "safetensors" => "safetensors file",
        _ => "Hugging Face folder",
    };
    match architecture.or(named) {
        Some(architecture) => format!("{kind}, {architecture}"),
        None => kind.to_string(),
    }
}

/// The keys of a configuration that say how large a model is.
fn config_rows(config: &Value, facts: &mut Table) {
    let keys = [
        ("layers", "num_hidden_layers"),
        ("layers", "n_layer"),
        ("hidden size", "hidden_size"),
        ("hidden size", "n_embd"),
        ("feed-forward size", "intermediate_size"),
        ("feed-forward size", "n_inner"),
        ("attention heads", "num_attention_heads"),
        ("attention heads", "n_head"),
        ("key/value heads", "num_key_value_heads"),
        ("head size", "head_dim"),
        ("vocabulary", "vocab_size"),
        ("context", "max_position_embeddings"),
        ("context", "n_positions"),
        ("sliding window", "sliding_window"),
        ("rotary base", "rope_theta"),
        ("rotary scaling", "rope_scaling"),
        ("tied output head", "tie_word_embeddings"),
    ];
    for (name, key) in keys {
        match &config[key] {
            Value::Null => {}
            Value::Number(n) => facts.row([name.to_string(), n.as_u64().map_or_else(|| n.to_string(), count)]),
            other => facts.row([name.to_string(), shown(other)]),
        }
    }
}

fn tokenizer_rows(tokenizer: Option<&TokenizerReport>, facts: &mut Table) {
    let Some(tokenizer) = tokenizer else { return facts.row(["tokenizer", "none"]) };
    if let Some(problem) = &tokenizer.problem {
        return facts.row(["tokenizer", &format!("does not open: {problem}")]);
    }
    let token = |what: &str, token: &Option<String>| token.as_ref().map_or(String::new(), |t| format!(", {what} {t}"));
    let ends = token("begins with", &tokenizer.bos_token) + &token("ends with", &tokenizer.eos_token);
    facts.row(["tokenizer".to_string(), format!("{} tokens{ends}", count(tokenizer.vocab_size as u64))]);
    facts.row(["chat template", if tokenizer.chat_template { "yes" } else { "no" }]);
    if let Some(digest) = &tokenizer.digest {
        facts.row(["tokenizer digest", digest]);
    }
}

fn groups(what: &str, groups: &[Group]) -> Table {
    let right = Align::Right;
    let mut table =
        Table::new(&[(what, Align::Left), ("tensors", right), ("parameters", right), ("stored bytes", right)]);
    for group in groups {
        let tensors = count(group.tensors as u64);
        table.row([group.name.clone(), tensors, count(group.parameters), bytes(group.bytes)]);
    }
    table
}

/// A value on one line.
fn shown(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let mut line = text.lines().next().unwrap_or_default().to_string();
    if line.chars().count() > TEXT_SHOWN || line.len() < text.len() {
        line =
            format!("{} ... ({} characters)", line.chars().take(TEXT_SHOWN).collect::<String>(), text.chars().count());
    }
    line
}

fn shards_text(set: &ShardsReport) -> String {
    let (spec, stats) = (&set.manifest.spec, &set.manifest.statistics);
    let mut facts = Table::plain(2);
    let mut fact = |name: &str, value: String| facts.row([name.to_string(), value]);
    fact("teacher", format!("{}, weights {}", spec.teacher.name, spec.teacher.digest));
    if let Some(Source::Endpoint { dialect }) = &spec.source {
        fact("source", format!("a server's API ({dialect})"));
    }
    fact("tokenizer", spec.tokenizer_digest.clone());
    fact("corpus", spec.corpus_digest.clone());
    let padded = match spec.vocab_size.saturating_sub(spec.real_vocab_size) {
        0 => String::new(),
        surplus => format!(" and {surplus} of padding"),
    };
    fact("vocabulary", format!("{}{padded}", count(spec.real_vocab_size.into())));
    fact(
        "records",
        match &spec.record {
            Record::TopK { k, log_probs } => format!("top {k}, log-probabilities as {log_probs}"),
            Record::Sampled { draws, max_unique, seed } => {
                format!("{draws} draws, at most {max_unique} different, seed {seed}")
            }
            Record::Hidden { states, hidden_size, layers } => {
                format!("hidden states {layers:?} of {hidden_size} numbers as {}, the last one final", states.name())
            }
        },
    );
    match spec.tail_mass {
        TailMass::Captured => {}
        TailMass::Derived => fact("tail mass", "1 less the recorded probabilities".to_string()),
        TailMass::Unknown => fact("tail mass", "unknown: recorded probabilities scaled to sum to 1".to_string()),
    }
    let temperatures: Vec<String> = spec.temperatures.iter().map(f32::to_string).collect();
    fact("temperatures", if temperatures.is_empty() { "all".to_string() } else { temperatures.join(", ") });
    fact("context", format!("{} tokens", count(spec.context_length.into())));
    fact("tokens", format!("{}, of which {} count in the loss", count(stats.rows), count(stats.valid_rows)));
    fact("documents", count(stats.documents));
    let captured = spec.tail_mass == TailMass::Captured;
    let means = [
        // Where the source does not say the NLL of a token outside its record, the least that it can be is counted.
        (if captured { "teacher's mean NLL" } else { "mean NLL, at least" }, stats.mean_nll, "nats"),
        ("mean entropy", stats.mean_entropy, "nats"),
        ("mean tail mass", stats.mean_tail_mass, "outside the records"),
        ("mean different draws", stats.mean_unique, ""),
    ];
    for (name, mean, unit) in means {
        if let Some(mean) = mean {
            fact(name, format!("{mean:.4} {unit}").trim_end().to_string());
        }
    }
    fact(
        "size",
        format!("{} in {} files, {} a token", bytes(set.bytes), set.manifest.shards.len(), bytes(set.bytes_per_row)),
    );
    if let Some(v) = &set.verification {
        let share = 100.0 * v.in_record as f64 / v.valid_rows.max(1) as f64;
        let held = format!("every byte; the true next token is in {share:.1} % of the records, ");
        let off = match spec.record {
            Record::TopK { .. } => format!("{held}off by at most {:.1e} nats", v.worst_difference),
            Record::Sampled { .. } => format!("{held}hits {:.1} standard deviations from what is expected", v.sigmas),
            Record::Hidden { .. } => {
                "every byte; whether states fit their tokens only the teacher could tell".to_string()
            }
        };
        fact("verified", off);
    }
    format!("{}: shard set of version {}\n\n{facts}", set.path.display(), set.manifest.version)
}
