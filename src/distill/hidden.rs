//! The losses on hidden states of one run: which tensors of both models they compare, their projections, and how they
//! are recorded into a training graph.

use super::layer_map::{LayerMapping, kept_layers};
use super::recipe::{Function, Hidden, HiddenKind, LossFunction, Recipe, Student};
use crate::formats::{Dtype, TensorSpec, write_safetensors};
use crate::graph::{Graph, Store, Tensor};
use crate::models::{DecoderConfig, Taps, Traced};
use crate::nn::{self, ParamSpec, Params};
use crate::ops::{self, Ranges};
use crate::random::SplitMix64;
use crate::{Error, Result};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What hidden losses can see of a teacher.
#[derive(Debug, Clone)]
pub struct TeacherStates {
    /// Its place in the recipe, from 0.
    pub number: usize,
    /// Its name, for messages.
    pub place: String,
    /// Blocks.
    pub layers: usize,
    /// Width of a state.
    pub hidden_size: usize,
    /// The states that are there; `None` for a live teacher, which has all.
    pub stored: Option<Vec<usize>>,
    /// Channels of queries, and of keys and values, of a live teacher.
    pub channels: Option<[usize; 2]>,
}

impl TeacherStates {
    /// Those of a teacher that runs beside the student.
    pub fn live(number: usize, place: &str, config: &DecoderConfig) -> TeacherStates {
        TeacherStates {
            number,
            place: place.to_owned(),
            layers: config.num_hidden_layers,
            hidden_size: config.hidden_size,
            stored: None,
            channels: Some(channels(config)),
        }
    }
}

/// Channels of queries, and of keys and values.
fn channels(config: &DecoderConfig) -> [usize; 2] {
    [config.num_attention_heads, config.num_key_value_heads].map(|heads| heads * config.head_dim)
}

/// One loss with the states it compares.
#[derive(Debug, Clone, PartialEq)]
struct Term {
    /// Its number in `loss_functions`.
    loss: usize,
    kind: HiddenKind,
    pairs: Vec<[usize; 2]>,
    /// Of `hs_relation`.
    heads: usize,
}

/// All hidden losses of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HiddenLosses {
    terms: Vec<Term>,
    /// Pairs whose student's state goes through a projection first, from width to width.
    projected: BTreeSet<[usize; 2]>,
    widths: [usize; 2],
    /// The teacher's place in the recipe, which its projections are named by.
    teacher: usize,
}

/// One pair's loss as recorded.
#[derive(Debug, Clone, Copy)]
pub struct PairLoss {
    /// The loss's number in `loss_functions`.
    pub loss: usize,
    /// The value of each row, [N].
    pub rows: Tensor,
    /// What the row weights are to be multiplied by: a loss is the mean over its pairs.
    pub share: f64,
}

