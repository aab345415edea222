// y = f(a, b), element by element.
//   ADD: a + b      ADD_IN_PLACE: y += a      MUL: a * b      SCALE: factor * a      ZEROS: 0
//   SCALE_BY, SCALE_BY_SQUARE, SCALE_BY_INVERSE: a * s, a * s^2, a / s of the scalar s = b[0]
// One invocation handles one element; groups are numbered linearly over x and y.

const KIND: u32 = 0u;
const ADD: u32 = 0u;
const ADD_IN_PLACE: u32 = 1u;
const MUL: u32 = 2u;
const SCALE: u32 = 3u;
const ZEROS: u32 = 4u;
const SCALE_BY: u32 = 5u;
const SCALE_BY_SQUARE: u32 = 6u;
const SCALE_BY_INVERSE: u32 = 7u;

struct Params {
    count: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> a: array<f32>;
@group(0) @binding(3) var<storage, read> b: array<f32>;

fn element(wid: vec3<u32>, groups: vec3<u32>, lane: u32) -> u32 {
    return (wid.y * groups.x + wid.x) * 256u + lane;
}

@compute @workgroup_size(256)
fn fill(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element(wid, groups, lane);
    if i >= p.count {
        return;
    }
    y[i] = 0.0;
}

@compute @workgroup_size(256)
fn unary(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element(wid, groups, lane);
    if i >= p.count {
        return;
    }
    if KIND == ADD_IN_PLACE {
        y[i] += a[i];
    } else {
        y[i] = p.factor * a[i];
    }
}

@compute @workgroup_size(256)
fn binary(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element(wid, groups, lane);
    if i >= p.count {
        return;
    }
    if KIND == MUL {
        y[i] = a[i] * b[i];
    } else if KIND == SCALE_BY {
        y[i] = a[i] * b[0];
    } else if KIND == SCALE_BY_SQUARE {
        y[i] = a[i] * (b[0] * b[0]);
    } else if KIND == SCALE_BY_INVERSE {
        y[i] = a[i] / b[0];
    } else {
        y[i] = a[i] + b[i];
    }
}
