//! The language-model head together with what follows it: losses, evaluation, capture of a teacher's distributions.
//! All work on a few rows of logits at a time, so that no tensor of all rows by the whole vocabulary exists.
//!
//! Row t of the hidden states predicts token t + 1. A row's `weight` says how much it counts in the step's loss: 0
//! where there is no label (padding, prompts, a document's last token), else the loss's weight in the recipe divided by
//! the number of counted rows of the whole optimiser step. `docs/losses.md` has the formulas.

mod capture;
mod divergence;
mod evaluate;
mod fidelity;
mod fused;
mod head;

pub use capture::{Capture, Record, capture_head};
pub use divergence::{Divergent, Target, Temperature};
pub use evaluate::{Against, Beside, Evaluation, evaluate_head};
pub use fidelity::{FidelityRows, fidelity_head};
pub use fused::{Fused, Loss, fused_head};
pub use head::{Head, Live, chunk_rows};
