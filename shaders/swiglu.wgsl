// y = silu(gate) * up with silu(a) = a / (1 + e^-a), element by element (Shazeer 2020), and its gradient:
//   dup = dy * silu(gate),  dgate = dy * up * s * (1 + gate * (1 - s)),  s = 1 / (1 + e^-gate)
// One invocation an element; groups are numbered linearly over x and y.

struct Params {
    count: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> gate: array<f32>;
@group(0) @binding(2) var<storage, read> up: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> dgate: array<f32>;
@group(0) @binding(5) var<storage, read_write> dup: array<f32>;

// Clamped where it is 0 or 1 to every digit, so that exp stays finite.
fn sigmoid(a: f32) -> f32 {
    return 1.0 / (1.0 + exp(-clamp(a, -80.0, 80.0)));
}

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
    y[i] = gate[i] * sigmoid(gate[i]) * up[i];
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
    let a = gate[i];
    let s = sigmoid(a);
    dup[i] = dy[i] * a * s;
    dgate[i] = dy[i] * up[i] * s * (1.0 + a * (1.0 - s));
}
