//! The tensors of a token batch.

use crate::graph::{DType, Graph, Shape, Store, Tensor};
use crate::ops::{Ranges, Segments};
use std::num::NonZeroU32;

/// A token batch's tensors on the device; all external, written by whoever packs the batch. N rows in all.
#[derive(Debug, Clone)]
pub struct BatchInputs {
    /// Token ids, u32 [N].
    pub tokens: Tensor,
    /// Position of each row in its document, u32 [N].
    pub positions: Tensor,
    /// Which rows may see which.
    pub ranges: Ranges,
    /// Rows sorted by token, for the embedding's gradient; absent where nothing is trained.
    pub segments: Option<Segments>,
    /// Positions are below this.
    pub context: usize,
    prefix: String,
}

impl BatchInputs {
    /// Declares the inputs of a batch of `n` rows as externals `PREFIX.tokens`, `PREFIX.positions`,
    /// `PREFIX.query_range` and, with `train`, those that only gradients need: `PREFIX.key_range`,
    /// `PREFIX.segment_order`, `PREFIX.segment_start`, `PREFIX.segment_token`.
    pub fn declare(g: &mut Graph, prefix: &str, n: usize, context: usize, train: bool) -> BatchInputs {
        let mut input = |name: &str, shape: Shape| g.external(&format!("{prefix}.{name}"), shape, DType::U32);
        let key = train.then(|| input("key_range", [n, 2].into()));
        let segments = train.then(|| segments(g, prefix, "segment", n));
        let mut input = |name: &str, shape: Shape| g.external(&format!("{prefix}.{name}"), shape, DType::U32);
        BatchInputs {
            tokens: input("tokens", [n].into()),
            positions: input("positions", [n].into()),
            ranges: Ranges { query: input("query_range", [n, 2].into()), key },
            segments,
            context,
            prefix: prefix.to_owned(),
        }
    }

    /// Which rows may see which under a sliding window: externals `PREFIX.query_range.WINDOW` and, in training,
    /// `PREFIX.key_range.WINDOW`, which exist only if a model asks. A window that no context exceeds is none.
    pub fn windowed(&self, g: &mut Graph, window: Option<usize>) -> Ranges {
        let Some(window) = window.filter(|&window| window < self.context) else { return self.ranges };
        let mut input = |name: &str| {
            let name = format!("{}.{name}.{window}", self.prefix);
            g.external(&name, self.ranges.query.shape, DType::U32)
        };
        Ranges { query: input("query_range"), key: self.ranges.key.map(|_| input("key_range")) }
    }

    /// Rows sorted by position, for the gradient of learned positions: externals `PREFIX.position_order`,
    /// `PREFIX.position_start`, `PREFIX.position_token`. Absent where nothing is trained.
    pub fn position_segments(&self, g: &mut Graph) -> Option<Segments> {
        self.segments.map(|_| segments(g, &self.prefix, "position", self.tokens.shape.numel()))
    }
}

fn segments(g: &mut Graph, prefix: &str, what: &str, n: usize) -> Segments {
    let mut input = |name: &str, n: usize| g.external(&format!("{prefix}.{what}_{name}"), [n], DType::U32);
    Segments { order: input("order", n), starts: input("start", n + 1), tokens: input("token", n) }
}

/// The sliding windows whose ranges `store` has room for under `prefix` ([`BatchInputs::windowed`]).
pub fn windows_in(store: &Store, prefix: &str) -> Vec<NonZeroU32> {
    let start = format!("{prefix}.query_range.");
    store.names().filter_map(|name| name.strip_prefix(&start)?.parse().ok()).collect()
}
