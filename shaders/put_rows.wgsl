// into[first_row + r, j] = a[r, j] - factor * shift[r] (`minus`), or a's bits as they are (`copy`).
// One lane an element; groups are numbered linearly over x and y.

struct Params {
    count: u32,
    width: u32,
    first: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> into_bits: array<u32>;
@group(0) @binding(2) var<storage, read> a_bits: array<u32>;
@group(0) @binding(3) var<storage, read> shift: array<f32>;

@compute @workgroup_size(256)
fn copy(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if i < p.count {
        into_bits[p.first + i] = a_bits[i];
    }
}

@compute @workgroup_size(256)
fn minus(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if i < p.count {
        into_bits[p.first + i] = bitcast<u32>(bitcast<f32>(a_bits[i]) - p.factor * shift[i / p.width]);
    }
}
