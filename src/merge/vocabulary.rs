//! Which rows of each model's embeddings belong to the result's tokens.

use super::config::{MergeConfig, Reference, TokenRow, TokenizerSource};
use super::model::{Model, Reader};
use super::names::is_token_table;
use super::union::extended;
use crate::formats::Tokenizer;
use crate::yaml::keep;
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Rows that are read at once where they lie together.
const TOGETHER: usize = 64;

/// Where a row of the result's embedding comes from, for one model.
#[derive(Clone, Debug, PartialEq)]
enum Row {
    /// The mean of these rows of these models (one: that row).
    Of(Vec<(usize, usize)>),
    /// Nobody has the token.
    Zero,
    /// Padding: the mean of all the model's rows.
    Padding,
}

/// The result's vocabulary, where it is not simply every model's own.
#[derive(Debug)]
pub(super) struct Vocabulary {
    /// Whose tokenizer it is, or is made from.
    pub donor: usize,
    /// The tokenizer, where it is not the donor's as it is.
    pub made: Option<Tokenizer>,
    /// For each model the rows of the result.
    rows: Vec<Vec<Row>>,
}

impl Vocabulary {
    /// None where the configuration names no tokenizer.
    pub fn new(config: &MergeConfig, models: &[Model], base: usize) -> Result<Option<Vocabulary>> {
        let index = |reference: &Reference| models.iter().position(|model| model.reference == *reference);
        let donor = match &config.tokenizer {
            None => return Ok(None),
            Some(TokenizerSource::Base | TokenizerSource::Union) => base,
            Some(TokenizerSource::Model(reference)) => index(reference).unwrap_or(base),
        };
        let tokenizers = models.iter().map(|model| model.folder.tokenizer()).collect::<Result<Vec<_>>>()?;
        let counts = table_rows(models)?;
        let others = match config.tokenizer {
            Some(TokenizerSource::Union) => (0..models.len()).filter(|model| *model != donor).collect(),
            _ => Vec::new(),
        };
        let named: Vec<&str> = config.tokens.iter().map(|rule| rule.token.as_str()).collect();
        let made = extended(models, &tokenizers, &counts, donor, &others, &named)?;
        let tokenizer = made.as_ref().unwrap_or(&tokenizers[donor]);
        let size = tokenizer.vocab_size();
        let rows = match config.pad_to_multiple_of {
            Some(multiple) => size.next_multiple_of(multiple),
            None => counts[donor].max(size),
        };
        let own: Vec<Vec<Option<usize>>> =
            (0..models.len()).map(|model| own_rows(tokenizer, &tokenizers[model], counts[model], rows)).collect();
        let own = match made.is_some() || config.pad_to_multiple_of.is_some() {
            true => own,
            false => with_padding_of(donor, own, size, counts[donor]),
        };
        let base = config.base_model.is_some().then_some(base);
        let given = given_rows(config, models, &tokenizers, &counts, &own, tokenizer, base)?;
        let row = |model: usize, id: usize| match (given.get(&id), own[model][id]) {
            (Some((row, true)), _) | (Some((row, false)), None) => row.clone(),
            (_, Some(row)) => Row::Of(vec![(model, row)]),
            (None, None) => default_row(&own, base, id, id >= size),
        };
        let rows = (0..models.len()).map(|model| (0..rows).map(|id| row(model, id)).collect()).collect();
        Ok(Some(Vocabulary { donor, made, rows }))
    }

    /// Rows of the result's embeddings.
    pub fn rows(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }

    /// Values of a model's embedding in the result's order, from `start` on. `readers` are all models' tables.
    pub fn read(
        &self,
        model: usize,
        readers: &[Reader],
        columns: usize,
        padding: &[f32],
        start: usize,
        out: &mut [f32],
    ) -> Result<()> {
        let rows = &self.rows[model];
        let mut position = start;
        let mut rest = out;
        while !rest.is_empty() {
            let (row, column) = (position / columns, position % columns);
            let together = match &rows[row] {
                Row::Of(one) if one.len() == 1 => {
                    let follows = |i: &usize| rows.get(row + i) == Some(&Row::Of(vec![(one[0].0, one[0].1 + i)]));
                    1 + (1..TOGETHER).take_while(follows).count()
                }
                _ => 1,
            };
            let (part, others) = rest.split_at_mut((together * columns - column).min(rest.len()));
            match &rows[row] {
                Row::Of(sources) => read_mean(readers, sources, columns, column, part)?,
                Row::Zero => part.fill(0.0),
                Row::Padding => part.copy_from_slice(&padding[column..column + part.len()]),
            }
            position += part.len();
            rest = others;
        }
        Ok(())
    }

