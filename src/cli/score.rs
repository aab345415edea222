//! `potstill score`: JSON lines in, JSON lines with log-probabilities out.

use super::args::{Cli, ScoreArgs};
use super::output::print;
use super::{interrupt, open_model};
use crate::formats::Tokenizer;
use crate::score::{Scored, Scorer};
use crate::tuning::tuned;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, stdin};

pub(super) fn run(cli: &Cli, args: &ScoreArgs) -> Result<()> {
    let device = tuned(pollster::block_on(cli.device.open())?);
    let model = open_model(&args.model)?;
    // A folder without a tokenizer can still score token ids.
    let tokenizer = model.tokenizer();
    let vocabulary = tokenizer.as_ref().map_or(usize::MAX, Tokenizer::vocab_size);
    let mut scorer = Scorer::new(&device, &model, vocabulary, args.top)?;
    let (place, reader): (String, Box<dyn BufRead>) = match &args.file {
        Some(path) => {
            let file = File::open(path).map_err(Error::io("read", path))?;
            (path.display().to_string(), Box::new(BufReader::new(file)))
        }
        None => ("standard input".into(), Box::new(stdin().lock())),
    };
    for (number, line) in reader.lines().enumerate() {
        interrupt::check()?;
        let place = format!("{place}:{}", number + 1);
        let line = line.map_err(Error::io("read", &place))?;
        if line.trim().is_empty() {
            continue;
        }
        let ids = input_ids(&line, &place, &tokenizer)?;
        let scored = scorer.score(&ids).map_err(|error| error.inside(&place))?;
        print(&format!("{}\n", output(&ids, &scored, args.top > 0)))?;
    }
    Ok(())
}

fn input_ids(line: &str, place: &str, tokenizer: &Result<Tokenizer>) -> Result<Vec<u32>> {
    let row: Map<String, Value> = serde_json::from_str(line).map_err(|e| {
        let help = "write one object a line, with `text` or `input_ids`";
        Error::at(place).expected("a JSON object").found(e).help(help).error()
    })?;
    match (row.get("text"), row.get("input_ids")) {
        (Some(Value::String(text)), None) => match tokenizer {
            Ok(tokenizer) => tokenizer.encode(text, true),
            Err(error) => {
                let help = "give `input_ids` instead of `text`";
                Error::at(place).field("`text`").expected("a tokenizer beside the model").found(error).help(help).err()
            }
        },
        (None, Some(Value::Array(ids))) => {
            let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
            ids.iter().map(id).collect::<Option<_>>().ok_or_else(|| {
                let place =
                    Error::at(place).field("`input_ids`").expected("a list of token ids").found("something else");
                place.help("write whole numbers from 0, as in [12, 5, 7]").error()
            })
        }
        _ => Error::at(place)
            .expected("either `text` (a string) or `input_ids` (a list)")
            .found("neither, or both")
            .help("name the field that holds the text `text`")
            .err(),
    }
}

fn output(ids: &[u32], scored: &Scored, top: bool) -> Value {
    let mut row = json!({ "input_ids": ids, "logprobs": scored.log_probs });
    if top {
        row["top_logprobs"] = json!(scored.top);
    }
    row
}
