// y[n] = scale * table[ids[n]], rows of COLS elements. A table too large for one binding comes in pieces, a dispatch
// each: this one sees rows first .. first + rows of `vocabulary` and writes only what they give. Ids past the
// vocabulary give rows of zeros, written with the first piece.
// One invocation an element; groups are numbered linearly over x and y.

const COLS: u32 = 1u;

struct Params {
    count: u32,
    first: u32,
    rows: u32,
    vocabulary: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read> table: array<f32>;

@compute @workgroup_size(256)
fn embedding(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if i >= p.count {
        return;
    }
    let id = ids[i / COLS];
    if id >= p.vocabulary {
        if p.first == 0u {
            y[i] = 0.0;
        }
    } else if id >= p.first && id - p.first < p.rows {
        y[i] = p.scale * table[(id - p.first) * COLS + i % COLS];
    }
}