    /// The mean row of a model's table, for padding; empty where there is none to fill.
    pub fn padding(&self, model: usize, reader: &Reader, count: usize, columns: usize) -> Result<Vec<f32>> {
        if !self.rows[model].contains(&Row::Padding) {
            return Ok(Vec::new());
        }
        let (mut sums, mut values) = (vec![0.0f64; columns], vec![0.0; columns]);
        for row in 0..count {
            reader.read(row * columns, &mut values)?;
            sums.iter_mut().zip(&values).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        Ok(sums.into_iter().map(|sum| (sum / count.max(1) as f64) as f32).collect())
    }
}

fn read_mean(
    readers: &[Reader],
    sources: &[(usize, usize)],
    columns: usize,
    column: usize,
    out: &mut [f32],
) -> Result<()> {
    if let [(model, row)] = *sources {
        return readers[model].read(row * columns + column, out);
    }
    let share = 1.0 / sources.len() as f32;
    let mut values = vec![0.0; out.len()];
    out.fill(0.0);
    for (model, row) in sources {
        readers[*model].read(row * columns + column, &mut values)?;
        out.iter_mut().zip(&values).for_each(|(sum, x)| *sum += share * x);
    }
    Ok(())
}

/// Which of its `count` rows a model has for each of the result's.
fn own_rows(result: &Tokenizer, own: &Tokenizer, count: usize, rows: usize) -> Vec<Option<usize>> {
    let find = |id: usize| own.token_to_id(&result.id_to_token(u32::try_from(id).ok()?)?).map(|id| id as usize);
    (0..rows).map(|id| find(id).filter(|row| *row < count)).collect()
}

/// Where the donor's vocabulary is the result's, so are its rows behind its last token.
fn with_padding_of(
    donor: usize,
    mut own: Vec<Vec<Option<usize>>>,
    size: usize,
    count: usize,
) -> Vec<Vec<Option<usize>>> {
    own[donor].iter_mut().enumerate().take(count).skip(size).for_each(|(id, row)| *row = Some(id));
    own
}

/// What `tokens` says: by id the row, and whether it replaces that of a model that has the token.
fn given_rows(
    config: &MergeConfig,
    models: &[Model],
    tokenizers: &[Tokenizer],
    counts: &[usize],
    own: &[Vec<Option<usize>>],
    result: &Tokenizer,
    base: Option<usize>,
) -> Result<BTreeMap<usize, (Row, bool)>> {
    let mut given = BTreeMap::new();
    let mut wrong = Vec::new();
    for rule in &config.tokens {
        let at = || Error::file(&config.file).field(format!("`tokenizer.tokens.{}`", rule.token));
        let id = result.token_to_id(&rule.token).ok_or_else(|| Error::internal("a token that was not added"))?;
        let id = id as usize;
        let of = |reference: &Reference, row: &dyn Fn(usize) -> Option<usize>, what: String| {
            let model = models.iter().position(|model| model.reference == *reference);
            let found = model.and_then(|model| Some((model, row(model)?)));
            found
                .map(|found| Row::Of(vec![found]))
                .ok_or_else(|| at().expected(format!("{what} of `{reference}`")).found("none there").error())
        };
        let row = match &rule.row {
            None => Ok(default_row(own, base, id, false)),
            Some(TokenRow::Zero) => Ok(Row::Zero),
            Some(TokenRow::Model(reference)) => of(reference, &|m| own[m][id], "this token".into()),
            Some(TokenRow::Token(reference, token)) => {
                let find = |m: usize| tokenizers[m].token_to_id(token).map(|id| id as usize);
                of(reference, &|m| find(m).filter(|row| *row < counts[m]), format!("the token {token:?}"))
            }
            Some(TokenRow::Id(reference, id)) => {
                of(reference, &|m| (*id < counts[m]).then_some(*id), format!("a row {id}"))
            }
        };
        given.extend(keep(&mut wrong, row).map(|row| (id, (row, rule.force))));
    }
    Error::all(wrong)?;
    Ok(given)
}

/// mergekit's rule for a token that a model lacks.
fn default_row(own: &[Vec<Option<usize>>], base: Option<usize>, id: usize, padding: bool) -> Row {
    let having: Vec<(usize, usize)> = own.iter().enumerate().filter_map(|(m, rows)| Some((m, rows[id]?))).collect();
    match (&having[..], base.and_then(|base| Some((base, own[base][id]?)))) {
        ([], _) if padding => Row::Padding,
        ([], _) => Row::Zero,
        ([one], _) => Row::Of(vec![*one]),
        (_, Some(base)) => Row::Of(vec![base]),
        _ => Row::Of(having),
    }
}

fn table(model: &Model) -> Result<&[usize]> {
    let table = model.names().find(|name| is_token_table(name)).and_then(|name| model.stored(name));
    let Some(table) = table else {
        let complaint = model.reference.complaint().expected("an embedding of tokens").found("none");
        return complaint.help("without one, leave `tokenizer_source` out").err();
    };
    model.shape(table)
}

/// How many rows each model's table has; their lengths must be the same, as rows may go from one to the other.
fn table_rows(models: &[Model]) -> Result<Vec<usize>> {
    let shapes = models.iter().map(table).collect::<Result<Vec<_>>>()?;
    let rest = |shape: &[usize]| shape.get(1..).unwrap_or_default().to_vec();
    let odd = shapes.iter().zip(models).find(|(shape, _)| rest(shape) != rest(shapes[0]));
    if let Some((shape, model)) = odd {
        let expected = format!("embeddings of {:?} values, as those of `{}`", rest(shapes[0]), models[0].reference);
        return model.reference.complaint().expected(expected).found(format!("{:?}", rest(shape))).err();
    }
    Ok(shapes.iter().map(|shape| shape.first().copied().unwrap_or(0)).collect())
}
