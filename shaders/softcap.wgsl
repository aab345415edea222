// Soft-capped logits in place: x becomes y = cap * tanh(x / cap); and its gradient from y: dy becomes
// dy * (1 - (y / cap)^2).
// One invocation an element; groups are numbered linearly over x and y.

struct Params {
    count: u32,
    cap: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read> y: array<f32>;

fn element(wid: vec3<u32>, groups: vec3<u32>, lane: u32) -> u32 {
    return (wid.y * groups.x + wid.x) * 256u + lane;
}

@compute @workgroup_size(256)
fn forward(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element(wid, groups, lane);
    if i >= p.count {
        return;
    }
    // Some drivers' tanh overflows; beyond 30 it is 1 to every digit.
    x[i] = p.cap * tanh(clamp(x[i] / p.cap, -30.0, 30.0));
}

@compute @workgroup_size(256)
fn backward(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element(wid, groups, lane);
    if i >= p.count {
        return;
    }
    let t = y[i] / p.cap;
    x[i] *= (1.0 - t) * (1.0 + t);
}
