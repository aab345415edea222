// Some columns of a matrix of `wide` columns: those from `start` on, `narrow` of them.
//   take: out[i, j] = given[i, start + j]      add: out[i, start + j] += given[i, j]
// One invocation an element of the narrow side; groups are numbered linearly over x and y.

struct Params {
    count: u32,
    wide: u32,
    narrow: u32,
    start: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read> given: array<f32>;

fn element(wid: vec3<u32>, groups: vec3<u32>, lane: u32) -> u32 {
    return (wid.y * groups.x + wid.x) * 256u + lane;
}

// Where element i of the narrow side lies in the wide one.
fn within(i: u32) -> u32 {
    let row = i / p.narrow;
    return row * p.wide + p.start + (i - row * p.narrow);
}

@compute @workgroup_size(256)
fn take(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element(wid, groups, lane);
    if i >= p.count {
        return;
    }
    out[i] = given[within(i)];
}

@compute @workgroup_size(256)
fn add(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = element(wid, groups, lane);
    if i >= p.count {
        return;
    }
    out[within(i)] += given[i];
}
