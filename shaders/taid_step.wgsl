// With J = losses[at] and J' = state[1]: m = state[0] moves to beta m + (1 - beta) (J' - J) / (J' + 1e-15), t to
// min(end, max(least, t + alpha sigmoid(m) (1 - t))); while J' is 0 neither moves by it. history[at] = the old t.
// One invocation.

struct Params {
    ring: u32,
    end: f32,
    alpha: f32,
    beta: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> t: array<f32>;
@group(0) @binding(2) var<storage, read_write> state: array<f32>;
@group(0) @binding(3) var<storage, read_write> history: array<f32>;
@group(0) @binding(4) var<storage, read> losses: array<f32>;
@group(0) @binding(5) var<storage, read> ring_at: array<u32>;
@group(0) @binding(6) var<storage, read> least: array<f32>;

@compute @workgroup_size(1)
fn main() {
    let at = ring_at[0];
    if at >= p.ring {
        return;
    }
    let old = t[0];
    let loss = losses[at];
    let previous = state[1];
    history[at] = old;
    var moved = old;
    if previous > 0.0 {
        let m = p.beta * state[0] + (1.0 - p.beta) * ((previous - loss) / (previous + 1e-15));
        state[0] = m;
        // No exponential may overflow.
        moved += p.alpha / (1.0 + exp(-max(m, -80.0))) * (1.0 - old);
    }
    state[1] = loss;
    t[0] = min(p.end, max(least[0], moved));
}
