// cache[at[n]] = rows[n], rows of COLS elements, in the cache's memory. Places past the cache are skipped.
// One invocation an element; groups are numbered linearly over x and y.

const COLS: u32 = 1u;

struct Params {
    count: u32,
    places: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> cache: array<f32>;
@group(0) @binding(2) var<storage, read> rows: array<f32>;
@group(0) @binding(3) var<storage, read> at: array<u32>;

@compute @workgroup_size(256)
fn write_rows(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if i >= p.count {
        return;
    }
    let place = at[i / COLS];
    if place < p.places {
        cache[place * COLS + i % COLS] = rows[i];
    }
}