impl HiddenLosses {
    /// Finds what the recipe's hidden losses compare. Every problem is listed in one error.
    pub fn resolve(recipe: &Recipe, student: &DecoderConfig, teacher: &TeacherStates) -> Result<HiddenLosses> {
        let widths = [student.hidden_size, teacher.hidden_size];
        let mut found = HiddenLosses { widths, teacher: teacher.number, ..HiddenLosses::default() };
        let (mut problems, mut missing) = (Vec::new(), BTreeSet::new());
        for (loss, hidden) in hidden_losses(&recipe.loss_functions) {
            let name = hidden.kind.name();
            let pairs = match mapped(recipe, hidden, student.num_hidden_layers, teacher.layers) {
                Ok(pairs) => pairs,
                Err(reasons) => {
                    problems.extend(reasons.into_iter().map(|reason| format!("{name}: {reason}")));
                    continue;
                }
            };
            if let Some(stored) = &teacher.stored {
                missing.extend(pairs.iter().map(|pair| pair[1]).filter(|state| !stored.contains(state)));
            }
            let mut heads = 0;
            if hidden.kind == HiddenKind::Relation {
                match relation_heads(hidden, &pairs, student, teacher) {
                    Ok(number) => heads = number,
                    Err(reason) => problems.push(format!("{name}: {reason}")),
                }
            }
            let direct = matches!(hidden.kind, HiddenKind::Mse | HiddenKind::Cosine);
            if direct && (recipe.force_hidden_state_projection || student.hidden_size != teacher.hidden_size) {
                found.projected.extend(&pairs);
            }
            found.terms.push(Term { loss, kind: hidden.kind, pairs, heads });
        }
        if !missing.is_empty() {
            let list = missing.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
            problems.push(format!("the shards hold no state {list} of the teacher"));
        }
        if problems.is_empty() {
            return Ok(found);
        }
        let complaint = Error::at(&teacher.place)
            .field("hidden losses")
            .expected(format!(
                "states of {} blocks of the student and {} of the teacher",
                student.num_hidden_layers, teacher.layers
            ))
            .found(problems.join("; "));
        let all: Vec<String> = missing.iter().map(usize::to_string).collect();
        match all.is_empty() {
            true => complaint
                .help("states are numbered from 0, the embeddings, to the number of blocks, the final state")
                .err(),
            false => complaint.help(format!("capture them with `--kind hidden --layers {}`", all.join(","))).err(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Inner tensors wanted of the student (side 0) or the teacher (side 1).
    fn taps(&self, side: usize) -> Taps {
        let of = |relations: bool| -> Vec<usize> {
            let terms = self.terms.iter().filter(|term| (term.kind == HiddenKind::Relation) == relations);
            let all: BTreeSet<usize> = terms.flat_map(|term| term.pairs.iter().map(|pair| pair[side])).collect();
            all.into_iter().collect()
        };
        // State i is what block i puts out, counted from 1; its attention has the number i - 1.
        Taps { states: of(false), relations: of(true).into_iter().map(|i| i - 1).collect() }
    }

    /// Inner tensors wanted of the student.
    pub fn student_taps(&self) -> Taps {
        self.taps(0)
    }

    /// Inner tensors wanted of the teacher.
    pub fn teacher_taps(&self) -> Taps {
        self.taps(1)
    }

    /// The projections' parameters, `projection.S-T.weight` [teacher's width, student's width] for the pair of states S
    /// and T; those to a second teacher `projection2.S-T.weight`, and so on.
    pub fn projections(&self) -> Vec<ParamSpec> {
        let [student, teacher] = self.widths;
        let spec = |pair: &[usize; 2]| ParamSpec {
            name: format!("{}.weight", self.projection_name(*pair)),
            shape: [teacher, student].into(),
        };
        self.projected.iter().map(spec).collect()
    }

    /// Writes the projections' first values: Xavier-uniform (Glorot & Bengio 2010), which is what DistillKit takes.
    pub fn initialise(&self, store: &Store, seed: u64) -> Result<()> {
        // Another stream than a random student's of the same seed, and than other teachers'.
        let mut random = SplitMix64::new((seed ^ 0x7072_6f6a_6563_7431).wrapping_add(self.teacher as u64));
        let bound = (6.0 / (self.widths[0] + self.widths[1]) as f64).sqrt();
        for spec in self.projections() {
            let values: Vec<f32> =
                (0..spec.shape.numel()).map(|_| (bound * (2.0 * random.uniform() - 1.0)) as f32).collect();
            store.write(&spec.name, &values)?;
        }
        Ok(())
    }

    fn projection_name(&self, [student, teacher]: [usize; 2]) -> String {
        let number = if self.teacher == 0 { String::new() } else { (self.teacher + 1).to_string() };
        format!("projection{number}.{student}-{teacher}")
    }

    /// Records every loss from the tensors that both models' taps gave. `weights` [N] are 0 for rows that do not count.
    pub fn record(
        &self,
        g: &mut Graph,
        student: &Traced,
        teacher: &Traced,
        ranges: Ranges,
        weights: Tensor,
    ) -> Result<Vec<PairLoss>> {
        let mut recorded = Vec::new();
        // A pair's projection is shared by its losses, and so is the projected state.
        let mut projected: Vec<([usize; 2], Tensor)> = Vec::new();
        for term in &self.terms {
            for &pair in &term.pairs {
                if term.kind == HiddenKind::Relation {
                    let (a, b) = (relation(student, pair[0])?, relation(teacher, pair[1])?);
                    let share = 1.0 / (3 * term.pairs.len()) as f64;
                    for (a, b) in a.into_iter().zip(b) {
                        let rows = ops::relation_kl(g, a, b, ranges, term.heads);
                        recorded.push(PairLoss { loss: term.loss, rows, share });
                    }
                    continue;
                }
                let (mut h, t) = (state(student, pair[0])?, state(teacher, pair[1])?);
                if term.kind != HiddenKind::Cka && self.projected.contains(&pair) {
                    h = match projected.iter().find(|(known, _)| *known == pair) {
                        Some((_, h)) => *h,
                        None => {
                            let trained =
                                Params { prefix: "", trainable: &|_| true, lora: None, merged: None, packed: None };
                            let h =
                                nn::linear(g, &trained, &self.projection_name(pair), h, self.widths[1], false, None);
                            projected.push((pair, h));
                            h
                        }
                    };
                }
                let rows = match term.kind {
                    HiddenKind::Mse => ops::hidden_mse(g, h, t),
                    HiddenKind::Cosine => ops::hidden_cosine(g, h, t),
                    HiddenKind::Cka | HiddenKind::Relation => ops::cka(g, h, t, weights),
                };
                recorded.push(PairLoss { loss: term.loss, rows, share: 1.0 / term.pairs.len() as f64 });
            }
        }
        Ok(recorded)
    }
}

/// Writes projections beside the student, never into it: `projections.safetensors` in `folder`, if there are any.
pub async fn write_projections(folder: &Path, store: &Store, projections: &[ParamSpec]) -> Result<()> {
    if projections.is_empty() {
        return Ok(());
    }
    let spec = |p: &ParamSpec| TensorSpec { name: p.name.clone(), dtype: Dtype::F32, shape: p.shape.to_vec() };
    let specs: Vec<TensorSpec> = projections.iter().map(spec).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&folder.join("projections.safetensors"), &specs, &metadata, async |spec| {
        Ok(Cow::Owned(store.read_f32(&spec.name).await?))
    })
    .await
}

fn state(traced: &Traced, index: usize) -> Result<Tensor> {
    let found = traced.states.iter().find(|(i, _)| *i == index);
    found.map(|(_, t)| *t).ok_or_else(|| Error::internal(format!("state {index} was not tapped")))
}

fn relation(traced: &Traced, index: usize) -> Result<[Tensor; 3]> {
    let found = traced.relations.iter().find(|(block, _)| block + 1 == index);
    found.map(|(_, qkv)| *qkv).ok_or_else(|| Error::internal(format!("attention of block {index} was not tapped")))
}

/// The hidden losses of a recipe with their numbers.
pub fn hidden_losses(losses: &[LossFunction]) -> impl Iterator<Item = (usize, &Hidden)> {
    losses.iter().enumerate().filter_map(|(i, loss)| match &loss.function {
        Function::Hidden(hidden) => Some((i, hidden)),
        _ => None,
    })
}

/// The pairs that one loss compares: by its own map, else the recipe's, else each kept layer's with its own.
fn mapped(recipe: &Recipe, hidden: &Hidden, student: usize, teacher: usize) -> Result<Vec<[usize; 2]>, Vec<String>> {
    let pairs = match (hidden.layer_mapping.as_ref().or(recipe.layer_mapping.as_ref()), &recipe.model) {
        (Some(mapping), _) => mapping.pairs(student, teacher)?,
        (None, Student::Layers { layers, .. }) => {
            let own = kept_layers(layers, teacher);
            // The layers of a deeper model than this teacher do not name its own.
            let as_written = own.iter().map(|pair| pair.map(|index| index as i64)).collect();
            LayerMapping::Pairs(as_written).pairs(student, teacher)?
        }
        (None, _) => {
            let reason = "no `layer_mapping`: `last` compares the final states, `uniform` all but the embeddings, \
                          [[student, teacher], ...] what it lists";
            return Err(vec![reason.to_owned()]);
        }
    };
    let embeddings = pairs.iter().filter(|pair| hidden.kind == HiddenKind::Relation && pair.contains(&0));
    let problems: Vec<String> = embeddings
        .map(|[s, t]| format!("[{s}, {t}]: state 0 is the embeddings, which have no attention; blocks count from 1"))
        .collect();
    if problems.is_empty() { Ok(pairs) } else { Err(problems) }
}

/// The heads that both sides' queries, keys and values are cut into.
fn relation_heads(
    hidden: &Hidden,
    pairs: &[[usize; 2]],
    student: &DecoderConfig,
    teacher: &TeacherStates,
) -> Result<usize, String> {
    let Some(theirs) = teacher.channels else {
        let blocks: Vec<String> = pairs.iter().map(|pair| pair[1].to_string()).collect();
        return Err(format!("attention of blocks {} is not stored; it takes a live teacher", blocks.join(", ")));
    };
    let all = [channels(student), theirs].concat();
    let fits = |heads: usize| all.iter().all(|channels| channels.is_multiple_of(heads));
    match hidden.relation_heads {
        Some(heads) if !fits(heads) => Err(format!("`relation_heads` {heads} does not divide the channels {all:?}")),
        Some(heads) => Ok(heads),
        None => (1..=student.num_attention_heads).rev().find(|&heads| fits(heads)).ok_or_else(|| "no heads".to_owned()),
    }
}
