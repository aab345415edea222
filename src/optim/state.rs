//! What an update rule remembers of each parameter, beside the parameters' pages.

use super::{Group, Rule, page_name};
use crate::Result;
use crate::device::Slice;
use crate::graph::{DType, Graph, Shape, Store, Tensor};
use crate::ops::adamw_8bit::{BLOCK, CODE_WORDS};
use crate::ops::{self, Page, Page8Bit};
use std::collections::BTreeMap;

/// The external with both maps of 8-bit moments.
const MAPS: &str = "optim.maps";

/// The state of every page.
pub(super) struct State {
    rule: Rule,
    /// The state's pages for each page of parameters.
    pages: BTreeMap<String, Kept>,
    /// What a checkpoint holds, by tensor.
    pub tensors: Vec<(String, Shape)>,
}

/// The state of one page.
enum Kept {
    Nothing,
    One(String),
    Two([String; 2]),
    EightBit { codes: String, scales: String },
}

impl State {
    pub fn new(rule: Rule, store: &mut Store) -> Result<State> {
        if let Rule::AdamW { eight_bit: true, .. } = rule {
            let maps = ops::dynamic_maps();
            store.add(MAPS, [maps.len()], DType::F32)?;
            store.write(MAPS, &maps)?;
        }
        Ok(State { rule, pages: BTreeMap::new(), tensors: Vec::new() })
    }

    /// Gives the pages of a group, whose parameters are in the store, their state.
    pub fn allocate(&mut self, store: &mut Store, group: &Group) -> Result<()> {
        let matrices = group.params.iter().all(|(_, shape)| shape.len() >= 2);
        match self.rule {
            Rule::AdamW { eight_bit: true, .. } if matrices => self.allocate_8bit(store, group),
            Rule::AdamW { .. } => {
                let first = self.arena(store, group, "m")?;
                let second = self.arena(store, group, "v")?;
                let both = first.into_iter().zip(second).map(|(m, v)| Kept::Two([m, v]));
                self.keep(group, both.collect());
                Ok(())
            }
            Rule::Sgd { momentum: 0.0 } => {
                let pages = (0..).take_while(|i| store.contains(&page_name(group, *i))).map(|_| Kept::Nothing);
                self.keep(group, pages.collect());
                Ok(())
            }
            Rule::Lion { .. } | Rule::Sgd { .. } => {
                let pages = self.arena(store, group, "m")?.into_iter().map(Kept::One);
                self.keep(group, pages.collect());
                Ok(())
            }
        }
    }

    fn keep(&mut self, group: &Group, pages: Vec<Kept>) {
        self.pages.extend(pages.into_iter().enumerate().map(|(i, kept)| (page_name(group, i), kept)));
    }

    /// A number an element, `WHICH:NAME` in an arena like the parameters'; returns its pages.
    fn arena(&mut self, store: &mut Store, group: &Group, which: &str) -> Result<Vec<String>> {
        let tensors: Vec<_> = group.params.iter().map(|(name, shape)| (format!("{which}:{name}"), *shape)).collect();
        let pages = store.arena(&format!("{which}.{}", group.label), &tensors)?;
        self.tensors.extend(tensors);
        Ok(pages)
    }

    /// Codes and scales for each page, and their parts by tensor: `codes:NAME` and `scales:NAME`.
    fn allocate_8bit(&mut self, store: &mut Store, group: &Group) -> Result<()> {
        let mut pages: Vec<(Slice, Slice)> = Vec::new();
        let mut kept = Vec::new();
        for (name, shape) in &group.params {
            let own = store.slice(name)?;
            if own.offset == 0 {
                // The first tensor of the next page.
                let blocks = store.shape(&page_name(group, pages.len()))?.numel().div_ceil(BLOCK);
                let [codes, scales] = ["codes", "scales"].map(|what| format!("{what}.{}/{}", group.label, pages.len()));
                store.add(&codes, [blocks * CODE_WORDS], DType::U32)?;
                store.add(&scales, [blocks * 2], DType::F32)?;
                pages.push((store.slice(&codes)?, store.slice(&scales)?));
                kept.push(Kept::EightBit { codes, scales });
            }
            let Some((codes, scales)) = pages.last() else {
                return Err(crate::Error::internal(format!("`{name}` does not begin the arena {}", group.label)));
            };
            let (first, blocks) = (own.offset / (4 * BLOCK as u64), shape.numel().div_ceil(BLOCK));
            let parts = [("codes", codes, CODE_WORDS, DType::U32), ("scales", scales, 2, DType::F32)];
            for (what, page, words, dtype) in parts.map(|(what, page, words, dtype)| (what, page.clone(), words, dtype))
            {
                let (offset, bytes) = (first * 4 * words as u64, (4 * blocks * words) as u64);
                let (name, shape) = (format!("{what}:{name}"), Shape::from([blocks * words]));
                store.insert(&name, Slice { offset, bytes, ..page }, shape, dtype);
                self.tensors.push((name, shape));
            }
        }
        self.keep(group, kept);
        Ok(())
    }

    /// Records the update of a page of parameters with its gradients; `scalars` are norm and clip factor, and the step.
    /// Returns the parameters' new handle.
    pub fn record(
        &self,
        g: &mut Graph,
        store: &Store,
        page: &str,
        [param, grad]: [Tensor; 2],
        decay: bool,
        [norm, step]: [Tensor; 2],
    ) -> Result<Tensor> {
        let external =
            |g: &mut Graph, name: &str, dtype| Ok::<_, crate::Error>(g.external(name, store.shape(name)?, dtype));
        let kept = self.pages.get(page).ok_or_else(|| crate::Error::internal(format!("no state for page {page}")))?;
        Ok(match (kept, self.rule) {
            (Kept::Two([m, v]), _) => {
                let (m, v) = (external(g, m, DType::F32)?, external(g, v, DType::F32)?);
                ops::adamw(g, Page { param, grad, m, v, decay }, norm, step).param
            }
            (Kept::EightBit { codes, scales }, _) => {
                let (codes, scales) = (external(g, codes, DType::U32)?, external(g, scales, DType::F32)?);
                let maps = external(g, MAPS, DType::F32)?;
                ops::adamw_8bit(g, Page8Bit { param, grad, codes, scales, decay }, norm, step, maps).param
            }
            (Kept::One(m), Rule::Lion { .. }) => {
                let m = external(g, m, DType::F32)?;
                ops::lion(g, [param, grad, m], decay, norm, step)[0]
            }
            (Kept::One(m), _) => {
                let m = external(g, m, DType::F32)?;
                ops::sgd(g, [param, grad], Some(m), decay, norm, step)[0]
            }
            (Kept::Nothing, _) => ops::sgd(g, [param, grad], None, decay, norm, step)[0],
        })
    }
}
