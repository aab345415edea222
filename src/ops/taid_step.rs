//! How TAID's target moves towards the teacher: by how much the loss has fallen (Shing et al. 2025, arXiv 2501.16937,
//! section 3.2).

use super::shader;
use crate::Result;
use crate::device::{Bind, Caps, Dispatch, Real, Shader};
use crate::graph::{CpuIo, DType, Graph, Node, Op, Tensor, Twin};

pub(crate) const SHADER: Shader = shader!("taid_step");
/// Added to the loss that is divided by.
const LEAST: f64 = 1e-15;
/// Momentum below minus this counts as that, so that no exponential overflows.
const MOST: f64 = 80.0;

/// Inputs: t, state, history (each updated in place), losses, where, the least t.
#[derive(Debug, Clone, Copy)]
pub struct TaidStep {
    /// The greatest t.
    pub end: f32,
    /// How far a step moves t.
    pub alpha: f32,
    /// The momentum's decay.
    pub beta: f32,
}

/// After a step at which the loss was J = losses\[at\], the previous one J':
///
/// m <- beta m + (1 - beta) (J' - J) / (J' + 1e-15), t <- min(end, max(least, t + alpha sigmoid(m) (1 - t))),
///
/// in place of `t` \[1\] and `state` \[2\], which holds m and J'; while J' is 0, as at first, neither m nor t moves by it.
/// The t that the step had is left in history\[at\]. `losses` and `history` are rings of one length, `at` u32 \[1\] is below
/// that; `least` \[1\] is t's lower bound. Returns the new handles of t, state and history.
pub fn taid_step(
    g: &mut Graph,
    rule: TaidStep,
    [t, state, history]: [Tensor; 3],
    losses: Tensor,
    at: Tensor,
    least: Tensor,
) -> [Tensor; 3] {
    let ones = [t, at, least].iter().all(|tensor| tensor.shape.numel() == 1);
    assert!(ones && state.shape.numel() == 2 && history.shape.numel() == losses.shape.numel(), "taid_step");
    let outputs = [t, state, history].map(|tensor| (tensor.shape, DType::F32));
    g.record(rule, &[t, state, history, losses, at, least], outputs)
}

impl Op for TaidStep {
    fn name(&self) -> &'static str {
        "taid_step"
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        (0..3).map(|i| (i, i)).collect()
    }

    fn dispatches(&self, node: &Node<'_>, _: &Caps) -> Result<Vec<Dispatch>> {
        let ring = node.outputs[2].shape.numel() as u32;
        Ok(vec![Dispatch {
            shader: SHADER,
            entry: "main",
            constants: Vec::new(),
            binds: (0..3).map(Bind::Out).chain((3..6).map(Bind::In)).collect(),
            params: vec![ring, self.end.to_bits(), self.alpha.to_bits(), self.beta.to_bits()],
            groups: [1, 1, 1],
        }])
    }
}

impl Twin for TaidStep {
    fn run<F: Real>(&self, io: &mut CpuIo<'_, F>) {
        let (t, state, history) = (io.out(0), io.out(1), io.out(2));
        let (losses, at, least) = (io.f(3), io.u(4)[0] as usize, io.f(5)[0]);
        let [end, alpha, beta] = [self.end, self.alpha, self.beta].map(|x| F::of(f64::from(x)));
        let (Some(&loss), Some(kept)) = (losses.get(at), history.get_mut(at)) else { return };
        let (old, previous) = (t[0], state[1]);
        *kept = old;
        let mut moved = old;
        if previous > F::ZERO {
            state[0] = beta * state[0] + (F::ONE - beta) * ((previous - loss) / (previous + F::of(LEAST)));
            let low = F::of(-MOST);
            let m = if state[0] > low { state[0] } else { low };
            moved += alpha / (F::ONE + (-m).exp()) * (F::ONE - old);
        }
        state[1] = loss;
        let raised = if moved > least { moved } else { least };
        t[0] = if raised < end { raised } else { end };
    }
}
