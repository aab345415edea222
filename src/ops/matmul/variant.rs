//! Which kernel computes a product on a GPU: a rule on its shape and on what the device can do. Every choice gives the same
//! result up to the order of sums (and the rounding of factors that was asked for).

use super::{ALIGNED, Layout, Matmul, SHADER};
use crate::device::{Caps, Cooperative, Precision, Shader};
use crate::formats::Dtype;

/// Rows up to which a product is one pass over B.
const FEW_ROWS: usize = 4;
/// A side of the result from which cooperative matrices are worth their tiles.
const COOPERATIVE_FROM: usize = 32;

/// A kernel for one product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    /// `matmul.wgsl`: one pass over B.
    FewRows,
    /// `matmul.wgsl`: tiles of this side, element by element.
    Single(usize),
    /// `matmul_aligned.wgsl`: tiles of this side, four elements at a time.
    Fours(usize),
    /// `matmul_cooperative.wgsl`: tiles of several panels.
    Cooperative(Cooperative),
}

impl Variant {
    /// The variant for a product of [batch, m, n, k]; `aligned`: it can be loaded and stored in fours. None if no kernel reads
    /// what B is in memory.
    pub(super) fn of(op: &Matmul, [batch, m, n, k]: [usize; 4], aligned: bool, caps: &Caps) -> Option<Variant> {
        let (few, fours) = (op.layout == Layout::NT && m <= FEW_ROWS, aligned && caps.tiles.fours);
        if op.stored != Dtype::F32 && (few || !fours) {
            return None;
        }
        if few {
            return Some(Variant::FewRows);
        }
        let tiles = |side: usize| batch * m.div_ceil(side) * n.div_ceil(side);
        // Four tiles of half the side do as much: where fewer than three of them have work, the larger one wastes its time.
        let larger = |side: usize, from: usize| {
            let filled = 3 * tiles(side) <= tiles(side / 2) || from == 0;
            filled && tiles(side) >= from
        };
        let choice = caps.tiles;
        let side = if larger(64, choice.middle_from) { 64 } else { 32 };
        if !fours {
            return Some(Variant::Single(side));
        }
        let large = m.min(n).min(k) >= COOPERATIVE_FROM;
        if let (Precision::F16, Some(cooperative), true) = (op.precision, caps.cooperative, large) {
            return Some(Variant::Cooperative(cooperative));
        }
        Some(Variant::Fours(if larger(128, choice.large_from) { 128 } else { side }))
    }

    /// Workgroups.
    pub(super) fn groups(self, [batch, m, n, _]: [usize; 4]) -> usize {
        match self {
            Variant::FewRows => batch * n.div_ceil(8),
            Variant::Single(side) | Variant::Fours(side) => batch * m.div_ceil(side) * n.div_ceil(side),
            Variant::Cooperative(cooperative) => {
                let [down, across] = cooperative.tile().map(|side| side as usize);
                batch * m.div_ceil(down) * n.div_ceil(across)
            }
        }
    }

    /// File, entry point and constants.
    pub(super) fn kernel(self, op: &Matmul, caps: &Caps) -> (Shader, &'static str, Vec<(&'static str, String)>) {
        let number = |name, value: usize| (name, format!("{value}u"));
        let layout = number("LAYOUT", op.layout as usize);
        let scaled = number("SCALED", op.scaled.map_or(0, |factor| factor as usize));
        let halves =
            number("HALVES", [Dtype::F32, Dtype::F16, Dtype::Bf16].iter().position(|&t| t == op.stored).unwrap_or(0));
        match self {
            Variant::FewRows => (SHADER, "few_rows", vec![layout]),
            Variant::Single(side) => (SHADER, "tiles", vec![layout, number("SIDE", side / 4)]),
            Variant::Fours(side) => {
                let block = if side == 128 { 2 } else { 1 };
                let mut constants =
                    vec![layout, scaled, halves, number("SIDE", side / 4 / block), number("BLOCK", block)];
                if op.precision == Precision::F16 && caps.f16 {
                    constants.extend([("Strip", "vec4<f16>".to_owned()), number("NARROW", 1)]);
                }
                (ALIGNED, "tiles", constants)
            }
            #[cfg(target_family = "wasm")]
            Variant::Cooperative(_) => unreachable!("a browser has no cooperative matrices"),
            #[cfg(not(target_family = "wasm"))]
            Variant::Cooperative(Cooperative { edge, panels: [down, across], threads }) => {
                let matrix = |kind, role| format!("coop_mat{edge}x{edge}<{kind}, {role}>");
                let mut constants =
                    vec![layout, scaled, halves, number("EDGE", edge as usize), number("THREADS", threads as usize)];
                constants.extend([number("PANELS_DOWN", down as usize), number("PANELS_ACROSS", across as usize)]);
                constants.extend([("Left", matrix("f16", "A")), ("Right", matrix("f16", "B"))]);
                constants.push(("Sum", matrix("f32", "C")));
                (super::COOPERATIVE, "tiles", constants)
            }
        }
    }

    /// Whether the kernel knows scales.
    pub(super) fn scales(self) -> bool {
        matches!(self, Variant::Fours(_) | Variant::Cooperative(_))
    }
}
