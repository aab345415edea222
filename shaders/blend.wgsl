// out[r, j] = (1 - t) z[r, j] + t v[r, j] over the first `vocab` columns of both. One invocation an element; groups are
// numbered linearly over x and y.

struct Params {
    count: u32,
    vocab: u32,
    stride: u32,
    teacher_stride: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@group(0) @binding(2) var<storage, read> z: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read> share: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if i >= p.count {
        return;
    }
    let row = i / p.vocab;
    let j = i % p.vocab;
    let t = share[0];
    out[i] = (1.0 - t) * z[row * p.stride + j] + t * v[row * p.teacher_stride + j];
}
