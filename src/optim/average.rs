//! A moving average of the trained parameters, updated after each step on the device.

use super::{Group, page_name};
use crate::Result;
use crate::device::Slice;
use crate::graph::{DType, Graph, Shape, Store, Tensor};
use crate::ops;

/// Bytes exchanged at once.
const PIECE: u64 = 16 << 20;

/// Where the average of each page lies.
pub(super) struct Average {
    /// Pages of parameters and of their average.
    pages: Vec<[String; 2]>,
    /// The average by tensor: `ema:NAME`.
    pub tensors: Vec<(String, Shape)>,
}

impl Average {
    /// An average that starts at the parameters' present values.
    pub fn new(store: &mut Store, groups: &[Group]) -> Result<Average> {
        let mut average = Average { pages: Vec::new(), tensors: Vec::new() };
        for group in groups {
            let tensors: Vec<_> = group.params.iter().map(|(name, shape)| (format!("ema:{name}"), *shape)).collect();
            for (i, own) in store.arena(&format!("ema.{}", group.label), &tensors)?.into_iter().enumerate() {
                let param = page_name(group, i);
                store.device().copy(&store.slice(&param)?, &store.slice(&own)?)?;
                average.pages.push([param, own]);
            }
            average.tensors.extend(tensors);
        }
        Ok(average)
    }

    /// Records what follows the update of a page whose parameters are now `updated`.
    pub fn record(&self, g: &mut Graph, store: &Store, page: &str, updated: Tensor, decay: f64) -> Result<()> {
        for [_, own] in self.pages.iter().filter(|[param, _]| param == page) {
            let mean = g.external(own, store.shape(own)?, DType::F32);
            ops::ema(g, mean, updated, (1.0 - decay) as f32);
        }
        Ok(())
    }

    /// Exchanges the values of parameters and average, piece by piece through a buffer of [`PIECE`] bytes at most.
    pub fn exchange(&self, store: &Store) -> Result<()> {
        let device = store.device();
        for [param, own] in &self.pages {
            let (param, own) = (store.slice(param)?, store.slice(own)?);
            let aside = device.alloc("an exchange with the weights' average", PIECE.min(param.bytes))?.whole();
            for at in (0..param.bytes).step_by(PIECE as usize) {
                let bytes = PIECE.min(param.bytes - at);
                let piece = |of: &Slice| Slice { offset: of.offset + at, bytes, ..of.clone() };
                let (param, own, aside) = (piece(&param), piece(&own), Slice { bytes, ..aside.clone() });
                device.copy(&param, &aside)?;
                device.copy(&own, &param)?;
                device.copy(&aside, &own)?;
            }
        }
        Ok(())
    }
}
