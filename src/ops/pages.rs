//! What the optimisers' kernels share: one pass over a page of parameters, cut where a binding must end.

use super::grad_norm::{bytes_of, pieces};
use crate::device::{Bind, Caps, Dispatch, Shader, Slice, grid};

/// Elements one rayon task of a twin handles.
pub(super) const CHUNK: usize = 1 << 14;

/// One dispatch for each piece of a page of `elements` f32: an invocation handles one element. `binds` answers a
/// piece's first byte and its bytes; the uniform block is the piece's length and `params`.
pub(super) fn dispatches(
    (shader, entry): (Shader, &'static str),
    elements: usize,
    params: &[u32],
    caps: &Caps,
    binds: impl Fn(u64, u64) -> Vec<Bind>,
) -> Vec<Dispatch> {
    let dispatch = |piece: std::ops::Range<usize>| {
        let (at, bytes) = bytes_of(&piece);
        Dispatch {
            shader,
            entry,
            constants: Vec::new(),
            binds: binds(at, bytes),
            params: [&[piece.len() as u32], params].concat(),
            groups: grid(piece.len().div_ceil(256), caps),
        }
    };
    pieces(elements, (Slice::ALIGN / 4) as usize, caps).map(dispatch).collect()
}

/// Binds outputs 0..`updated` in the piece's range, then the whole inputs that follow them up to `inputs`.
pub(super) fn update(updated: usize, inputs: usize) -> impl Fn(u64, u64) -> Vec<Bind> {
    move |at, bytes| {
        let ranges = (0..updated).map(|i| Bind::OutRange(i, at, bytes));
        ranges.chain((updated..inputs).map(Bind::In)).collect()
    }
}
