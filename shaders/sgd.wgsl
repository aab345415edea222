// One step of gradient descent (torch.optim.SGD without dampening and Nesterov), element by element:
//   by = clip factor * gradient + decay * x        b = by = momentum * b + by (`with_momentum` only)        x -= lr * by
// and the gradient becomes 0. A clip factor of 0 (a gradient that is not finite) only clears the gradient.
// One invocation handles one element; groups are numbered linearly over x and y.

struct Params {
    count: u32,
    /// 1: weight decay applies.
    decay: u32,
}

/// The block of adamw.wgsl with the momentum's factor in beta1's place; the others are not used.
struct Step {
    lr: f32,
    momentum: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    correction1: f32,
    correction2: f32,
    unused: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> grad: array<f32>;
// plain
@group(0) @binding(3) var<storage, read> clip: array<f32, 2>;
@group(0) @binding(4) var<storage, read> step: Step;
// with_momentum
@group(0) @binding(3) var<storage, read_write> b: array<f32>;
@group(0) @binding(4) var<storage, read> clip_after: array<f32, 2>;
@group(0) @binding(5) var<storage, read> step_after: Step;

fn element(wid: vec3<u32>, groups: vec3<u32>, lane: u32) -> u32 {
    return (wid.y * groups.x + wid.x) * 256u + lane;
}

// The clipped gradient with the decay's.
fn direction(i: u32, factor: f32, weight_decay: f32) -> f32 {
    return factor * grad[i] + select(0.0, weight_decay, p.decay == 1u) * x[i];
}

@compute @workgroup_size(256)
fn plain(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element(wid, groups, lane);
    if i >= p.count {
        return;
    }
    if clip[1] > 0.0 {
        x[i] -= step.lr * direction(i, clip[1], step.weight_decay);
    }
    grad[i] = 0.0;
}

@compute @workgroup_size(256)
fn with_momentum(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element(wid, groups, lane);
    if i >= p.count {
        return;
    }
    if clip_after[1] > 0.0 {
        let by = step_after.momentum * b[i] + direction(i, clip_after[1], step_after.weight_decay);
        b[i] = by;
        x[i] -= step_after.lr * by;
    }
    grad[i] = 0.0;
}
